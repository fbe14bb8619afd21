"""Children that are real processes: ready lines, output, crashes, stops by force, and no orphans."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import RestartIntensityError, SupervisionError
from agentmesh.supervisor import ChildSpec, Launch, ProcessChild, RestartPolicy, Supervisor
from tests.harness import alive, eventually
from tests.harness.fixtures import SpawnProcess

READY = 'print(\'@agentmesh {"event":"ready"}\', flush=True)'
STUBBORN = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}; time.sleep(600)"


def launch(code: str, **changes: Any) -> Launch:
    return Launch(changes.pop("name", "child"), [sys.executable, "-c", textwrap.dedent(code)], **changes)


@pytest.fixture
async def cleanup() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def started(cleanup: AsyncExitStack, code: str, **changes: Any) -> ProcessChild:
    child = await ProcessChild.start(launch(code, **changes))
    cleanup.push_async_callback(child.kill)
    return child


async def test_a_process_is_up_when_it_says_so(cleanup: AsyncExitStack) -> None:
    child = await started(cleanup, 'print(\'@agentmesh {"event":"ready","n":3}\'); import time; time.sleep(600)')

    assert child.said == {"event": "ready", "n": 3}
    assert child.alive


async def test_a_ready_line_is_found_behind_an_unfinished_line(cleanup: AsyncExitStack) -> None:
    lines: list[str] = []
    child = await started(cleanup, f"print('loading... ', end=''); {READY}; input()", on_line=lines.append)

    assert child.said == {"event": "ready"}
    await child.wait()
    assert lines[0] == "loading... "


async def test_a_process_that_ends_before_it_is_ready_shows_its_last_lines() -> None:
    with pytest.raises(SupervisionError, match=r"(?s)child ended with exit code 1 before it was ready:.*no such luck"):
        await ProcessChild.start(launch("raise SystemExit('no such luck')"))


async def test_a_process_that_is_never_ready_is_killed() -> None:
    lines: list[str] = []
    with pytest.raises(SupervisionError, match=r"not ready within 0\.5 s"):
        await ProcessChild.start(
            launch(
                "import os, time; print(os.getpid(), flush=True); time.sleep(600)",
                ready_timeout=0.5,
                on_line=lines.append,
            )
        )
    assert not alive(int(lines[0]))


async def test_a_program_that_does_not_exist_is_a_clear_error() -> None:
    with pytest.raises(SupervisionError, match="child: cannot run /no/such/program"):
        await ProcessChild.start(Launch("child", ["/no/such/program"]))


async def test_output_arrives_as_lines_of_bounded_length(cleanup: AsyncExitStack) -> None:
    lines: list[str] = []
    child = await started(
        cleanup,
        f"{READY}; import sys; print('x' * 200_000); print('err', file=sys.stderr); print('no newline', end='')",
        on_line=lines.append,
    )
    await child.wait()

    assert "".join(lines[:-2]) == "x" * 200_000
    assert max(map(len, lines)) <= 65_536
    assert lines[-2:] == ["err", "no newline"]


async def test_input_is_given_and_ends(cleanup: AsyncExitStack) -> None:
    lines: list[str] = []
    child = await started(
        cleanup, f"import sys; print(len(sys.stdin.read())); {READY}", stdin=b"y" * 300_000, on_line=lines.append
    )
    assert (await child.wait()).error is None
    assert lines == ["300000"]


async def test_the_end_of_a_process_says_how_it_ended(cleanup: AsyncExitStack) -> None:
    child = await started(cleanup, f"{READY}; import time; time.sleep(600)")
    child.signal(signal.SIGKILL)
    exit = await child.wait()

    assert exit.detail == "SIGKILL"
    assert isinstance(exit.error, SupervisionError)


async def test_c4_a_process_that_ignores_sigterm_is_killed_with_its_family_at_the_timeout(
    cleanup: AsyncExitStack,
) -> None:
    pids: list[str] = []
    child = await started(
        cleanup,
        f"import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)\n{STUBBORN}",
        on_line=pids.append,
    )
    began = time.monotonic()
    await child.stop(0.5)

    assert 0.5 <= time.monotonic() - began < 1.0
    assert not alive(child.pid)
    await eventually(lambda: not alive(int(pids[0])))


async def test_what_a_crashed_process_started_ends_with_it(cleanup: AsyncExitStack) -> None:
    pids: list[str] = []
    child = await started(
        cleanup,
        f"""
        import os, subprocess
        print(subprocess.Popen(['sleep', '600']).pid, flush=True)
        {READY}
        os.abort()
        """,
        on_line=pids.append,
    )
    assert (await child.wait()).detail == "SIGABRT"
    await eventually(lambda: not alive(int(pids[0])))


async def test_c4_a_tree_with_a_stuck_child_stops_in_reverse_order_and_leaves_nobody(cleanup: AsyncExitStack) -> None:
    ended: list[str] = []
    children: dict[str, ProcessChild] = {}
    supervisor = Supervisor(
        "tree", on_event=lambda event: ended.append(event.child) if event.kind == "stopped" else None
    )

    def spec(name: str, code: str) -> ChildSpec:
        async def start() -> ProcessChild:
            children[name] = await started(cleanup, code, name=name)
            return children[name]

        return ChildSpec(name, start, shutdown_timeout=0.6)

    polite = f"{READY}; import time; time.sleep(600)"
    await supervisor.start([spec("a", polite), spec("stuck", STUBBORN), spec("c", polite)])
    began = time.monotonic()
    await supervisor.stop()

    assert 0.6 <= time.monotonic() - began < 1.1
    assert ended == ["c", "stuck", "a"]
    assert not [child.pid for child in children.values() if alive(child.pid)]


async def test_c3_a_process_in_a_crash_loop_is_given_up_with_its_last_words(cleanup: AsyncExitStack) -> None:
    starts: list[int] = []

    async def start() -> ProcessChild:
        child = await started(cleanup, f"{READY}; raise SystemExit('the disk is full')")
        starts.append(child.pid)
        return child

    supervisor = Supervisor("s", policy=RestartPolicy(max_restarts=2, period=60.0, backoff=0.01))
    await supervisor.start([ChildSpec("looper", start)])
    exit = await supervisor.wait()

    assert isinstance(exit.error, RestartIntensityError)
    assert "the disk is full" in str(exit.error)
    assert len(starts) == 3


async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    starting = asyncio.create_task(ProcessChild.start(launch(code)))
    pid = int(await eventually(lambda: pid_file.exists() and pid_file.read_text()))

    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    assert not alive(pid)


async def test_c7_when_the_supervising_process_is_killed_its_children_end_within_5_s(
    spawn_process: SpawnProcess,
) -> None:
    child = "from agentmesh.lifeline import die_with_parent; die_with_parent(1.0); " + STUBBORN
    parent = await spawn_process(f"""
        import asyncio, sys
        from agentmesh.supervisor import ChildSpec, Launch, ProcessChild, Supervisor

        async def start():
            return await ProcessChild.start(Launch("stubborn", [sys.executable, "-c", {child!r}]))

        async def main():
            supervisor = Supervisor("s")
            await supervisor.start([ChildSpec(name, start) for name in "ab"])
            print("up", *(info.child.pid for info in supervisor.children()), flush=True)
            await supervisor.wait()

        asyncio.run(main())
    """)
    pids = [int(pid) for pid in (await parent.line_matching(r"up (\d+) (\d+)")).groups()]
    assert all(map(alive, pids))

    parent.kill9()

    await eventually(lambda: not any(map(alive, pids)), timeout=5.0)
