"""What the benchmarks of pairs share: a broker and an answering process, interleaved pairs, and tables of ratios."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agentmesh.broker import BrokerOptions, EmbeddedBroker
from agentmesh.lifeline import spawn_kwargs
from benchmarks.compare import machine

Run = Callable[[], Awaitable[float]]
"""One run of one side: a rate (per second), or a time (milliseconds)."""


@dataclass
class Case:
    """The same work on both sides."""

    name: str
    raw: Run
    mesh: Run
    unit: str = "/s"
    """`/s`: more is better; `ms`: less is."""
    goal: float | None = None
    """What the median ratio should reach: at least, for a rate; at most, for a time."""


@dataclass
class Outcome:
    """A case that was run."""

    case: str
    unit: str
    goal: float | None
    raw: list[float] = field(default_factory=list)
    mesh: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Ours to theirs, pair by pair."""
        return [ours / theirs for ours, theirs in zip(self.mesh, self.raw, strict=True)]

    @property
    def reached(self) -> bool:
        ratio = statistics.median(self.ratios)
        return self.goal is None or (ratio >= self.goal if self.unit == "/s" else ratio <= self.goal)

    def row(self) -> str:
        ratios = self.ratios
        sign = ">=" if self.unit == "/s" else "<="
        goal = "" if self.goal is None else f"{sign} {self.goal:g}{'' if self.reached else ' **missed**'}"
        return (
            f"| {self.case} | {shown(statistics.median(self.raw), self.unit)} "
            f"| {shown(statistics.median(self.mesh), self.unit)} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) | {goal} |"
        )


HEAD = "| case | raw | agentmesh | agentmesh / raw | goal |\n| --- | --- | --- | --- | --- |"


def shown(value: float, unit: str) -> str:
    return f"{value:,.0f}/s" if unit == "/s" else f"{value:.3f} ms"


async def run_pairs(cases: Sequence[Case], wanted: Sequence[str], pairs: int) -> list[Outcome]:
    """Run the cases whose name starts with one of `wanted`, or all, in interleaved pairs after a warm one."""
    outcomes = []
    for case in cases:
        if wanted and not any(case.name.startswith(part) for part in wanted):
            continue
        await case.raw()
        await case.mesh()
        outcome = Outcome(case.name, case.unit, case.goal)
        for _ in range(pairs):
            outcome.raw.append(await case.raw())
            outcome.mesh.append(await case.mesh())
        outcomes.append(outcome)
        print(outcome.row(), flush=True)
    return outcomes


@asynccontextmanager
async def answering(module: str, sync: str) -> AsyncIterator[tuple[str, Path]]:
    """A broker, and a process `python -m module --serve URL FOLDER` that has said `ready`."""
    with tempfile.TemporaryDirectory(prefix="agentmesh-bench-") as folder:
        broker = EmbeddedBroker(BrokerOptions(store=Path(folder) / "broker", sync_always=sync == "always"))
        async with broker:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, "--serve", broker.url, folder),
                stdout=asyncio.subprocess.PIPE,
                **spawn_kwargs(),
            )
            assert child.stdout is not None
            if b"ready" not in await child.stdout.readline():
                raise SystemExit("the answering process did not start")
            try:
                yield broker.url, Path(folder)
            finally:
                child.terminate()
                await child.wait()


def parser(about: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("cases", nargs="*", help="only cases whose name starts with one of these")
    found.add_argument("--pairs", type=int, default=7)
    found.add_argument("--quick", action="store_true", help="a fraction of the work, to see that it runs")
    found.add_argument("--sync", choices=["default", "always"], default="default", help="the broker's sync_interval")
    found.add_argument("--json", type=Path, help="also write every figure there")
    found.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    return found


def heading(sync: str) -> None:
    """Facts about the machine, and the head of the table."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print("  ".join(f"{key} {value}" for key, value in machine().items()), f" sync {sync}  load {load}")
    print(HEAD, flush=True)


def write(path: Path | None, sync: str, outcomes: Sequence[Outcome]) -> None:
    """Every figure, for programs."""
    if path is not None:
        document = {"machine": machine(), "sync": sync, "cases": [asdict(outcome) for outcome in outcomes]}
        path.write_text(json.dumps(document, indent=2) + "\n")
