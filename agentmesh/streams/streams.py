"""`Streams`: the conversations of a tenant. `mesh.streams` is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from agentmesh.errors import RunEndedError
from agentmesh.ids import now
from agentmesh.streams.care import Caretaker, Endings, Patience
from agentmesh.streams.chunk import CANCELLED, TERMINAL, Chunk, decode_chunks, parse_cursor
from agentmesh.streams.events import StreamEvent, StreamReader, StreamWriter
from agentmesh.streams.follow import REPLAY, STREAM
from agentmesh.streams.post import CANCEL, WAY, post_of
from agentmesh.streams.reader import Reader, Wish
from agentmesh.streams.reading import OpenRun, Reading, find
from agentmesh.streams.run import Run
from agentmesh.streams.tail import Tail
from agentmesh.subjects import Subjects, token
from agentmesh.transport import StoredMessage, Transport

T = TypeVar("T")

_RECENT = 2_000
"""Chunks at the end of a conversation among which open runs are looked for."""

_AT_ONCE = 32
"""Conversations asked for at the same time."""


@dataclass(frozen=True)
class StreamState:
    """A conversation as it is stored."""

    conversation_id: str
    chunks: int
    """How many are stored; of a stream without offsets, messages."""
    messages: int
    first_offset: int
    last_offset: int
    first_at: datetime
    last_at: datetime
    open_runs: tuple[str, ...] = ()
    """Runs without an end among the latest 2000 chunks."""
    last_type: str = ""


async def _nothing() -> None:
    return None


class Streams:
    """The replayable streams of a tenant.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        ensure: Makes the JetStream stream if it is missing; by default somebody else has.
        endings: Knows how tasks end; without it, what a task tells has no end.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        ensure: Callable[[], Coroutine[Any, Any, None]] | None = None,
        endings: Endings | None = None,
    ) -> None:
        self.patience = Patience()
        """When a reader takes a producer for dead."""
        self._transport = transport
        self._subjects = subjects
        self._ensure = ensure or _nothing
        self._endings = endings
        self._caretaker: Caretaker | None = None

    # ------------------------------------------------------------ producing
    def run(
        self,
        conversation_id: str,
        *,
        run_id: str | None = None,
        epoch: int = 1,
        role: str = "assistant",
        owner: str = "",
        own_task: bool = False,
        durable: bool = False,
        ttl: float | None = None,
        interrupt: bool = True,
        since: str = "",
    ) -> Run:
        """A producer's turn: `async with mesh.streams.run("chat-1") as run: await run.send("Hel")`.

        Args:
            conversation_id: Which conversation; it need not exist.
            run_id: An id of yours, to go on with a run after a crash; by default a new one.
            epoch: Which take of it: higher than those before. They are refused from then on, and readers are told to
                forget what they wrote.
            role: Who speaks.
            owner: Id of the task that decides how the run ends. While it is undecided nobody ends the run: neither
                leaving the block without a terminal chunk, nor those who find that no producer is alive.
            own_task: Its owner is a task that has the run's id.
            durable: The same without a task: only you end the run.
            ttl: Seconds until its chunks go by themselves; None keeps them as long as the stream does.
            interrupt: Cancel the task that runs the block when the run is cancelled or taken over.
            since: Cursor of a chunk before the run's first one, if you have one: saves reading the conversation, to
                see what became of the run, when `run_id` is given.

        Raises:
            InvalidNameError: An id cannot be part of a subject.
        """
        return Run(
            self._transport,
            self._subjects,
            post_of(self._transport, self._subjects),
            self._ensure,
            token("conversation id", conversation_id),
            run_id=run_id,
            epoch=epoch,
            role=role,
            owner=owner or ("*" if durable else ""),
            own_task=own_task,
            ttl=ttl,
            interrupt=interrupt,
            since=_place(since),
        )

    async def cancel(self, conversation_id: str, *, run_id: str = "", reason: str = "") -> bool:
        """End a run with a `cancelled` chunk, whoever produces it; its producer is stopped.

        Args:
            conversation_id: Which conversation.
            run_id: Which run; by default the latest that is open.
            reason: Content of the chunk.

        Returns:
            False: there is no such run, or it has ended.
        """
        return await self.end(conversation_id, run_id, CANCELLED, reason or "cancelled")

    async def _end_silent(self, conversation_id: str, run: OpenRun, kind: str, content: str) -> bool:
        """End a run, unless it says something more."""
        found = await self._open(conversation_id, run.run_id)
        if found is None or (found[1].epoch, found[1].index) != (run.epoch, run.index):
            return False
        tail, latest = found
        return await self._end_run(conversation_id, tail, latest, kind, content, silent=True)

    async def end(self, conversation_id: str, run_id: str, kind: str, content: str = "") -> bool:
        """End a run for its producer, which is gone or will never be: with `finish`, `error` or `cancelled`.

        Returns:
            False: there is no such run, or it has ended.
        """
        await self._ensure()
        found = await self._open(conversation_id, run_id)
        if found is None:
            return False
        tail, run = found
        return await self._end_run(conversation_id, tail, run, kind, content)

    async def _end_run(
        self, conversation_id: str, tail: Tail, run: OpenRun, kind: str, content: str, *, silent: bool = False
    ) -> bool:
        """Store a terminal chunk of a run as the next one of the conversation, unless it is ended meanwhile.

        Args:
            conversation_id: Which.
            tail: Its end.
            run: Open there.
            kind: Of the chunk.
            content: Of the chunk.
            silent: Not if the run says anything meanwhile.
        """
        post = post_of(self._transport, self._subjects)
        last = Chunk(
            conversation_id=conversation_id,
            type=kind,
            content=content,
            timestamp=now(),
            role=run.role,
            run_id=run.run_id,
            epoch=run.epoch,
            index=run.index + 1,
            owner=run.owner,
        )

        def seen(chunk: Chunk) -> None:
            if chunk.run_id != run.run_id:
                return
            if silent or chunk.type in TERMINAL:
                raise RunEndedError(conversation_id, run.run_id, chunk.type)
            last.epoch, last.index = chunk.epoch, chunk.index + 1

        tail.seen, tail.crowded = seen, lambda: post.send(conversation_id, WAY)
        try:
            await tail.append([last], f"{self._subjects.tenant}.{conversation_id}.{run.run_id}:{kind}:{last.id}")
        except RunEndedError:
            return False
        await post.send(conversation_id, CANCEL, run.run_id)
        return True

    async def _open(self, conversation_id: str, run_id: str) -> tuple[Tail, OpenRun] | None:
        """An open run, and the end of the conversation."""
        tail = Tail(self._transport, self._subjects, conversation_id)
        last = await self._transport.last_message(STREAM, self._subjects.stream(conversation_id), latest=True)
        if last is None:
            return None
        chunks = decode_chunks(last.data, last.sequence, 0)
        end = chunks[-1] if chunks and chunks[-1].sequence else None
        if end is not None and not end.is_final and run_id in ("", end.run_id):  # the usual case
            tail.sequence, tail.offset = last.sequence, end.offset + 1
            return tail, OpenRun(end)
        start, offset = 1, 0
        if end is not None and not run_id:
            start, offset = await find(self._transport, self._subjects, conversation_id, max(0, end.offset - _RECENT))
        reading = Reading(conversation_id, offset)
        tail.sequence, tail.offset = start - 1, offset
        tail.seen = reading.note
        await tail.catch_up()
        open_runs = [run for name, run in reading.open.items() if name and run_id in ("", name)]
        return (tail, open_runs[-1]) if open_runs else None

    # ------------------------------------------------------------ reading
    def read(
        self,
        conversation_id: str,
        *,
        from_offset: int = 0,
        cursor: str = "",
        run_id: str = "",
        one_run: bool = False,
        to_end: bool = False,
        until: Callable[[Chunk], bool] | None = None,
        follow: bool = True,
        idle_timeout: float | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Chunks of a conversation, in order: those that are stored, then live, without gap and without repetition.

        Any number of readers, which know nothing of each other. A conversation that does not exist is waited for.

        Args:
            conversation_id: Which one; the id of a task reads what the task tells.
            from_offset: Number of the first chunk. If it is not kept any more, the oldest that is; if it is not there
                yet, it is waited for.
            cursor: Instead: go on behind the chunk that had this cursor.
            run_id: Only this run, up to its terminal chunk.
            one_run: Only the first run that is met and is not the user's, up to its terminal chunk.
            to_end: End when all that is stored was read and no run is open; so a terminal chunk was seen.
            until: The chunk that ends the reading; it is yielded, too.
            follow: False ends with what is stored now.
            idle_timeout: Seconds without any chunk until StreamIdleError.

        Raises:
            StreamIdleError: Nothing came for `idle_timeout` seconds.
            StreamGapError: What comes next was dropped or deleted before it was read: this reader was too slow.
            InvalidMessageError: `cursor` is none.
        """
        wish = Wish(from_offset, cursor, run_id, one_run, to_end, until, follow, idle_timeout)
        reader = Reader(
            self._transport,
            self._subjects,
            token("conversation id", conversation_id),
            wish,
            ensure=self._ensure,
            caretaker=self._care(),
            endings=self._endings,
            patience=self.patience,
        )
        return reader.chunks()

    def _care(self) -> Caretaker:
        if self._caretaker is None:
            post = post_of(self._transport, self._subjects)
            self._caretaker = Caretaker(post, self._open_runs, self._end_silent, self._endings)
        return self._caretaker

    # ------------------------------------------------------------ looking after them
    async def state(self, conversation_id: str) -> StreamState | None:
        """The conversation as it is stored now; None if there is nothing."""
        await self._ensure()
        subject = self._subjects.stream(conversation_id)
        counts = await self._transport.subjects_of(STREAM, subject)
        return await self._state(conversation_id, counts.get(subject, 0), look=True)

    async def ls(self, limit: int = 100) -> list[StreamState]:
        """Up to `limit` conversations, those that were written to last first. Of each, the last chunk's run only is
        looked at to say which are open."""
        await self._ensure()
        counts = await self._transport.subjects_of(STREAM, self._subjects.all_streams())
        latest = await self._each(list(counts), lambda subject: self._transport.last_message(STREAM, subject))
        found = sorted((last for last in latest if last is not None), key=lambda last: last.sequence, reverse=True)
        subjects = [last.subject for last in found[:limit]]
        states = await self._each(subjects, lambda subject: self._state(_id_of(subject), counts[subject]))
        return [state for state in states if state is not None]

    async def _each(self, subjects: list[str], ask: Callable[[str], Coroutine[Any, Any, T]]) -> list[T]:
        """The answers, in the same order."""
        answers: list[T] = []
        for first in range(0, len(subjects), _AT_ONCE):
            answers += await asyncio.gather(*map(ask, subjects[first : first + _AT_ONCE]))
        return answers

    async def _state(self, conversation_id: str, messages: int, *, look: bool = False) -> StreamState | None:
        subject = self._subjects.stream(conversation_id)
        last = await self._transport.last_message(STREAM, subject)
        oldest = await self._transport.messages(STREAM, subject, limit=1)
        if last is None or not oldest:
            return None
        first_chunk, last_chunk = _ends(oldest[0], last)
        open_runs: tuple[str, ...] = ()
        if first_chunk is None or last_chunk is None:
            return StreamState(conversation_id, messages, messages, -1, -1, oldest[0].time, last.time)
        if not last_chunk.is_final:
            open_runs = (last_chunk.run_id,)
        if look:
            open_runs = tuple(run.run_id for run in await self._open_runs(conversation_id))
        return StreamState(
            conversation_id,
            last_chunk.offset - first_chunk.offset + 1,
            messages,
            first_chunk.offset,
            last_chunk.offset,
            oldest[0].time,
            last.time,
            open_runs,
            last_chunk.type,
        )

    async def _open_runs(self, conversation_id: str) -> list[OpenRun]:
        """Those among the latest chunks."""
        subject = self._subjects.stream(conversation_id)
        last = await self._transport.last_message(STREAM, subject)
        if last is None:
            return []
        chunks = decode_chunks(last.data, last.sequence, 0)
        latest = chunks[-1].offset if chunks and chunks[-1].sequence else 0
        start, offset = await find(self._transport, self._subjects, conversation_id, latest - _RECENT)
        reading = Reading(conversation_id, offset)
        while True:
            batch = await self._transport.messages(STREAM, subject, start=start, limit=REPLAY)
            for stored in batch:
                start = stored.sequence + 1
                reading.take(stored.sequence, stored.data)
            if len(batch) < REPLAY:
                return [run for name, run in reading.open.items() if name]

    async def purge(self, conversation_id: str) -> int:
        """Delete all of it; returns how many messages that were."""
        await self._ensure()
        return await self._transport.purge(STREAM, self._subjects.stream(conversation_id))

    # ------------------------------------------------------------ events of tasks
    def writer(self, stream_id: str) -> StreamWriter:
        """A writer of a task's events; any number may write to a stream."""
        return StreamWriter(self._transport, self._subjects, stream_id)

    async def events(
        self,
        stream_id: str,
        start: int = 1,
        *,
        after: StreamEvent | None = None,
        until: Callable[[StreamEvent], bool] | None = None,
        follow: bool = True,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Events of a task's stream, in order: those that are stored, then live.

        Args:
            stream_id: Which stream. One that does not exist is an empty one.
            start: Sequence to start at; `event.sequence + 1` goes on behind an event's message.
            after: Instead of `start`: go on right behind this event, also when others share its message.
            until: The event that ends the reading; it is yielded, too. None reads until you stop.
            follow: False ends with what is stored now.
        """
        first = start if after is None else after.sequence
        reader = StreamReader(self._transport, self._subjects, stream_id, start=first)
        if not follow:
            reader.finish()
        async with aclosing(reader.events()) as events:
            async for event in events:
                if after is not None and event.sequence == after.sequence and not event.is_behind(after):
                    continue
                yield event
                if until is not None and until(event):
                    return


def _place(cursor: str) -> tuple[int, int] | None:
    """Offset and sequence in a cursor; None if it does not say where it is."""
    place = parse_cursor(cursor) if cursor else (0, 0)
    return place if place[1] else None


def _id_of(subject: str) -> str:
    return subject.rpartition(".")[2]


def _ends(first: StoredMessage, last: StoredMessage) -> tuple[Chunk | None, Chunk | None]:
    """The first and the last chunk in two messages, as far as those are numbered."""
    begin = decode_chunks(first.data, first.sequence, 0)
    end = decode_chunks(last.data, last.sequence, 0)
    return (
        begin[0] if begin and begin[0].sequence else None,
        end[-1] if end and end[-1].sequence else None,
    )
