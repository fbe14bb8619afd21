"""The example publishes, asks, and takes back what is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh import config
from agentmesh.agent import behaviour
from agentmesh.host import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "workflow"


def publish(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "publish.py"), *arguments]
    return subprocess.run(command, input=answer, capture_output=True, text=True, check=False, timeout=60)


def test_a_site_is_published_after_approval_and_a_broken_one_is_taken_back(tmp_path: Path) -> None:
    pages, site = tmp_path / "pages", tmp_path / "site"
    pages.mkdir()
    (pages / "one.md").write_text("# One\n\nSee [two](two.md).\n")
    (pages / "two.md").write_text("# Two & more\n\nThe end.\n")
    (pages / "bad.md").write_bytes(b"\xff\xfe\xff")

    first = publish(str(pages), str(site), "--id", "first", "--ask", answer="y\n")

    assert first.returncode == 0, first.stderr
    assert "2 pages are at" in first.stdout
    assert "left out, it cannot be read" in first.stdout
    assert '<a href="two.html">two</a>' in (site / "current" / "one.html").read_text()
    assert "Two &amp; more" in (site / "current" / "index.html").read_text()

    (pages / "two.md").write_text("# Two\n\nSee [three](three.md).\n")
    second = publish(str(pages), str(site), "--id", "second")

    assert second.returncode == 1
    assert "two.html links to three.html, which is not there; undone: switch, files" in second.stderr
    assert (site / "current").resolve().name == "first"
    assert not (site / "releases" / "second").exists()


def test_the_settings_run_both_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    settings = config.load(config=EXAMPLE / "mesh.toml", environ={})
    running = {name: behaviour(load(agent.target)).name for name, agent in settings.agents.items()}
    assert running == {"renderer": "renderer", "publisher": "publisher"}
