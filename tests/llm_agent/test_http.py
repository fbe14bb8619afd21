"""A call is approved over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh import Mesh
from tests.gateway.conftest import Running, gateway, start_gateway
from tests.llm_agent.conftest import Spawn
from tests.llm_agent.node import Helper
from tests.llm_agent.puppet import Puppet, call, script
from tests.llm_agent.test_turns import LIMIT, lines, say, until

__all__ = ["gateway", "start_gateway"]


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_call_is_allowed_over_http(
    mesh: Mesh, spawn: Spawn, puppet: Puppet, gateway: Running, tmp_path: Path, allowed: bool
) -> None:
    await spawn(Helper)
    mail = call("send_mail", to="bob", ledger=str(tmp_path / "ledger"))
    job = await say(mesh, "talk", script({"call": [mail]}, {"say": "$results"}))
    asked = await until(mesh, job, "talk", status="approval")
    where = f"/api/v1/tasks/{job.id}/signals/{asked.data['signal']}"
    answer = await gateway.http.post(where, json={"value": allowed})
    assert (answer.status_code, answer.json()["counts"]) == (200, True)
    assert ("sent to bob" in await job.result(LIMIT)) == allowed
    assert lines(tmp_path / "ledger") == (["mail bob"] if allowed else [])
    assert (await gateway.http.post(where, json={"value": True})).json()["counts"] is False


async def test_a_signal_for_a_task_that_is_not_there_is_404(gateway: Running) -> None:
    answer = await gateway.http.post("/api/v1/tasks/nothing/signals/approve-x", json={"value": True})
    assert answer.status_code == 404
