"""The memory service: durable records of agents in SQLite, over NATS.

The client is `agentmesh.memory`; `python -m agentmesh.memory_store` runs the service as a process of its own.
"""

from agentmesh.memory_store.service import MemoryService
from agentmesh.memory_store.store import Store

__all__ = ["MemoryService", "Store"]
