"""`agentmesh bench`: what this machine does, in a few seconds. `benchmarks/` has the comparisons."""

from __future__ import annotations

import operator
import os
import platform
import re
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli import exits
from agentmesh.cli.base import Commands, Session

if TYPE_CHECKING:
    from agentmesh.cli.bench_agents import Measured, Measures

commands = Commands()


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    rate: float
    """Per second."""
    p50: float | None
    """Milliseconds; None where only the rate says something."""
    p95: float | None
    means: str
    pattern: str = ""


@dataclass(frozen=True)
class Floor:
    """What must hold of every row that has the figure, such as `p95<10ms` or `rate>200`."""

    text: str
    figure: str
    """`p50`, `p95` (milliseconds) or `rate` (per second)."""
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Floor:
        """Read what was typed.

        Raises:
            ConfigError: It cannot be read.
        """
        from agentmesh import config
        from agentmesh.errors import ConfigError

        wanted = "expected p50, p95 or rate, then < or >, then a time or a number: 'p95<10ms', 'rate>200'"
        found = re.fullmatch(r"(p50|p95|rate)(<=|>=|<|>)(.+)", text.replace(" ", ""))
        if found is None:
            raise ConfigError("--assert", f"{text!r}: {wanted}")
        figure, sign, value = found.groups()
        try:
            bound = float(value.removesuffix("/s")) if figure == "rate" else config.parse_duration(value) * 1000
        except ValueError:
            raise ConfigError("--assert", f"{text!r}: {wanted}") from None
        return cls(text, figure, sign, bound)

    def broken_by(self, row: Row) -> str:
        """What is wrong with a row; empty if nothing is."""
        value = getattr(row, self.figure)
        if value is None or _SIGNS[self.sign](value, self.bound):
            return ""
        shown = f"{value:,.0f}/s" if self.figure == "rate" else f"{value:.3f} ms"
        return f"{row.what}: {self.figure} is {shown}, not {self.text.replace(' ', '').removeprefix(self.figure)}"


_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@commands.command(
    "bench",
    example="""agentmesh bench
agentmesh bench --duration 5s --size 1KB
agentmesh bench --pattern ask --assert 'p95<10ms' --assert 'rate>200'
agentmesh bench --nats nats://127.0.0.1:4222 --json""",
    panel="Project",
)
def bench(
    session: Session,
    duration: Annotated[
        str, typer.Option("--duration", metavar="TIME", help="How long each measurement takes.")
    ] = "1s",
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="Bytes of text in each message.")] = "128",
    pattern: Annotated[
        list[str] | None,
        typer.Option("--pattern", metavar="KIND", help="Only this: tell, ask, task or stream. May be repeated."),
    ] = None,
    floors: Annotated[
        list[str] | None,
        typer.Option(
            "--assert", metavar="RULE", help="End with 1 unless it holds: 'p95<10ms', 'rate>200'. May be repeated."
        ),
    ] = None,
) -> None:
    """Measure tell, ask, tasks and streams on this machine.

    Sender and agent share one process and one core; a broker of its own syncs every accepted task to disk. With
    `--nats` that broker is measured instead, in a tenant of its own.
    """
    from agentmesh import config
    from agentmesh.errors import ConfigError

    try:
        seconds, payload = config.parse_duration(duration), config.parse_size(size)
    except ValueError as error:
        raise ConfigError("--duration or --size", str(error)) from None
    rules = [Floor.parse(text) for text in floors or []]
    rows, broker = session.run(_measure(session, seconds, payload, _chosen(pattern)))
    broken = [problem for rule in rules for row in rows if (problem := rule.broken_by(row))]
    machine = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "broker": broker,
        "system": platform.platform(),
    }
    if session.out.json:
        session.out.document({"machine": machine, "rows": [asdict(row) for row in rows], "broken": broken})
    else:
        _show(session, rows, machine, payload)
    if broken:
        for problem in broken:
            session.out.note(problem)
        raise typer.Exit(exits.FAILED)


def _chosen(patterns: Sequence[str] | None) -> list[str]:
    from agentmesh.errors import ConfigError

    known = list(dict.fromkeys(pattern for pattern, *_ in _MEASUREMENTS))
    for pattern in patterns or []:
        if pattern not in known:
            raise ConfigError("--pattern", f"{pattern!r} is not one of {', '.join(known)}")
    return list(patterns) if patterns else known


def _show(session: Session, rows: Sequence[Row], machine: Mapping[str, object], payload: int) -> None:
    session.out.table(
        ["WHAT", "PER SECOND", "P50 MS", "P95 MS", "THE NUMBER IS"],
        [(row.what, f"{row.rate:,.0f}", _ms(row.p50), _ms(row.p95), row.means) for row in rows],
    )
    session.out.note(
        f"\n{machine['cpus']} CPUs, Python {machine['python']}, broker {machine['broker']}, "
        f"{payload} bytes of text each"
    )


async def _measure(session: Session, seconds: float, size: int, patterns: Sequence[str]) -> tuple[list[Row], str]:
    from agentmesh.broker import EmbeddedBroker
    from agentmesh.cli.bench_agents import Bench, Measures
    from agentmesh.ids import new_id
    from agentmesh.mesh import connect

    async with AsyncExitStack() as stack:
        url = session.options.nats
        if url is None:
            url = (await stack.enter_async_context(EmbeddedBroker())).url
        mesh = await stack.enter_async_context(connect(url, tenant=f"bench-{new_id()}", name="bench", own_thread=False))
        await mesh.spawn(Bench, name="bench")
        measures = Measures(mesh, seconds, "x" * size)
        rows = []
        for pattern, what, measure, means in _MEASUREMENTS:
            if pattern not in patterns:
                continue
            session.out.note(f"measuring {what} …")
            count, took, latencies = await measure(measures)
            rows.append(Row(what, count / took, *_percentiles(latencies), means, pattern))
        return rows, mesh.transport.server_version


_MEASUREMENTS: tuple[tuple[str, str, Callable[[Measures], Awaitable[Measured]], str], ...] = (
    ("tell", "tell", lambda m: m.tell(), "events that reached the handler"),
    ("ask", "ask, one at a time", lambda m: m.ask(1), "round trips of one caller who waits for each answer"),
    ("ask", "ask, 64 at a time", lambda m: m.ask(64), "answers when 64 callers wait at once"),
    ("task", "task, one at a time", lambda m: m.task(1), "submit, run, stored result; each write synced to disk"),
    ("task", "task, 64 at a time", lambda m: m.task(64), "the same with 64 under way"),
    (
        "stream",
        "stream, first chunk",
        lambda m: m.first_chunk(),
        "streaming answers begun, and the wait for their start",
    ),
    ("stream", "stream, chunks", lambda m: m.chunks(), "chunks of streaming answers"),
)


def _percentiles(latencies: list[float]) -> tuple[float | None, float | None]:
    if len(latencies) < 2:
        return None, None
    cuts = statistics.quantiles(latencies, n=20)
    return cuts[9] * 1000, cuts[18] * 1000


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
