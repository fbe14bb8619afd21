"""What built-in tools may touch is decided by the plan, not by the caller."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh.errors import ToolArgumentsError
from agentmesh.up import ToolsPlan
from tests.up.conftest import StartMesh


async def test_the_plan_decides_what_the_built_in_tools_may_touch(start_mesh: StartMesh, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "note.txt").write_text("one two three")
    (tmp_path / "secret.txt").write_text("nobody")
    settings = {"root": str(tmp_path / "open"), "commands": ["wc"]}
    mesh = await start_mesh(tools=ToolsPlan(targets=("agentmesh.tools.builtin",), settings=settings))
    tools = (await mesh.client()).tools

    assert await tools.call("read_file", path="note.txt") == "one two three"
    counted = await tools.call("run_command", argv=["wc", "-w", "note.txt"])
    assert counted["stdout"].split()[0] == "3"
    with pytest.raises(ToolArgumentsError):
        await tools.call("read_file", path="../secret.txt")
    with pytest.raises(ToolArgumentsError):
        await tools.call("run_command", argv=["cat", "note.txt"])
