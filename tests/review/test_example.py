"""The example does what its README says."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import agentmesh
from agentmesh import config
from agentmesh.agent import behaviour
from agentmesh.agents.review.swarm import AGENTS, TOOLS, start_review
from agentmesh.host import load
from agentmesh.tools.loading import load_all
from tests.harness.fixtures import SpawnProcess
from tests.review import golden

EXAMPLE = Path(__file__).parents[2] / "examples" / "review"


def test_the_script_reviews_prints_and_writes_and_the_second_run_compares(tmp_path: Path) -> None:
    root = Path(asyncio.__file__).parent
    command = [sys.executable, str(EXAMPLE / "review.py"), str(root), "--output", str(tmp_path / "out")]

    first, second = (subprocess.run(command, capture_output=True, text=True, check=True, timeout=120) for _ in range(2))

    assert "Fix these ten first" in first.stdout
    assert "fixed since" not in first.stdout
    assert "0 new, 0 fixed since" in " ".join(second.stdout.split())
    check = [sys.executable, str(Path(golden.__file__)), str(tmp_path / "out" / "report.json"), str(root)]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.stdout.startswith("0 differences"), checked.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"review.html", "review.sarif", "report.json"}


def test_the_settings_run_every_agent_and_serve_every_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.load(config=EXAMPLE / "mesh.toml", environ={})
    monkeypatch.syspath_prepend(str(EXAMPLE))

    running = {name: load(agent.target) for name, agent in settings.agents.items()}
    served, broken = load_all(settings.tools.targets)

    assert running == {behaviour(agent).name: agent for agent in AGENTS}
    assert broken == []
    assert {tool.name for tool in served} == {tool.name for tool in TOOLS}


@pytest.mark.slow
async def test_the_mesh_of_the_example_reviews_what_is_submitted_and_survives_the_kill_of_a_node(
    spawn_process: SpawnProcess, tmp_path: Path
) -> None:
    root = Path(asyncio.__file__).parent
    project = shutil.copytree(EXAMPLE, tmp_path / "example")
    settings = ["--config", str(project / "mesh.toml")]
    up = await spawn_process(
        "agentmesh.cli", *settings, "up", "--store", "memory", "--port", "0", env={"REVIEW_ROOT": str(root)}
    )
    url = (await up.line_matching(r"broker\s+(nats://\S+)", timeout=30.0))[1]
    await up.line_matching("ready in", timeout=30.0)

    async with agentmesh.connect(url, own_thread=False) as mesh:
        nodes = {info.pid for info in await mesh.agents("file-reviewer")}
        job = await start_review(mesh, root, output=tmp_path / "out")
        async for event in job:
            if isinstance(event, agentmesh.Progress) and event.fraction > 0.2:
                os.kill(nodes.pop(), signal.SIGKILL)
                break
        summary = await job.result(60.0)

    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert golden.differences(report, root) == []
    assert summary.files == len(report["files"])
