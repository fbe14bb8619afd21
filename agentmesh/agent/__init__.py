"""Agents: how they are declared (`declare`), how one replica runs (`cell`)."""

from agentmesh.agent.cell import AgentCell
from agentmesh.agent.declare import Agent, Behaviour, Handler, behaviour, default_name, handler
from agentmesh.agent.letter import CellOptions

__all__ = ["Agent", "AgentCell", "Behaviour", "CellOptions", "Handler", "behaviour", "default_name", "handler"]
