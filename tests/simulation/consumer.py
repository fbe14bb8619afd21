"""The model of a durable pull consumer: open pulls, redelivery after `ack_wait`, delays, counts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.simulation.loop import SimLoop
from tests.simulation.stream import Stored, Stream, matches

if TYPE_CHECKING:
    from tests.simulation.link import Link


@dataclass(eq=False, slots=True)
class Pull:
    """One open request for messages."""

    link: Link
    generation: int
    reply: str
    left: int
    no_wait: bool
    until: float
    timer: asyncio.TimerHandle | None = None
    beat: asyncio.TimerHandle | None = None


class Consumer:
    """See the module.

    Args:
        stream: Its stream.
        config: What the client sent.
        loop: The clock.
        send: `send(pull, subject, data, reply, headers, status)` to whoever pulls.
        tell: `tell(kind, **details)` for the history.
    """

    def __init__(
        self,
        stream: Stream,
        config: Mapping[str, Any],
        loop: SimLoop,
        send: Callable[..., None],
        tell: Callable[..., None],
    ) -> None:
        self.stream = stream
        self.config = config
        self.name = str(config["durable_name"])
        single = config.get("filter_subject")
        self.filters: tuple[str, ...] = (single,) if single else tuple(config.get("filter_subjects") or ())
        self.ack_wait = config["ack_wait"] / 1e9
        self.limit = int(config.get("max_ack_pending", -1))
        self.next = 1
        """Messages below this sequence were delivered at least once."""
        self.pending: dict[int, float] = {}
        """When each unsettled message is delivered again."""
        self.counts: dict[int, int] = {}
        self.delivered_at: dict[int, float] = {}
        self.again: deque[int] = deque()
        self.pulls: deque[Pull] = deque()
        self._loop = loop
        self._send = send
        self._tell = tell
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def wants(self, subject: str) -> bool:
        return not self.filters or any(matches(pattern, subject) for pattern in self.filters)

    def info(self) -> dict[str, Any]:
        return {
            "config": dict(self.config),
            "num_pending": len(self._fresh()),
            "num_ack_pending": len(self.pending),
            "num_redelivered": sum(count > 1 for count in self.counts.values()),
            "num_waiting": len(self.pulls),
            "delivered": {"stream_seq": self.next - 1, "consumer_seq": self._count},
            "ack_floor": {"stream_seq": min(self.pending, default=self.next) - 1, "consumer_seq": 0},
        }

    # -- pulling

    def pull(self, link: Link, reply: str, request: Mapping[str, Any]) -> None:
        loop, expires = self._loop, request.get("expires", 0) / 1e9
        no_wait = bool(request.get("no_wait"))
        entry = Pull(link, link.generation, reply, int(request.get("batch", 1)), no_wait, loop.time() + expires)
        self.pulls.append(entry)
        self.serve()
        if entry not in self.pulls:
            return
        if no_wait and not expires:
            self._end(entry, "404", "No Messages")
            return
        entry.timer = loop.call_later(expires, self._end, entry, "408", "Request Timeout")
        beat = request.get("idle_heartbeat", 0) / 1e9
        if beat:
            entry.beat = loop.call_later(beat, self._beat, entry, beat)

    def serve(self) -> None:
        """Give waiting pulls what there is."""
        while self.pulls:
            if self.limit > 0 and len(self.pending) >= self.limit:
                return
            message = self._take()
            if message is None:
                break
            self._deliver(message)
        for entry in [one for one in self.pulls if one.no_wait and one.timer is not None]:
            self._end(entry, "404", "No Messages")

    def _take(self) -> Stored | None:
        while self.pulls and not self.pulls[0].link.hears(self.pulls[0].generation):
            self._drop(self.pulls[0])  # its connection is gone
        if not self.pulls:
            return None
        while self.again:
            message = self.stream.messages.get(self.again.popleft())
            if message is not None:
                return message
        fresh = self._fresh()
        if not fresh:
            return None
        self.next = fresh[0].sequence + 1
        return fresh[0]

    def _fresh(self) -> list[Stored]:
        return [m for m in self.stream.matching(self.filters) if m.sequence >= self.next]

    def _deliver(self, message: Stored) -> None:
        entry, sequence = self.pulls[0], message.sequence
        now = self._loop.time()
        count = self.counts[sequence] = self.counts.get(sequence, 0) + 1
        self._count += 1
        self.pending[sequence] = now + self.ack_wait
        self.delivered_at[sequence] = now
        left = len(self._fresh()) if not self.again else len(self.again)
        reply = f"$JS.ACK.{self.stream.name}.{self.name}.{count}.{sequence}.{self._count}.{int(now * 1e9)}.{left}"
        entry.left -= 1
        self._tell("deliver", stream=self.stream.name, seq=sequence, attempt=count, to=entry.link.process.name)
        self._send(entry, message.subject, message.data, reply, message.headers, False)
        if entry.left <= 0:
            self._drop(entry)
        else:
            self.pulls.rotate(-1)
        self._arm()

    def _beat(self, entry: Pull, period: float) -> None:
        self._send(entry, entry.reply, b"", "", {"Status": "100", "Description": "Idle Heartbeat"}, True)
        entry.beat = self._loop.call_later(period, self._beat, entry, period)

    def _end(self, entry: Pull, code: str, description: str) -> None:
        if entry in self.pulls:
            self._drop(entry)
            self._send(entry, entry.reply, b"", "", {"Status": code, "Description": description}, True)

    def _drop(self, entry: Pull) -> None:
        self.pulls.remove(entry)
        for timer in (entry.timer, entry.beat):
            if timer is not None:
                timer.cancel()

    def close(self, code: str = "", description: str = "") -> None:
        """End all pulls; with a status if their clients are told."""
        for entry in list(self.pulls):
            if code:
                self._end(entry, code, description)
            else:
                self._drop(entry)
        if self._timer is not None and not code:
            self._timer.cancel()
            self._timer = None

    # -- settling

    def settle(self, sequence: int, verdict: bytes, delay: float) -> None:
        """An answer to a delivery, whichever: answers to older ones count as well."""
        if sequence not in self.pending:
            return
        now = self._loop.time()
        if verdict in (b"+ACK", b"+TERM"):
            self.forget(sequence)
            if self.stream.is_work_queue:
                self.stream.remove(sequence)
        elif verdict == b"+WPI":
            self.pending[sequence] = now + self.ack_wait
        elif verdict == b"-NAK" and delay:
            self.pending[sequence] = now + delay
        elif verdict == b"-NAK" and sequence not in self.again:
            self.pending[sequence] = now + self.ack_wait
            self.again.append(sequence)
        self._arm()
        self.serve()

    def forget(self, sequence: int) -> None:
        self.pending.pop(sequence, None)
        self.counts.pop(sequence, None)
        self.delivered_at.pop(sequence, None)
        if sequence in self.again:
            self.again.remove(sequence)

    def deliver_again(self, sequence: int) -> None:
        """A fault: the broker believes a delivery to be lost."""
        if sequence in self.pending and sequence not in self.again:
            self.again.append(sequence)
            self.serve()

    def restart(self, forgotten: dict[int, int]) -> None:
        """What a killed server knows when it is back.

        Args:
            forgotten: By how much it counts too few deliveries, per sequence; one that has none left is new again.
        """
        self.close()
        self.again.clear()
        for sequence, less in forgotten.items():
            self.counts[sequence] -= less
            if self.counts[sequence] <= 0:
                self.forget(sequence)
                self.next = min(self.next, sequence)
        self._arm()

    def _arm(self) -> None:
        due = min((at for sequence, at in self.pending.items() if sequence not in self.again), default=None)
        if self._timer is not None:
            if due is not None and self._timer.when() == due:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        now, self._timer = self._loop.time(), None
        for sequence, at in list(self.pending.items()):
            if at <= now and sequence not in self.again:
                self.again.append(sequence)
        self._arm()
        self.serve()
