"""agentmesh: supervised, durable actors for AI agents on plain NATS."""

from agentmesh.agent import Agent, CellOptions, handler
from agentmesh.context import Context
from agentmesh.errors import AgentMeshError, Reject, Retry
from agentmesh.mesh import Mesh, connect
from agentmesh.messages import Event, Prompt, Request, Task, Text
from agentmesh.refs import AgentRef
from agentmesh.sync import SyncMesh
from agentmesh.tasks import Batch, Chunk, Job, Progress, Restarted, TaskContext
from agentmesh.tool import Tool, tool
from agentmesh.version import __version__

__all__ = [
    "Agent",
    "AgentMeshError",
    "AgentRef",
    "Batch",
    "CellOptions",
    "Chunk",
    "Context",
    "Event",
    "Job",
    "Mesh",
    "Progress",
    "Prompt",
    "Reject",
    "Request",
    "Restarted",
    "Retry",
    "SyncMesh",
    "Task",
    "TaskContext",
    "Text",
    "Tool",
    "__version__",
    "connect",
    "handler",
    "tool",
]
