"""Reading conversations: from which message on, and what the chunks in it mean together."""

from __future__ import annotations

from agentmesh.errors import StreamGapError
from agentmesh.streams.chunk import RESTARTED, TERMINAL, Chunk, decode_chunks
from agentmesh.streams.events import MAX_DIGITS
from agentmesh.streams.follow import STREAM
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport

_NEAR = 2_000
"""Chunks that are rather read and passed over than looked for."""

Place = tuple[int, int]
"""Sequence to read from, and the offset of the first chunk there if its writer did not say."""


async def find(transport: Transport, subjects: Subjects, conversation_id: str, offset: int) -> Place:
    """Where to read from for the chunk with that offset, with a few gets of single messages.

    Not before the oldest chunk that is left, and not beyond the end.
    """
    subject = subjects.stream(conversation_id)
    last = await transport.last_message(STREAM, subject)
    oldest = await transport.messages(STREAM, subject, limit=1)
    if last is None or not oldest:
        return 1, 0
    low, high = _first_of(oldest[0].data, oldest[0].sequence), _last_of(last.data, last.sequence)
    if low is None or high is None:  # not numbered: counted from the start
        return 1, 0
    if offset > high[0]:
        return last.sequence + 1, high[0] + 1
    end = last.sequence + 1  # what is wanted is before it
    halve = False  # guessing by proportion is quick, halving is sure
    while offset - low[0] > _NEAR and low[1] + 1 < end:
        share = 0.5 if halve else (offset - low[0]) / max(1, high[0] - low[0])
        guess = min(max(low[1] + 1, low[1] + int((end - low[1]) * share)), end - 1)
        halve = not halve
        probe = await transport.messages(STREAM, subject, start=guess, limit=1)
        found = _first_of(probe[0].data, probe[0].sequence) if probe else None
        if found is None:  # one that is not numbered, or that went meanwhile
            break
        if found[0] <= offset:
            low = found
        else:
            end, high = guess, found
    return low[1], low[0]


def _first_of(data: bytes, sequence: int) -> tuple[int, int] | None:
    chunks = decode_chunks(data, sequence, 0)
    return (chunks[0].offset, sequence) if chunks and chunks[0].sequence else None


def _last_of(data: bytes, sequence: int) -> tuple[int, int] | None:
    chunks = decode_chunks(data, sequence, 0)
    return (chunks[-1].offset, sequence) if chunks and chunks[-1].sequence else None


class OpenRun:
    """A run without a terminal chunk so far."""

    __slots__ = ("epoch", "index", "owner", "role", "run_id")

    def __init__(self, chunk: Chunk) -> None:
        self.run_id = chunk.run_id
        self.note(chunk)

    def note(self, chunk: Chunk) -> None:
        self.epoch, self.index, self.owner, self.role = chunk.epoch, chunk.index, chunk.owner, chunk.role


class Reading:
    """Chunks from messages, in order: numbers them, notices what is missing, knows which runs are open.

    Args:
        subject: For errors.
        offset: Of the first chunk, if its writer did not say.
    """

    def __init__(self, subject: str, offset: int) -> None:
        self.open: dict[str, OpenRun] = {}
        self.ended: set[str] = set()
        """Runs whose terminal chunk was read."""
        self.is_task = False
        """There were events of a task; they say no run."""
        self._subject = subject
        self.next = offset
        """Offset that the next chunk must have."""
        self.begun = False
        """Something was read."""
        self._writer = ""
        self._replaced: set[str] = set()

    def take(self, sequence: int, data: bytes) -> list[Chunk]:
        """The chunks in a message.

        Raises:
            StreamGapError: What comes next was dropped or deleted before it was read.
        """
        chunks = decode_chunks(data, sequence, self.next)
        if not chunks:
            return chunks
        if not chunks[0].sequence:
            chunks = self._of_task(chunks)
            return chunks
        first = chunks[0].offset
        if self.begun and first > self.next:
            raise StreamGapError(self._subject, self.next, first)
        self.begun = True
        self.next = chunks[-1].offset + 1  # lower than before, if it was purged and begun anew
        run_id = ""
        for chunk in chunks:
            if chunk.run_id != run_id or chunk.type in TERMINAL or chunk.type == RESTARTED:
                run_id = chunk.run_id
                self.note(chunk)
        if run_id in self.open:
            self.open[run_id].note(chunks[-1])
        return chunks

    def note(self, chunk: Chunk) -> None:
        """Take in what a chunk says about its run."""
        if chunk.type in TERMINAL:
            self.open.pop(chunk.run_id, None)
            self.ended.add(chunk.run_id)
        elif chunk.run_id in self.open:
            self.open[chunk.run_id].note(chunk)
        else:
            self.open[chunk.run_id] = OpenRun(chunk)
            self.ended.discard(chunk.run_id)

    @property
    def at_rest(self) -> bool:
        """Whether runs have ended and none is open. What other programs write says no run, and has no end if a run of
        ours ended behind it."""
        return bool(self.ended) and not any(self.open)

    def _of_task(self, chunks: list[Chunk]) -> list[Chunk]:
        """Events of a task: what an attempt says that was replaced is left out."""
        told: list[Chunk] = []
        for chunk in chunks:
            writer, _, number = chunk.id.rpartition("-")
            if writer and number.isdecimal() and len(number) < MAX_DIGITS:
                self.is_task = True
                if writer in self._replaced:
                    continue
                if self._writer and writer != self._writer:
                    self._replaced.add(self._writer)
                    told.append(
                        Chunk(
                            conversation_id=chunk.conversation_id,
                            type=RESTARTED,
                            timestamp=chunk.timestamp,
                            run_id=chunk.conversation_id,
                            epoch=chunk.epoch,
                        )
                    )
                self._writer = writer
                chunk.run_id, chunk.index = chunk.conversation_id, int(number)
            told.append(chunk)
        for chunk in told:
            if not self.is_task:
                self.note(chunk)
            chunk.offset = self.next
            self.next += 1
        self.begun = True
        return told
