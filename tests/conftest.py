"""Fixtures every test may use."""

from tests.harness.fixtures import proxy, server, spawn

__all__ = ["proxy", "server", "spawn"]
