"""The official NATS client for JavaScript at the doors. Needs node, and its modules in `$AGENTMESH_NATS_JS`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from agentmesh import Mesh
from tests.doors.conftest import Model

PROGRAM = Path(__file__).with_name("javascript_client.cjs")
MODULES = os.environ.get("AGENTMESH_NATS_JS", "")


@pytest.mark.skipif(
    shutil.which("node") is None or not (Path(MODULES or "/nonexistent") / "node_modules" / "@nats-io").is_dir(),
    reason="node, or @nats-io/transport-node and @nats-io/services in $AGENTMESH_NATS_JS, is not there",
)
async def test_the_javascript_client_discovers_asks_and_streams(mesh: Mesh, model: Model) -> None:
    tenant = mesh.subjects.tenant
    process = await asyncio.create_subprocess_exec(
        *("node", str(PROGRAM), MODULES, mesh.url, tenant, "say one two"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, problem = await process.communicate()

    assert process.returncode == 0, problem.decode()
    said = json.loads(out)
    assert said["discovered"] == sorted(
        [f"ai.gateway.requests.{tenant}", "svc.ai.llm.v1.infer", f"svc.ai.llm.v1.infer.{tenant}"]
    )
    assert (said["infer"]["output_text"], said["content_type"]) == ("one two", "application/json")
    assert said["infer"]["meta"] == {"request_id": "js-1", "labels": {"a": "b"}}
    assert said["error"]["code"] == "INVALID_ARGUMENT"
    assert said["service_error"][0] == "400"
    assert (said["requests"]["response"], said["requests"]["request_id"]) == ("one two", "js-2")
    assert said["chunks"] == [[0, "one", False], [1, " two", False], [2, "", True]]
    assert said["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert said["windowed"] == 3
    assert model.calls[0].params.temperature == 0.0
