"""Chats that survive: the agent that answers stored conversations."""

from agentmesh.agents.chat.relay import Conversations

__all__ = ["Conversations"]
