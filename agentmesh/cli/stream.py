"""`agentmesh stream`: conversations, and what tasks tell."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agentmesh.cli import exits
from agentmesh.cli.base import Commands, Session
from agentmesh.cli.output import age, as_json

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.streams import Chunk, StreamState

T = TypeVar("T")

LATEST = 20
"""Chunks that `tail` begins with."""

commands = Commands()
stream = commands.group("stream", help="Conversations, and what tasks tell.", panel="Watch and steer")

StreamId = Annotated[str, typer.Argument(metavar="ID", help="Id of the conversation or task.", show_default=False)]
Raw = Annotated[bool, typer.Option("--raw", help="One line for each chunk: offset, kind, run, content.")]


@stream.command("ls", example="agentmesh stream ls\nagentmesh stream ls --limit 5 --json")
def ls(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="The most to show.")] = 50,
) -> None:
    """List streams, those that were written to last first."""
    found = session.run(_with(session, lambda mesh: mesh.streams.ls(limit)))
    if session.out.json:
        session.out.document(found)
        return
    rows = [
        (
            *(state.conversation_id, state.chunks, _span(state), age(state.last_at), state.last_type or None),
            state.open_runs[0] if state.open_runs else None,
        )
        for state in found
    ]
    columns = ["STREAM", "CHUNKS", "OFFSETS", "CHANGED", "LAST", "OPEN RUN"]
    session.out.table(columns, rows, empty=f"there are no streams in {session.tenant}")


@stream.command("info", example="agentmesh stream info chat-123")
def info(session: Session, id: StreamId) -> None:
    """Show what is stored of a stream, and which of its runs are open."""
    session.check("stream id", id)
    state = session.run(_with(session, lambda mesh: mesh.streams.state(id)))
    if state is None:
        raise _nothing(session, id)
    if session.out.json:
        session.out.document(state)
        return
    session.out.fields(
        [
            ("stream", state.conversation_id),
            ("chunks", state.chunks),
            ("messages", state.messages),
            ("offsets", _span(state)),
            ("first", f"{state.first_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("last", f"{state.last_at:%Y-%m-%d %H:%M:%S} UTC, {state.last_type or 'an event of a task'}"),
            ("open runs", ", ".join(state.open_runs)),
        ]
    )


@stream.command("tail", example="agentmesh stream tail chat-123\nagentmesh stream tail chat-123 --from 0 --raw")
def tail(
    session: Session,
    id: StreamId,
    start: Annotated[
        int | None, typer.Option("--from", min=0, metavar="N", help="Offset to start at; else the latest 20.")
    ] = None,
    raw: Raw = False,
) -> None:
    """Print a stream as it comes, until Ctrl-C; one that does not exist yet is waited for."""
    session.check("stream id", id)

    async def chunks(mesh: Client) -> AsyncGenerator[Chunk, None]:
        state = await mesh.streams.state(id) if start is None else None
        first = max(0, state.last_offset - LATEST + 1) if state is not None else start or 0
        return mesh.streams.read(id, from_offset=first)

    session.run(_print(session, chunks, raw))


@stream.command(
    "replay", example="agentmesh stream replay chat-123\nagentmesh stream replay chat-123 --from 100 --json"
)
def replay(
    session: Session,
    id: StreamId,
    start: Annotated[int, typer.Option("--from", min=0, metavar="N", help="Offset to start at.")] = 0,
    raw: Raw = False,
) -> None:
    """Print what is stored of a stream."""
    session.check("stream id", id)

    async def chunks(mesh: Client) -> AsyncGenerator[Chunk, None]:
        return mesh.streams.read(id, from_offset=start, follow=False)

    if not session.run(_print(session, chunks, raw)) and start == 0:
        raise _nothing(session, id)


@stream.command("cancel", example='agentmesh stream cancel chat-123 --reason "too long"')
def cancel(
    session: Session,
    id: StreamId,
    run: Annotated[str, typer.Option("--run", metavar="RUN", help="Which run; else the latest open one.")] = "",
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="What readers are told.")] = "",
) -> None:
    """End a run and stop whoever produces it."""
    session.check("stream id", id)
    if not session.run(_with(session, lambda mesh: mesh.streams.cancel(id, run_id=run, reason=reason))):
        session.out.error(f"stream {id} has no open run{f' {run}' if run else ''}; see: agentmesh stream info {id}")
        raise typer.Exit(exits.FAILED)
    _done(session, {"id": id, "cancelled": True}, f"the run of stream {id} is cancelled")


@stream.command("purge", example="agentmesh stream purge chat-123")
def purge(session: Session, id: StreamId) -> None:
    """Delete all that is stored of a stream."""
    session.check("stream id", id)
    messages = session.run(_with(session, lambda mesh: mesh.streams.purge(id)))
    if not messages:
        raise _nothing(session, id)
    _done(session, {"id": id, "messages": messages}, f"stream {id} is empty: {messages} messages are deleted")


async def _with(session: Session, action: Callable[[Client], Awaitable[T]]) -> T:
    async with session.connect() as mesh:
        return await action(mesh)


async def _print(session: Session, start: Callable[[Client], Awaitable[AsyncGenerator[Chunk, None]]], raw: bool) -> int:
    """Print the chunks; returns how many there were."""
    screen = _Screen(session, raw)
    async with session.connect() as mesh, aclosing(await start(mesh)) as chunks:
        try:
            async for chunk in chunks:
                screen.show(chunk)
        finally:
            screen.end()
    return screen.count


class _Screen:
    """Chunks for people: text runs on, everything else is a line."""

    def __init__(self, session: Session, raw: bool) -> None:
        self._out = session.out
        self._raw = raw
        self._run = ""
        self._in_line = False
        self.count = 0

    def show(self, chunk: Chunk) -> None:
        self.count += 1
        if self._out.json:
            self._out.answer(chunk.to_json().decode())
        elif self._raw:
            said = as_json(chunk.content) if chunk.data is None else f"{as_json(chunk.content)} {as_json(chunk.data)}"
            self._out.answer(f"{chunk.offset}\t{chunk.type}\t{chunk.run_id or '-'}\t{said}")
        else:
            self._show_text(chunk)

    def _show_text(self, chunk: Chunk) -> None:
        if chunk.run_id != self._run:
            self._run = chunk.run_id
            self.end()
            if chunk.role and not chunk.is_final:
                self._out.answer(self._out.style(f"{chunk.role}: ", "bold"), end="")
                self._in_line = True
        if chunk.type == "text":
            self._out.answer(chunk.content, end="")
            self._in_line = self._in_line or bool(chunk.content)
        elif chunk.type == "finish":
            self._out.answer(chunk.content, end="")
            self._in_line = self._in_line or bool(chunk.content)
            self.end()
        else:
            self.end()
            said = " ".join(part for part in (chunk.content, "" if chunk.data is None else as_json(chunk.data)) if part)
            self._out.answer(self._out.style(f"[{chunk.type}]{' ' if said else ''}{said}", *_colors(chunk)))

    def end(self) -> None:
        """End the line that has begun."""
        if self._in_line:
            self._out.answer("")
            self._in_line = False


def _colors(chunk: Chunk) -> tuple[str, ...]:
    return ("red",) if chunk.is_final else ("dim",)


def _span(state: StreamState) -> str | None:
    return f"{state.first_offset}-{state.last_offset}" if state.last_offset >= 0 else None


def _nothing(session: Session, id: str) -> typer.Exit:
    session.out.error(f"nothing is stored of a stream {id}; see: agentmesh stream ls")
    return typer.Exit(exits.FAILED)


def _done(session: Session, document: dict[str, Any], text: str) -> None:
    if session.out.json:
        session.out.document(document)
    else:
        session.out.note(text)
