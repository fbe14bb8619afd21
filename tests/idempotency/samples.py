"""Tools with effects that can be counted: one line in a file each."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from agentmesh import Retry, tool


def effects(path: Path) -> int:
    """Lines in the file."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def _effect(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("charged\n")


@tool(once=True)
async def charge(path: str, amount: int) -> str:
    """Charge, once per call of a task."""
    _effect(path)
    await asyncio.sleep(0.05)
    return f"receipt for {amount}"


@tool(effect=True)
async def post(path: str, how: str = "") -> str:
    """Do it, in the way asked for."""
    _effect(path)
    if how == "fail":
        raise ValueError("refused by the bank")
    if how == "later" and effects(Path(path)) == 1:
        raise Retry(reason="nothing was done")
    return f"posted {effects(Path(path))}"


@tool
async def lookup(key: str) -> str:
    """Has an argument that is called like an option of `call`."""
    return key


@tool(effect=True, timeout=2.0)
def slow_post(path: str, seconds: float) -> str:
    """Do it in a process, and take one's time to say so."""
    _effect(path)
    time.sleep(seconds)
    return "posted"
