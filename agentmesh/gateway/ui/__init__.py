"""The chat page: static files, no build step, nothing from elsewhere."""

from agentmesh.gateway.ui.pages import routes

__all__ = ["routes"]
