"""Supervision in the way of OTP: who is started again, how often, and what happens to the siblings."""

from agentmesh.supervisor.policy import Intensity, RestartPolicy
from agentmesh.supervisor.process import Launch, ProcessChild, kill_group
from agentmesh.supervisor.tree import (
    AutoShutdown,
    Child,
    ChildInfo,
    ChildSpec,
    Exit,
    Strategy,
    Supervisor,
    SupervisorEvent,
)

__all__ = [
    "AutoShutdown",
    "Child",
    "ChildInfo",
    "ChildSpec",
    "Exit",
    "Intensity",
    "Launch",
    "ProcessChild",
    "RestartPolicy",
    "Strategy",
    "Supervisor",
    "SupervisorEvent",
    "kill_group",
]
