"""`agentmesh top`: who is busy, and what waits where."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli.base import Commands, Session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agentmesh.cli.glance import Glance
    from agentmesh.client import Client

commands = Commands()


@commands.command(
    "top",
    example="agentmesh top\nagentmesh top --once --plain\nagentmesh top --once --interval 5 --json",
    panel="Watch and steer",
)
def top(
    session: Session,
    interval: Annotated[float, typer.Option("--interval", min=0.2, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once: two samples, an interval apart.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Text without a screen; a look after the other.")] = False,
) -> None:
    """Show agents, mailboxes, queues, streams and processes, and how fast they work; q or Ctrl-C ends it.

    Rates are those of the last interval; p95 is the time that 95 % of the handlers took at most, as far as the bounds
    of the histogram tell. With `--json` each look is a document.
    """
    is_screen = sys.stdout.isatty() and sys.stdin.isatty() and not (once or plain or session.out.json)
    session.run(_screen(session, interval) if is_screen else _lines(session, interval, once))


async def _looks(session: Session, mesh: Client, interval: float) -> Any:
    from agentmesh.cli.glance import Glance, Sample
    from agentmesh.metrics import collect_families

    async def take() -> Sample:
        families = await collect_families(mesh.transport, mesh.subjects, timeout=session.timeout(1.0))
        return Sample(asyncio.get_running_loop().time(), families)

    before = await take()
    while True:
        await asyncio.sleep(interval)
        after = await take()
        yield Glance(before, after)
        before = after


async def _lines(session: Session, interval: float, once: bool) -> None:
    async with session.connect() as mesh:
        async for glance in _looks(session, mesh, interval):
            _print(session, glance)
            if once:
                return


def _print(session: Session, glance: Glance) -> None:
    if session.out.json:
        session.out.document(glance.document())
        return
    for number, (columns, rows) in enumerate(glance.tables()):
        if rows or number == 0:
            session.out.answer("" if number else glance.headline())
            session.out.table(columns, rows, empty="no agents")


async def _screen(session: Session, interval: float) -> None:
    from rich.live import Live

    over = asyncio.Event()
    async with session.connect() as mesh:
        with Live(screen=True, auto_refresh=False) as live, _until_q(over):
            ending = asyncio.ensure_future(over.wait())
            looks = _looks(session, mesh, interval)
            while not over.is_set():
                looking = asyncio.ensure_future(anext(looks))
                await asyncio.wait({looking, ending}, return_when=asyncio.FIRST_COMPLETED)
                if not looking.done():
                    looking.cancel()
                    break
                live.update(_rendered(looking.result()), refresh=True)


@contextmanager
def _until_q(over: asyncio.Event) -> Iterator[None]:
    """Set `over` when q is typed."""
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    loop = asyncio.get_running_loop()

    def typed() -> None:
        if sys.stdin.read(1) in ("q", "Q", ""):
            over.set()

    tty.setcbreak(number)
    loop.add_reader(number, typed)
    try:
        yield
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _rendered(glance: Glance) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(glance.headline(), style="bold")]
    for columns, rows in glance.tables():
        if rows:
            table = Table(box=None, pad_edge=False, header_style="dim")
            for number, column in enumerate(columns):
                table.add_column(column, justify="left" if number == 0 else "right")
            for row in rows:
                table.add_row(*("" if cell is None else str(cell) for cell in row))
            parts += [Text(), table]
    return Group(*parts, Text(), Text("q: end", style="dim"))
