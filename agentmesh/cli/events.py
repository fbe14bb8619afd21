"""`agentmesh events`: crashes, terminations, quarantines, fail-overs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli.base import Commands, Session

if TYPE_CHECKING:
    from agentmesh.happenings import Happening

commands = Commands()


@commands.command(
    "events",
    example="""agentmesh events
agentmesh events --follow --kind crash
agentmesh events --name greeter --json | jq .document.traceback""",
    panel="Watch and steer",
)
def events(
    session: Session,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    kind: Annotated[
        str, typer.Option("--kind", help="Only these: crash, gave-up, quarantine, group-ended, failover.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Only those of this agent or process.")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000, help="How many of the last.")] = 50,
    full: Annotated[bool, typer.Option("--full", help="With tracebacks and messages.")] = False,
) -> None:
    """Show what happened to agents and processes in the last 7 days, oldest first. `--json`: one document each.

    Tracebacks, and the bodies of messages that ended an agent, are shown with `--full` and `--json`.
    """
    for what, value in (("kind", kind), ("name", name)):
        if value:
            session.check(what, value)
    session.run(_show(session, follow, kind, name, lines, full))


async def _show(session: Session, follow: bool, kind: str, name: str, lines: int, full: bool) -> None:
    from agentmesh import happenings

    async with session.connect() as mesh:
        past = await happenings.recent(mesh.transport, mesh.subjects, kind=kind, name=name, limit=lines)
        for one in past:
            _print(session, one, full)
        if not follow:
            if not past:
                session.out.note(_nothing(kind, name, happenings.KINDS))
            return
        start = past[-1].sequence + 1 if past else 1
        try:
            async for one in happenings.follow(mesh.transport, mesh.subjects, kind=kind, name=name, start=start):
                _print(session, one, full)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


def _nothing(kind: str, name: str, kinds: Sequence[str]) -> str:
    which = f" of kind {kind!r}" if kind else ""
    about = f" about {name!r}" if name else ""
    return f"no events{which}{about} in the last 7 days; kinds are: {', '.join(kinds)}"


def _print(session: Session, one: Happening, full: bool) -> None:
    out = session.out
    if out.json:
        out.document(one)
        return
    document = one.document
    where = f"  {document['node']}" if document.get("node") not in (None, one.name) else ""
    error = f"  {document['error_type']}: {document.get('error', '')}" if document.get("error_type") else ""
    stamp = one.at.astimezone().strftime("%m-%d %H:%M:%S")
    reason = str(document.get("reason", "")).partition("\n")[0]
    out.answer(f"{stamp}  {out.style(one.kind, 'yellow')}  {one.name}{where}  {reason}{error}".rstrip())
    if full:
        message = document.get("message")
        if message:
            out.answer(f"    {message['type']} {message['id']} from {message['sender'] or '?'}: {message['body']}")
        for line in str(document.get("traceback", "")).splitlines():
            out.answer(f"    {line}")
