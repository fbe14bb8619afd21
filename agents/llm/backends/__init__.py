"""Backends: `offline` (rules), `openai`, `litellm`, or a class of yours."""

from agentmesh.agents.llm.backends.base import ModelBackend, ModelCall
from agentmesh.agents.llm.backends.making import make_backend

__all__ = ["ModelBackend", "ModelCall", "make_backend"]
