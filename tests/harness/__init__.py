"""Real faults for tests: a server that can be killed, a link that can be cut, processes that can be watched."""

from agentmesh.chaos import Cluster, Server, TcpProxy
from agentmesh.chaos.processes import alive, children
from tests.harness.process import Process, spawn_python
from tests.harness.waiting import eventually

__all__ = ["Cluster", "Process", "Server", "TcpProxy", "alive", "children", "eventually", "spawn_python"]
