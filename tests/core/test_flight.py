"""What a process was handling when it was killed can be read afterwards."""

from __future__ import annotations

from pathlib import Path

from agentmesh.flight import SLOT_SIZE, SLOTS, FlightRecorder, read_flight
from tests.harness.fixtures import SpawnProcess

KILLED = """
import os, signal, sys
from pathlib import Path
from agentmesh.flight import FlightRecorder

recorder = FlightRecorder(Path(sys.argv[1]))
recorder.end(recorder.begin({"id": "handled"}))
recorder.begin({"id": "fatal"})
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_what_was_begun_and_not_ended_survives_a_kill_and_is_read_once(
    tmp_path: Path, spawn_process: SpawnProcess
) -> None:
    path = tmp_path / "flight" / "node-1"
    process = await spawn_process(KILLED, str(path))
    await process.wait()

    assert read_flight(path) == [{"id": "fatal"}]
    assert read_flight(path) == []


def test_what_does_not_fit_is_left_out_and_slots_are_used_again(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path / "file")
    assert recorder.begin({"body": "x" * SLOT_SIZE}) == -1
    slots = [recorder.begin({"n": n}) for n in range(SLOTS)]
    assert recorder.begin({"n": "one too many"}) == -1
    recorder.end(slots[3])
    recorder.end(-1)
    recorder.begin({"n": "again"})

    found = [message["n"] for message in read_flight(tmp_path / "file")]
    assert len(found) == SLOTS
    assert "again" in found
    assert 3 not in found
