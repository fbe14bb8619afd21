"""Pools that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.tools.pool import ProcessPool
from tests.harness import eventually


@pytest.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    """Two processes at most."""
    running = ProcessPool(2)
    yield running
    await running.close()


class Marker:
    """A file in which a tool says pids."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def pids(self) -> list[int]:
        """The pids, once they are there."""
        await eventually(self.path.exists, what="the tool says its pids")
        return [int(pid) for pid in self.path.read_text().split()]


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    return Marker(tmp_path / "pids")
