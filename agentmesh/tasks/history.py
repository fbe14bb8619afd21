"""What happened to a task so far, kept in its stream `ai.stream.T.<task_id>` beside progress and chunks.

The broker counts deliveries. An attempt is a delivery that was not given back: a worker that stops, or got a task it
has no room for, records that first. Failed attempts are recorded with their error; an attempt without a record is one
whose worker died or lost contact. Only a task delivered more than once has its history read.

A task that a limit makes wait is delivered again and again. That it waits is recorded once; from then on its attempts
are what is recorded as begun, and its deliveries count no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from agentmesh.ids import new_id, now
from agentmesh.streams import STREAM, StreamEvent, decode_events, encode_event
from agentmesh.subjects import Subjects
from agentmesh.tasks.wire import Failure, encode
from agentmesh.transport import Transport

FAILED, RETURNED, WAITS, BEGAN = "attempt", "returned", "waits", "began"
"""Types of the events of a history."""

_LOST = Failure(attempt=0, error_type="WorkerLost", message="the worker died or lost contact")
_REPLAY = 500

_decode = msgspec.json.Decoder(Failure).decode


@dataclass
class History:
    """Failed attempts, oldest first, how often the task was given back untried, and whether a limit made it wait."""

    failures: list[Failure] = field(default_factory=list)
    returned: int = 0
    waits: bool = False
    """A limit has made it wait: its attempts are counted as they begin."""
    _before: int = 0
    """Attempts before that."""
    _began: list[int] = field(default_factory=list)
    """Those since, by the number of their delivery."""

    def attempt(self, deliveries: int) -> int:
        """The number of the attempt that begins with the latest of `deliveries`.

        A broker that was killed may have forgotten deliveries; it never makes us forget a failure.
        """
        counted = self._before + len(self._began) + 1 if self.waits else deliveries - self.returned
        return max(counted, len(self.failures) + 1)

    def note(self, kind: str, delivery: int) -> None:
        """What was recorded about a delivery, in the order it was."""
        if kind == WAITS and not self.waits:
            self.waits, self._before = True, max(0, delivery - 1 - self.returned)
        elif kind == BEGAN:
            self._began.append(delivery)
        elif kind == RETURNED and not self.waits:
            self.returned += 1
        elif kind == RETURNED and delivery in self._began:  # others had not begun, and count for nothing
            self._began.remove(delivery)

    def rank(self, deliveries: int) -> int:
        """Higher in every later attempt, as far as is known: also of those that were given back."""
        return max(deliveries, len(self.failures) + self.returned + 1)

    def complete(self, attempts: int) -> list[Failure]:
        """One entry per attempt: those without a record lost their worker."""
        known = {failure.attempt: failure for failure in self.failures}
        lost = (msgspec.structs.replace(_LOST, attempt=number) for number in range(1, attempts + 1))
        return [known.get(entry.attempt, entry) for entry in lost]


async def read(transport: Transport, subjects: Subjects, task_id: str) -> History:
    """The task's history; reads all of its stream."""
    history, start = History(), 1
    while True:
        batch = await transport.messages(STREAM, subjects.stream(task_id), start=start, limit=_REPLAY)
        for stored in batch:
            start = stored.sequence + 1
            for event in decode_events(stored.data, stored.sequence):
                _note(history, event)
        if len(batch) < _REPLAY:
            return history


def _note(history: History, event: StreamEvent) -> None:
    if event.type not in (FAILED, RETURNED, WAITS, BEGAN):
        return
    try:
        entry = _decode(event.content)
    except msgspec.MsgspecError:
        return  # written by somebody else
    if event.type == FAILED:
        history.failures.append(entry)
    else:
        history.note(event.type, entry.attempt)


async def record(transport: Transport, subjects: Subjects, task_id: str, kind: str, entry: Failure) -> None:
    """Store one entry; when this returns, it cannot be lost any more."""
    entry.timestamp = now()
    event = StreamEvent(f"{new_id()}-0", task_id, kind, msgspec.Raw(encode(entry)), entry.timestamp, entry.attempt)
    await transport.publish_durable(subjects.stream(task_id), encode_event(event))
