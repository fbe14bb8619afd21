"""Everything here that runs is slow, and chaos."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentmesh.chaos.plan import kinds, plan
from agentmesh.chaos.report import Report
from agentmesh.chaos.run import Options, run

RunChaos = Callable[..., Awaitable[Report]]


@pytest.fixture
def run_chaos(tmp_path: Path) -> RunChaos:
    """`report = await run_chaos("worker,server", seconds=15, seed=1, **fields of Options)`; histories in `tmp_path`."""

    async def go(faults: str, *, seconds: float, seed: int, gap: float = 2.0, **options: Any) -> Report:
        words = [word for word in faults.split(",") if word]
        names = kinds(words, cluster=options.get("servers", 1) > 1)
        planned = options.pop("planned", None) or plan(seed, seconds, names, gap)
        return await run(Options(seed=seed, seconds=seconds, faults=planned, keep=tmp_path, **options))

    return go


def told(report: Report) -> str:
    """What to show when a test fails."""
    lines = [f"seed {report.seed}, {report.faults}, {report.folder}"]
    for violation in report.violations[:5]:
        lines += [f"{violation.promise}: {violation.what}", *(f"    {line}" for line in violation.lines[-12:])]
    return "\n".join(lines)
