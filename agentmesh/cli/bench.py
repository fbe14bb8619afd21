"""`agentmesh bench`: what this machine does, in a few seconds. `benchmarks/` has the comparisons."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

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


@commands.command(
    "bench",
    example="""agentmesh bench
agentmesh bench --duration 5s --size 1KB
agentmesh bench --nats nats://127.0.0.1:4222 --json""",
    panel="Project",
)
def bench(
    session: Session,
    duration: Annotated[
        str, typer.Option("--duration", metavar="TIME", help="How long each measurement takes.")
    ] = "1s",
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="Bytes of text in each message.")] = "128",
) -> None:
    """Measure tell, ask and tasks on this machine.

    Sender and agent share one process and one core; a broker of its own syncs every accepted task to disk. With
    `--nats` that broker is measured instead, in a tenant of its own.
    """
    from agentmesh import config
    from agentmesh.errors import ConfigError

    try:
        seconds, payload = config.parse_duration(duration), config.parse_size(size)
    except ValueError as error:
        raise ConfigError("--duration or --size", str(error)) from None
    rows, broker = session.run(_measure(session, seconds, payload))
    machine = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "broker": broker,
        "system": platform.platform(),
    }
    if session.out.json:
        session.out.document({"machine": machine, "rows": [asdict(row) for row in rows]})
        return
    session.out.table(
        ["WHAT", "PER SECOND", "P50 MS", "P95 MS", "THE NUMBER IS"],
        [(row.what, f"{row.rate:,.0f}", _ms(row.p50), _ms(row.p95), row.means) for row in rows],
    )
    session.out.note(
        f"\n{machine['cpus']} CPUs, Python {machine['python']}, broker {broker}, {payload} bytes of text each"
    )


async def _measure(session: Session, seconds: float, size: int) -> tuple[list[Row], str]:
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
        for what, measure, means in _MEASUREMENTS:
            session.out.note(f"measuring {what} …")
            count, took, latencies = await measure(measures)
            rows.append(Row(what, count / took, *_percentiles(latencies), means))
        return rows, mesh.transport.server_version


_MEASUREMENTS: tuple[tuple[str, Callable[[Measures], Awaitable[Measured]], str], ...] = (
    ("tell", lambda m: m.tell(), "events that reached the handler"),
    ("ask, one at a time", lambda m: m.ask(1), "round trips of one caller who waits for each answer"),
    ("ask, 64 at a time", lambda m: m.ask(64), "answers when 64 callers wait at once"),
    ("task, one at a time", lambda m: m.task(1), "submit, run, stored result; each write synced to disk"),
    ("task, 64 at a time", lambda m: m.task(64), "the same with 64 under way"),
)


def _percentiles(latencies: list[float]) -> tuple[float | None, float | None]:
    if len(latencies) < 2:
        return None, None
    cuts = statistics.quantiles(latencies, n=20)
    return cuts[9] * 1000, cuts[18] * 1000


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
