"""Stubs made by an independent protoc from the exported files, used by a program that knows nothing of agentmesh."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from agentmesh import Mesh, proto
from tests.doors.conftest import Model

PROGRAM = Path(__file__).with_name("foreign_client.py")


def _protoc() -> list[list[str]]:
    """Every protoc there is: Debian's, and the one in grpcio-tools."""
    tools = find_spec("grpc_tools")
    assert tools is not None
    assert tools.origin is not None
    well_known = str(Path(tools.origin).parent / "_proto")
    found = [[sys.executable, "-m", "grpc_tools.protoc", f"-I{well_known}"]]
    if (debian := shutil.which("protoc", path="/usr/bin")) is not None:
        found.append([debian, f"-I{well_known}"])
    return found


@pytest.fixture(scope="module", params=range(2), ids=["grpc_tools", "debian"])
def stubs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported files, and the code a stranger makes of them."""
    protocs = _protoc()
    if request.param >= len(protocs):
        pytest.skip("Debian's protoc is not installed")
    folder = tmp_path_factory.mktemp("stubs")
    proto.export(folder)
    command = [*protocs[request.param], f"-I{folder}", f"--python_out={folder}", *proto.FILES]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


async def _run(mesh: Mesh, stubs: Path, *arguments: str) -> dict[str, object]:
    """What the program prints: one JSON document."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", str(PROGRAM), mesh.url, *arguments),
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(stubs)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=stubs,
    )
    async with asyncio.timeout(60):
        out, problem = await process.communicate()
    assert process.returncode == 0, problem.decode()
    said: dict[str, object] = json.loads(out)
    return said


@pytest.mark.seed("A3", "A4", "A5", "A6", "A7", "A8", "A10", "A21", "A12", "A13", "A14")
async def test_a_foreign_program_asks_and_streams(mesh: Mesh, model: Model, stubs: Path) -> None:
    said = await _run(mesh, stubs, "say one two three")

    assert said["agentmesh"] is False
    assert said["text"] == said["streamed"] == "one two three"
    assert said["finish"] == said["finish_streamed"] == "stop"
    assert said["total_tokens"] == said["total_streamed"] == 4
    assert said["indexes"] == [0, 1, 2, 3]
    assert said["meta"] == {
        "request_id": "req-1",
        "trace_id": "trace-1",
        "idempotency_key": "key-1",
        "labels": {"a": "b"},
    }
    assert said["error"] == ["INVALID_ARGUMENT", "there is nothing to answer: give prompt or chat_messages"]
    assert [call.params.temperature for call in model.calls] == [0.0, None]
    assert [call.params.max_tokens for call in model.calls] == [100, None]


@pytest.mark.seed("A36")
async def test_a_foreign_program_finds_the_same_fingerprint(mesh: Mesh, model: Model, stubs: Path) -> None:
    said = await _run(mesh, stubs, "say a")

    assert said["fingerprint"] == proto.FINGERPRINT == said["fingerprint_of_the_answer"]


def test_foreign_stubs_can_be_imported_beside_ours(stubs: Path) -> None:
    code = (
        "import ai_integration_pb2 as theirs\n"
        "from agentmesh import proto\n"
        "ours = proto.LLMInferenceRequest(prompt='a')\n"
        "assert theirs.LLMInferenceRequest.FromString(ours.SerializeToString()).prompt == 'a'\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(stubs), os.environ.get("PYTHONPATH", ".")])}

    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=env)
