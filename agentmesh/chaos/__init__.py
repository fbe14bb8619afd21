"""`agentmesh chaos`: real processes under real faults, and a checker that shares no code with what it checks."""

from agentmesh.chaos.cluster import Cluster, Rig
from agentmesh.chaos.proxy import TcpProxy
from agentmesh.chaos.server import Server

__all__ = ["Cluster", "Rig", "Server", "TcpProxy"]
