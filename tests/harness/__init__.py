"""Real faults for tests: a server that can be killed, a link that can be cut, processes that can be watched."""

from tests.harness.process import Process, alive, children, spawn_python
from tests.harness.proxy import TcpProxy
from tests.harness.server import Cluster, Server
from tests.harness.waiting import eventually

__all__ = ["Cluster", "Process", "Server", "TcpProxy", "alive", "children", "eventually", "spawn_python"]
