"""The compose file for a broker of one's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from agentmesh.broker import find_server

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.mark.seed("D19")
def test_the_compose_file_runs_a_broker_that_is_new_enough_and_keeps_what_it_stores() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())

    (service,) = compose["services"].values()
    name, _, tag = service["image"].partition(":")
    assert name == "nats"
    assert tuple(map(int, tag.partition("-")[0].split("."))) >= (2, 14)
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    mounts = dict(volume.split(":")[:2] for volume in service["volumes"])
    assert mounts["./nats.conf"] == service["command"][1]
    (volume,) = compose["volumes"]
    assert f"store_dir: {mounts[volume]}" in (DEPLOY / "nats.conf").read_text()


@pytest.mark.seed("D19")
def test_the_broker_accepts_its_settings(tmp_path: Path) -> None:
    settings = tmp_path / "nats.conf"
    settings.write_text((DEPLOY / "nats.conf").read_text().replace("/data", str(tmp_path)))

    checked = subprocess.run(
        [str(find_server()), "-t", "-c", str(settings)], capture_output=True, text=True, timeout=30
    )

    assert checked.returncode == 0, checked.stderr
    assert "sync_interval: always" in settings.read_text()
