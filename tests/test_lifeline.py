"""No child survives its parent, however the parent ends (matrix C7)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentmesh.lifeline import die_with_parent, spawn_kwargs
from tests.harness import eventually
from tests.harness.fixtures import SpawnProcess

# A parent that starts one child, from the code in its first argument, in the way its second names.
PARENT = """
    import asyncio, multiprocessing, os, subprocess, sys, threading, time
    from agentmesh.lifeline import spawn_kwargs

    command = [sys.executable, "-c", sys.argv[1]]

    async def with_asyncio():
        child = await asyncio.create_subprocess_exec(*command, **spawn_kwargs())
        await child.wait()

    def with_popen():
        subprocess.Popen(command, **spawn_kwargs()).wait()

    def from_a_thread_that_ends_on_enter():
        def start():
            started.append(subprocess.Popen(command, **spawn_kwargs()))
            sys.stdin.readline()

        started = []
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        while len(os.listdir("/proc/self/task")) > 1:
            time.sleep(0.001)
        try:
            started[0].wait(timeout=0.3)
        except subprocess.TimeoutExpired:
            print("child outlived the thread", flush=True)
        time.sleep(600)

    def from_a_thread_beside_a_forked_sibling():
        threading.Thread(target=with_popen).start()
        sys.stdin.readline()
        sibling = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        sibling.start()
        print("sibling", sibling.pid, flush=True)
        sibling.join()

    match sys.argv[2]:
        case "asyncio":
            asyncio.run(with_asyncio())
        case "popen":
            with_popen()
        case "thread":
            from_a_thread_that_ends_on_enter()
        case "fork":
            from_a_thread_beside_a_forked_sibling()
"""

WAITS = """
import os, time
from agentmesh.lifeline import die_with_parent
assert die_with_parent()
print("child", os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("way", ["asyncio", "popen"])
async def test_c7_a_child_ends_when_its_parent_is_killed(spawn_process: SpawnProcess, way: str) -> None:
    parent = await spawn_process(PARENT, WAITS, way)
    await parent.line_matching(r"child (\d+)")

    parent.kill9()

    await eventually(lambda: not parent.family(), timeout=5)


async def test_c7_a_child_ends_when_its_parent_ends_in_the_ordinary_way(spawn_process: SpawnProcess) -> None:
    parent = await spawn_process(PARENT, WAITS, "popen")
    await parent.line_matching(r"child (\d+)")

    parent.terminate()

    await eventually(lambda: not parent.family(), timeout=5)


async def test_c7_an_orderly_stop_runs_before_the_child_ends(spawn_process: SpawnProcess, tmp_path: Path) -> None:
    farewell = str(tmp_path / "farewell")
    parent = await spawn_process(
        PARENT,
        f"""
import os, signal, sys, time
from agentmesh.lifeline import die_with_parent

def stop(number, frame):
    open({farewell!r}, "w").close()
    sys.exit()

signal.signal(signal.SIGTERM, stop)
die_with_parent()
print("child", os.getpid(), flush=True)
time.sleep(600)
""",
        "popen",
    )
    await parent.line_matching(r"child (\d+)")

    parent.kill9()

    await eventually(lambda: not parent.family(), timeout=5)
    assert os.listdir(tmp_path) == ["farewell"]


async def test_c7_a_child_that_ignores_sigterm_is_killed_with_its_process_group(spawn_process: SpawnProcess) -> None:
    parent = await spawn_process(
        PARENT,
        """
import os, signal, subprocess, time
from agentmesh.lifeline import die_with_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)
die_with_parent(grace=0.5)
print("child", os.getpid(), subprocess.Popen(["sleep", "600"]).pid, flush=True)
while True:
    pass
""",
        "asyncio",
    )
    await parent.line_matching(r"child (\d+) (\d+)")
    await eventually(lambda: len(parent.family()) == 3)

    parent.kill9()

    await eventually(lambda: not parent.family(), timeout=5)


async def test_c7_a_chain_of_processes_ends_from_the_top(spawn_process: SpawnProcess) -> None:
    middle = f"""
import os, subprocess, sys
from agentmesh.lifeline import die_with_parent, spawn_kwargs
die_with_parent()
assert "AGENTMESH_LIFELINE" not in os.environ
print("middle", os.getpid(), flush=True)
subprocess.Popen([sys.executable, "-c", {WAITS!r}], **spawn_kwargs()).wait()
"""
    parent = await spawn_process(PARENT, middle, "popen")
    await parent.line_matching(r"child (\d+)")
    await eventually(lambda: len(parent.family()) == 3)

    parent.kill9()

    await eventually(lambda: not parent.family(), timeout=5)


async def test_a_child_outlives_the_thread_that_started_it(spawn_process: SpawnProcess) -> None:
    parent = await spawn_process(PARENT, WAITS, "thread")
    await parent.line_matching(r"child (\d+)")
    await parent.write_line("end the thread")
    await parent.line_matching("child outlived the thread")

    parent.kill9()

    await eventually(lambda: not parent.family(), timeout=5)


async def test_c7_a_forked_sibling_does_not_keep_a_child_alive(spawn_process: SpawnProcess) -> None:
    parent = await spawn_process(PARENT, WAITS, "fork")
    await parent.line_matching(r"child (\d+)")
    await parent.write_line("fork")
    sibling = int((await parent.line_matching(r"sibling (\d+)"))[1])

    parent.kill9()

    await eventually(lambda: parent.family() == [sibling], timeout=5)


async def test_c7_a_child_too_busy_to_run_a_thread_ends_too(spawn_process: SpawnProcess) -> None:
    busy = """
import os, re
from agentmesh.lifeline import die_with_parent
die_with_parent()
print("child", os.getpid(), flush=True)
re.match(r"(a+)+$", "a" * 60 + "b")  # for years, without letting go of the interpreter
"""
    parent = await spawn_process(PARENT, busy, "popen")
    await parent.line_matching(r"child (\d+)")

    parent.kill9()

    await eventually(lambda: not parent.family(), timeout=5)


async def test_c7_a_child_whose_parent_is_gone_before_it_looks_ends_at_once(spawn_process: SpawnProcess) -> None:
    late = """
import os, sys, time
started = os.getppid()
print("child", os.getpid(), flush=True)
while os.getppid() == started:
    time.sleep(0.01)
from agentmesh.lifeline import die_with_parent
die_with_parent()
time.sleep(600)
"""
    parent = await spawn_process(PARENT, late, "popen")
    await parent.line_matching(r"child (\d+)")

    parent.kill9()

    await eventually(lambda: not parent.family(), timeout=5)


def test_a_process_started_by_hand_lives_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTMESH_LIFELINE", raising=False)

    assert die_with_parent() is False


def test_variables_given_for_a_child_are_added_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.environ['OURS'], os.environ['THEIRS'])"],
        **spawn_kwargs({"THEIRS": "2"}),
        capture_output=True,
        text=True,
        check=True,
    )

    assert child.stdout == "1 2\n"


def test_a_child_ends_normally_while_its_parent_lives() -> None:
    began = time.monotonic()

    child = subprocess.run(
        [sys.executable, "-c", "from agentmesh.lifeline import die_with_parent; assert die_with_parent()"],
        **spawn_kwargs(),
        check=True,
    )

    assert child.returncode == 0
    assert time.monotonic() - began < 3  # did not wait for the grace period
