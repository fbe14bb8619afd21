"""`agentmesh demo`: a swarm of agents reviews a real code base."""

from __future__ import annotations

import importlib
import os
import shlex
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from agentmesh.cli import exits
from agentmesh.cli.base import Commands, Session
from agentmesh.cli.progress import Bar
from agentmesh.errors import UsageError

commands = Commands()


@commands.command(
    "demo",
    example="""agentmesh demo
agentmesh demo ~/src/project --out /tmp/review
agentmesh demo . --store ~/.cache/agentmesh-demo --json""",
    panel="Start",
)
def demo(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="What to review: a folder or a Python file.")] = Path(),
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the report goes.")] = Path("review"),
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="NAME", help="A folder to leave out; repeat it.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="Remember reviews there, and compare with the one before."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Tools that run at the same time; else one per CPU.")
    ] = None,
) -> None:
    """Let a swarm of agents review Python code: no key, no account, everything on this machine.

    It starts a broker, a walker, file reviewers that call ruff and radon as sandboxed tools, a deduplicator, a ranker
    and a reporter; prints what to fix first and writes review.html, SARIF and JSON. PATH is only read. Without ruff or
    radon (the extra `review`) the report says what is missing.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}")
    _check_writable(out)
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    summary = session.run(_demo(session, _Order(path, folder, out, exclude or [], workers), store and store.absolute()))
    if session.out.json:
        session.out.document(summary)
        return
    if not summary.files:
        session.out.error(f"there are no Python files in {path}; name a folder that has some: agentmesh demo PATH")
        raise typer.Exit(exits.FAILED)
    _print_table(session, summary)
    session.out.note(_what_next(path, summary, store))


def _what_next(path: Path, summary: Any, store: Path | None) -> str:
    outputs = summary.outputs
    again = f"agentmesh demo {shlex.quote(str(path))} --store {shlex.quote(str(store or '.agentmesh-demo'))}"
    return f"""
report:
  {outputs["html"]}   open it in a browser
  {outputs["sarif"]}   for editors and code hosts
  {outputs["json"]}   everything, for programs
next:
  {again}   {"after" if store else "now and after"} a change: what is new, what is fixed
  agentmesh init hello   agents of your own"""


@dataclass(frozen=True)
class _Order:
    """What is wanted."""

    path: Path
    folder: Path
    """What the tools may read."""
    out: Path
    exclude: list[str]
    workers: int | None


async def _demo(session: Session, order: _Order, store: Path | None) -> Any:
    from agentmesh.broker import BrokerOptions, EmbeddedBroker
    from agentmesh.local import LocalServices
    from agentmesh.mesh import connect

    review = _review()
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker(BrokerOptions(store=store)))
        mesh = await stack.enter_async_context(connect(broker.url, name="demo", own_thread=False))
        services = LocalServices(broker.store)
        await services.start_services(mesh.transport, mesh.subjects)
        stack.push_async_callback(services.stop_services)
        await stack.enter_async_context(review.swarm(mesh, order.folder, workers=order.workers))
        job = await review.start_review(mesh, order.path, exclude=order.exclude, output=order.out)
        with Bar(session.out, "reviewing", fraction=True) as bar:
            return await review.follow(job, lambda progress: bar.at(progress.fraction, progress.text))


def _review() -> Any:
    """The swarm. By name: it is a layer outside the core, which must not depend on it."""
    return importlib.import_module("agentmesh.agents.review.swarm")


def _check_writable(out: Path) -> None:
    """Refuse before the work is done what would fail after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {out}: {error.strerror}; choose another folder with --out DIR") from None
    if not os.access(out, os.W_OK):
        raise UsageError(f"cannot write to {out}; choose another folder with --out DIR")


def _print_table(session: Session, summary: Any) -> None:
    from rich.console import Console

    table = importlib.import_module("agentmesh.agents.review.table")
    Console(no_color=not session.out.colored, highlight=False).print(table.render_table(summary))
