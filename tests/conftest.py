"""Fixtures every test may use."""

from tests.harness.fixtures import proxy, server, spawn_process

__all__ = ["proxy", "server", "spawn_process"]
