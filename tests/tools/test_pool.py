"""Promises of the processes that run tools: limits hold, nothing survives, the executor is not touched."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import (
    AgentMeshError,
    MissingExtraError,
    ToolFailedError,
    ToolLimitError,
    ToolTimeoutError,
)
from agentmesh.tooling import Tool, tool
from agentmesh.tools.pool import ProcessPool, import_target
from tests.harness import Process, alive, children, eventually
from tests.harness.fixtures import SpawnProcess
from tests.tools import samples
from tests.tools.conftest import Marker


async def run(pool: ProcessPool, tool: Tool[..., Any], timeout: float | None = None, **arguments: Any) -> Any:
    data = await pool.run(tool, tool.encode_arguments(arguments), timeout or tool.limits.timeout)
    return tool.decode_result(data)


async def gone(*pids: int, timeout: float = 1.0) -> None:
    await eventually(lambda: not any(alive(pid) for pid in pids), timeout, what=f"{pids} are gone")


async def test_a_tool_runs_in_another_process_with_typed_arguments_and_result(pool: ProcessPool) -> None:
    assert await run(pool, samples.add, a=1) == 3
    assert await run(pool, samples.mirror, point=samples.Point(x=1, y=2)) == samples.Point(x=2, y=1)
    assert await run(pool, samples.async_in_a_process, a=1) == 2
    assert (await run(pool, samples.surroundings))["pid"] != os.getpid()


async def test_a_process_is_used_again_and_replaced_after_so_many_calls() -> None:
    pool = ProcessPool(1, recycle_after=2)
    try:
        pids = [(await run(pool, samples.surroundings))["pid"] for _ in range(4)]
    finally:
        await pool.close()
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_a_started_pool_has_a_process_ready_before_the_first_call(pool: ProcessPool) -> None:
    from agentmesh.tools.handles import Cage

    await pool.start([Cage.of(samples.add.limits)])
    (ready,) = pool.idle

    assert (await run(pool, samples.surroundings))["pid"] == ready


async def test_no_more_processes_run_than_the_pool_is_large(pool: ProcessPool) -> None:
    pids = await asyncio.gather(*(run(pool, samples.surroundings) for _ in range(8)))

    assert len({call["pid"] for call in pids}) <= 2


async def test_tools_with_other_limits_get_other_processes_within_the_size_of_the_pool(pool: ProcessPool) -> None:
    for _ in range(2):
        await run(pool, samples.add, a=1)
        with pytest.raises(ToolLimitError):
            await run(pool, samples.eats_memory)
        with pytest.raises(ToolLimitError):
            await run(pool, samples.opens_much)

    assert len(pool.idle) <= 2


async def test_a_function_that_cannot_be_imported_runs_too(pool: ProcessPool) -> None:
    offset = 40

    @tool
    def local(point: samples.Point) -> int:
        return point.x + offset

    assert import_target(local) == ""
    assert await run(pool, local, point=samples.Point(x=2)) == 42
    assert await run(pool, local, point=samples.Point(x=3)) == 43


async def test_a_tool_of_the_main_program_runs_too(spawn_process: SpawnProcess) -> None:
    process = await spawn_process(
        """
        import asyncio
        from pydantic import BaseModel
        from agentmesh.tooling import tool
        from agentmesh.tools.pool import ProcessPool

        class Pair(BaseModel):
            a: int
            b: int

        @tool
        def total(pair: Pair) -> Pair:
            return Pair(a=pair.a + pair.b, b=0)

        async def main():
            pool = ProcessPool(1)
            print("result", (await pool.run(total, b'{"pair": {"a": 1, "b": 2}}', 10)).decode())
            await pool.close()

        asyncio.run(main())
        """
    )

    await process.line_matching(r'result \{"a":3,"b":0\}')


async def test_settings_reach_the_process_and_paths_mean_the_folder_of_the_executor(pool: ProcessPool) -> None:
    assert await run(pool, samples.under_root) == f"{Path.cwd()} 3"
    assert await run(pool, samples.under_root.configure(root="/srv", limit=5)) == "/srv 5"


@pytest.mark.parametrize(
    ("kind", "error_type", "message"),
    [
        ("value", "ValueError", "value"),
        ("exit", "SystemExit", "3"),
        ("hard-exit", "SystemExit", "exit code 4"),
        ("signal", "SIGSEGV", "ended by that signal"),
        ("wrong-result", "str", "annotated to return"),
    ],
)
async def test_a_tool_that_fails_is_a_typed_error_and_the_next_call_works(
    pool: ProcessPool, kind: str, error_type: str, message: str
) -> None:
    with pytest.raises(ToolFailedError, match=message) as raised:
        await run(pool, samples.raises, kind=kind)

    assert raised.value.error_type == error_type
    assert await run(pool, samples.add, a=1) == 3


async def test_d3_a_cancelled_error_raised_by_the_tool_does_not_cancel_the_caller(pool: ProcessPool) -> None:
    with pytest.raises(ToolFailedError, match="CancelledError"):
        await run(pool, samples.raises, kind="cancelled")


async def test_our_own_errors_come_through_as_they_are(pool: ProcessPool) -> None:
    with pytest.raises(MissingExtraError, match=r"agentmesh-nats\[review\]"):
        await run(pool, samples.raises, kind="ours")


async def test_a_timeout_ends_the_tool_and_every_process_it_started(pool: ProcessPool, marker: Marker) -> None:
    started = time.monotonic()
    with pytest.raises(ToolTimeoutError, match=r"0\.5 s"):
        await run(pool, samples.sleeps, marker=marker.path)

    assert time.monotonic() - started < 2
    await gone(*await marker.pids())
    assert await run(pool, samples.add, a=1) == 3


async def test_cancelling_the_call_ends_the_tool_and_every_process_it_started(
    pool: ProcessPool, marker: Marker
) -> None:
    call = asyncio.create_task(run(pool, samples.sleeps_long, marker=marker.path))
    pids = await marker.pids()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("eats_memory", "bytes of memory"),
        ("burns", "0.2 seconds of CPU time"),
        ("writes_much", "1048576 bytes in a file"),
        ("opens_much", "32 open files"),
    ],
)
async def test_a_tool_over_a_limit_is_ended_with_an_error_that_names_it(
    pool: ProcessPool, name: str, limit: str
) -> None:
    with pytest.raises(ToolLimitError, match=limit):
        await run(pool, getattr(samples, name))

    assert await run(pool, samples.add, a=1) == 3


async def test_cpu_time_of_earlier_calls_does_not_count(pool: ProcessPool) -> None:
    @tool(cpu_seconds=1.0)
    def work() -> int:
        return sum(range(4_000_000))

    for _ in range(8):
        await run(pool, work)


async def test_h6_a_flood_of_output_is_cut_within_a_second(pool: ProcessPool) -> None:
    started = time.monotonic()
    with pytest.raises(ToolLimitError, match="64000 bytes of output"):
        await run(pool, samples.floods)

    assert time.monotonic() - started < 1


async def test_a_result_over_the_limit_is_refused(pool: ProcessPool) -> None:
    assert len(await run(pool, samples.big_result, size=998)) == 998
    for size in (999, 100_000, 10_000_000):
        with pytest.raises(ToolLimitError, match="1000 bytes"):
            await run(pool, samples.big_result, size=size)


async def test_arguments_larger_than_a_pipe_arrive(pool: ProcessPool) -> None:
    @tool
    def length(text: str) -> int:
        return len(text)

    assert await run(pool, length, text="x" * 3_000_000) == 3_000_000


async def test_what_a_tool_prints_is_logged_and_is_no_part_of_the_result(
    pool: ProcessPool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "agentmesh.tools"):
        assert await run(pool, samples.says, text="hello") == 0

    assert "tool says printed: hello\nHELLO" in caplog.text


async def test_h7_a_tool_sees_none_of_the_executors_secrets(pool: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cr3t-planted")
    monkeypatch.setenv("NATS_PASSWORD", "s3cr3t-planted")

    seen = await run(pool, samples.surroundings)

    assert "s3cr3t" not in json.dumps(seen)
    public = {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "TMPDIR", "AGENTMESH_TOOL_POOL"}
    assert set(seen["environment"]) <= public


async def test_each_call_works_in_an_empty_folder_that_is_removed(pool: ProcessPool) -> None:
    folder = await run(pool, samples.litters)
    seen = await run(pool, samples.surroundings)

    assert not os.path.exists(folder)  # noqa: ASYNC240
    assert (seen["files"], seen["input"]) == ([], "")
    assert seen["group"] == seen["pid"]


async def test_h5_a_tool_that_kills_its_parent_or_its_group_does_not_touch_the_executor(
    pool: ProcessPool, marker: Marker
) -> None:
    with pytest.raises(ToolFailedError, match="SIGKILL"):
        await run(pool, samples.kills_parent, marker=marker.path)
    await gone(*await marker.pids())
    with pytest.raises(ToolFailedError, match="SIGKILL"):
        await run(pool, samples.kills_group)

    assert await run(pool, samples.add, a=1) == 3


async def test_h8_a_daemon_left_behind_is_gone_within_a_second(pool: ProcessPool, marker: Marker) -> None:
    assert await run(pool, samples.leaves_daemon, marker=marker.path) == 1

    await gone(*await marker.pids())
    assert await run(pool, samples.add, a=1) == 3


async def test_h8_a_daemon_of_a_tool_whose_process_died_is_gone_within_a_second(
    pool: ProcessPool, marker: Marker
) -> None:
    with pytest.raises(ToolFailedError, match="exit code 1"):
        await run(pool, samples.leaves_daemon_and_dies, marker=marker.path)

    await gone(*await marker.pids())


async def test_a_process_in_which_a_thread_still_runs_takes_no_other_call(pool: ProcessPool) -> None:
    first = await run(pool, samples.leaves_thread)

    assert (await run(pool, samples.surroundings))["pid"] != first
    await gone(first)


async def test_an_idle_process_that_was_killed_is_replaced(pool: ProcessPool) -> None:
    first = (await run(pool, samples.surroundings))["pid"]
    os.kill(first, 9)
    await eventually(lambda: not pool.idle, what="the pool knows")

    assert (await run(pool, samples.surroundings))["pid"] != first


async def test_closing_the_pool_ends_everything(marker: Marker) -> None:
    pool = ProcessPool(2)
    call = asyncio.create_task(run(pool, samples.sleeps_long, marker=marker.path))
    pids = await marker.pids()
    keeper = pool.keeper
    assert keeper is not None
    await pool.close()

    with pytest.raises(AgentMeshError):
        await call
    await gone(*pids, keeper.pid)
    assert not os.path.exists(keeper.folder)  # noqa: ASYNC240


async def test_nothing_survives_an_executor_that_was_killed(spawn_process: SpawnProcess, marker: Marker) -> None:
    executor: Process = await spawn_process(
        """
        import asyncio, sys
        from agentmesh.tools.pool import ProcessPool
        from tests.tools import samples

        async def main():
            pool = ProcessPool(1)
            await pool.run(samples.add, b'{"a": 1}', 10)
            print("folder", pool.keeper.folder, flush=True)
            await pool.run(samples.sleeps_long, samples.sleeps_long.encode_arguments({"marker": sys.argv[1]}), 60)

        asyncio.run(main())
        """,
        str(marker.path),
    )
    folder = Path((await executor.line_matching("folder (.*)"))[1])
    pids = await marker.pids()
    executor.kill9()

    await gone(*pids)
    await eventually(lambda: not folder.exists(), what="the temporary folder is gone")


async def test_tools_find_the_modules_that_the_executor_finds(
    pool: ProcessPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "handmade_tools.py").write_text(
        "from agentmesh.tooling import tool\n\n@tool\ndef twice(n: int) -> int:\n    return 2 * n\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import handmade_tools  # type: ignore[import-not-found]

    try:
        assert await run(pool, handmade_tools.twice, n=21) == 42
    finally:
        del sys.modules["handmade_tools"]


@pytest.mark.parametrize("steps", range(1, 8))
async def test_a_call_cancelled_while_its_process_starts_leaves_none(pool: ProcessPool, steps: int) -> None:
    call = asyncio.create_task(run(pool, samples.add, a=1))
    for _ in range(steps):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})

    assert await run(pool, samples.add, a=1) == 3
    await pool.close()
    assert not _keepers()


def _keepers() -> list[int]:
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children(os.getpid())}
    return [pid for pid, command in commands.items() if "agentmesh.tools" in command]


async def test_results_and_cancellation_work_on_uvloop_too(spawn_process: SpawnProcess, marker: Marker) -> None:
    process = await spawn_process(
        """
        import asyncio, sys, uvloop
        from pathlib import Path
        from agentmesh.tools.pool import ProcessPool
        from tests.tools import samples

        async def main():
            pool = ProcessPool(2)
            print("result", await pool.run(samples.add, b'{"a": 1}', 10), flush=True)
            arguments = samples.sleeps_long.encode_arguments({"marker": sys.argv[1]})
            call = asyncio.create_task(pool.run(samples.sleeps_long, arguments, 60))
            while not Path(sys.argv[1]).exists():
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait({call})
            print("cancelled", call.cancelled(), flush=True)
            await pool.close()

        uvloop.run(main())
        """,
        str(marker.path),
    )
    await process.line_matching("result b'3'")
    await process.line_matching("cancelled True")
    await gone(*await marker.pids())
    assert await process.wait() == 0
