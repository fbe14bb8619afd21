"""`agentmesh logs`: what the processes of a mesh print."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli.base import Commands, Session
from agentmesh.cli.output import COLORS, json_object

if TYPE_CHECKING:
    from agentmesh.client import Client

commands = Commands()

PERIOD = 0.3
"""Seconds between looks for new lines."""


@commands.command(
    "logs",
    example="""agentmesh logs
agentmesh logs greeter --follow
agentmesh logs node-1 -n 1000""",
    panel="Watch and steer",
)
def logs(
    session: Session,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Agents (of them the processes they run in), or processes."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="How many of the last lines.")] = 200,
) -> None:
    """Print what the processes of the running mesh printed; of one that has stopped, what its files say.

    With `--json` each line is a document; one that is JSON itself (`agentmesh up --log-format json`) is its `record`.
    """
    if session.guessing:
        found = list(_from_files(session, names or [], lines))
        if not found:
            session.out.note(f"nothing runs here, and nothing was logged in {_folder(session)}")
        for line in found:
            _show(session, line)
        return
    session.run(_logs(session, names or [], follow, lines))


async def _logs(session: Session, names: list[str], follow: bool, limit: int) -> None:
    async with session.connect() as mesh:
        sources = await _sources(mesh, names)
        seen = 0
        while True:
            found = await _query(session, mesh, sources, seen, limit)
            for line in found:
                seen = max(seen, line["number"])
                _show(session, line)
            if not follow:
                return
            limit = 1000
            await asyncio.sleep(PERIOD)


async def _sources(mesh: Client, names: list[str]) -> list[str]:
    """Processes: those named, and those that run the agents named; empty: all.

    Raises:
        NoSuchAgentError: A name is neither an agent nor a process.
    """
    from agentmesh.errors import NoSuchAgentError
    from agentmesh.registry import near_misses
    from agentmesh.up import ask_supervisor

    if not names:
        return []
    answer = await ask_supervisor(mesh.transport, mesh.subjects, "ps")
    processes = [str(process["name"]) for process in answer["processes"]] + ["up"]
    nodes: dict[str, list[str]] = {}
    for info in answer["agents"]:
        nodes.setdefault(info["name"], []).append(info["node"])
    sources: list[str] = []
    for name in names:
        if name not in nodes and name not in processes:
            raise NoSuchAgentError(name, near_misses(name, [*nodes, *processes]))
        sources += nodes.get(name, [name])
    return list(dict.fromkeys(sources))


async def _query(session: Session, mesh: Client, sources: list[str], after: int, limit: int) -> list[dict[str, Any]]:
    from agentmesh.up import ask_supervisor

    found: list[dict[str, Any]] = []
    for source in sources or [""]:
        answer = await ask_supervisor(
            mesh.transport, mesh.subjects, "logs", source=source, after=after, limit=limit, timeout=session.timeout()
        )
        found += answer["lines"]
    return sorted(found, key=lambda line: int(line["number"]))[-limit:]


def _folder(session: Session) -> Path:
    from agentmesh.runfile import RUN_DIR

    return session.settings.root / RUN_DIR / "logs"


def _from_files(session: Session, names: list[str], limit: int) -> Iterator[dict[str, Any]]:
    """The last lines of a mesh that does not run any more."""
    found = []
    for file in sorted(_folder(session).glob("*.log")):
        if names and file.stem not in names:
            continue
        for line in file.read_text(errors="replace").splitlines()[-limit:]:
            at, _, text = line.partition(" ")
            if at.endswith("Z") and at[:2] == "20":
                found.append({"at": at, "source": file.stem, "text": text})
    yield from sorted(found, key=lambda line: line["at"])[-limit:]


def _show(session: Session, line: dict[str, Any]) -> None:
    out = session.out
    if out.json:
        record = json_object(str(line["text"]))
        out.document(line if record is None else {**line, "record": record})
        return
    source = str(line["source"])
    at = datetime.fromisoformat(line["at"]).astimezone()
    prefix = out.style(f"{source:<12} │", COLORS[sum(map(ord, source)) % len(COLORS)])
    out.answer(f"{prefix} {at:%H:%M:%S} {line['text']}")
