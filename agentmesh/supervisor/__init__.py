"""Supervision in the way of OTP: who is started again, how often, and what happens to the siblings."""

from agentmesh.supervisor.policy import Intensity, RestartPolicy
from agentmesh.supervisor.process import Launch, ProcessChild, kill_group
from agentmesh.supervisor.tree import Child, ChildInfo, ChildSpec, Exit, Supervisor, SupervisorEvent

__all__ = [
    "Child",
    "ChildInfo",
    "ChildSpec",
    "Exit",
    "Intensity",
    "Launch",
    "ProcessChild",
    "RestartPolicy",
    "Supervisor",
    "SupervisorEvent",
    "kill_group",
]
