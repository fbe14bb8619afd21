"""`agentmesh up`: what to run (`UpPlan`), the process that runs it (`Up`), what it tells (`UpEvent`), and how other
processes find, ask and stop it."""

from agentmesh.up.detach import Down, down, start_detached
from agentmesh.up.events import (
    AgentState,
    BrokerReady,
    Elected,
    LogLine,
    Ready,
    Reloaded,
    Restarted,
    ServiceReady,
    Stopped,
    Stopping,
    UpEvent,
    Warned,
)
from agentmesh.up.operations import ask_supervisor, outline, supervisors
from agentmesh.up.plan import AgentPlan, BrokerPlan, GroupPlan, MemoryPlan, ToolsPlan, UpPlan
from agentmesh.up.root import Up
from agentmesh.up.rundir import holder, running

__all__ = [
    "AgentPlan",
    "AgentState",
    "BrokerPlan",
    "BrokerReady",
    "Down",
    "Elected",
    "GroupPlan",
    "LogLine",
    "MemoryPlan",
    "Ready",
    "Reloaded",
    "Restarted",
    "ServiceReady",
    "Stopped",
    "Stopping",
    "ToolsPlan",
    "Up",
    "UpEvent",
    "UpPlan",
    "Warned",
    "ask_supervisor",
    "down",
    "holder",
    "outline",
    "running",
    "start_detached",
    "supervisors",
]
