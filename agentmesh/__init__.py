"""agentmesh: supervised, durable actors for AI agents on plain NATS.

Names are imported when they are first used: a command line that needs one of them does not pay for all.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentmesh.agent import Agent, CellOptions, handler
    from agentmesh.budgets import Budget
    from agentmesh.context import Context, budget
    from agentmesh.errors import AgentMeshError, Finish, Reject, Retry
    from agentmesh.limits import Limit
    from agentmesh.mesh import Mesh, connect
    from agentmesh.messages import Event, Prompt, Request, Task, Terminated, Text
    from agentmesh.refs import AgentRef
    from agentmesh.sync import SyncMesh
    from agentmesh.tasks import Batch, Chunk, Job, Progress, Restarted, Saga, Step, TaskContext
    from agentmesh.tooling import Tool, tool
    from agentmesh.version import __version__

_MODULES = {
    "agentmesh.agent": ("Agent", "CellOptions", "handler"),
    "agentmesh.budgets": ("Budget",),
    "agentmesh.context": ("Context", "budget"),
    "agentmesh.errors": ("AgentMeshError", "Finish", "Reject", "Retry"),
    "agentmesh.limits": ("Limit",),
    "agentmesh.mesh": ("Mesh", "connect"),
    "agentmesh.messages": ("Event", "Prompt", "Request", "Task", "Terminated", "Text"),
    "agentmesh.refs": ("AgentRef",),
    "agentmesh.sync": ("SyncMesh",),
    "agentmesh.tasks": ("Batch", "Chunk", "Job", "Progress", "Restarted", "Saga", "Step", "TaskContext"),
    "agentmesh.tooling": ("Tool", "tool"),
    "agentmesh.version": ("__version__",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Agent",
    "AgentMeshError",
    "AgentRef",
    "Batch",
    "Budget",
    "CellOptions",
    "Chunk",
    "Context",
    "Event",
    "Finish",
    "Job",
    "Limit",
    "Mesh",
    "Progress",
    "Prompt",
    "Reject",
    "Request",
    "Restarted",
    "Retry",
    "Saga",
    "Step",
    "SyncMesh",
    "Task",
    "TaskContext",
    "Terminated",
    "Text",
    "Tool",
    "__version__",
    "budget",
    "connect",
    "handler",
    "tool",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
