"""The command line."""

from agentmesh.cli.app import main

__all__ = ["main"]
