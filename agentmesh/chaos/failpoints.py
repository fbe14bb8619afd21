"""Changes to a process of the workload, from outside: what is observed, and which protection is switched off.

The product has no branch for this. A run whose processes lack a protection must be found in violation of a promise:
that is how we know that the checker sees anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from agentmesh import ids
from agentmesh.chaos.history import Recorder
from agentmesh.errors import PublishTimeoutError, UsageError
from agentmesh.subjects import Subjects
from agentmesh.tasks import attempt, lineage, wire
from agentmesh.tasks.context import TaskContext
from agentmesh.tasks.wire import TaskBody
from agentmesh.transport import Delivery, PubAck, Transport
from agentmesh.transport.publisher import Publisher

_recorders: dict[str, Recorder] = {}
_done: set[str] = set()


def recorder(folder: Path, role: str) -> Recorder:
    """The one recorder of this process: an agent that is started again goes on in the same file."""
    if role not in _recorders:
        _recorders[role] = Recorder(folder, role)
    return _recorders[role]


# ---------------------------------------------------------------- what is observed


def observe(record: Recorder) -> None:
    """Record each task that arrives at this process, and each whose end the broker has confirmed."""
    if "observe" in _done:
        return
    _done.add("observe")
    live, ack = attempt.Attempt.live, Transport.ack

    async def recorded_live(self: attempt.Attempt) -> None:
        record.write("delivered", task=wire.peek_id(self.delivery.data), delivery=self.delivery.attempt)
        await live(self)

    async def recorded_ack(self: Transport, delivery: Delivery) -> bool:
        confirmed = await ack(self, delivery)
        if confirmed and delivery.subject.startswith("ai.agent.tasks."):
            record.write("settled", task=wire.peek_id(delivery.data), subject=delivery.subject)
        return confirmed

    attempt.Attempt.live = recorded_live  # type: ignore[method-assign]
    Transport.ack = recorded_ack  # type: ignore[method-assign]


# ---------------------------------------------------------------- the time of day

_shift = timedelta(0)


def jump_clock(seconds: float, record: Recorder) -> None:
    """Move the time of day as this process's agentmesh sees it (`ids.now`: deadlines, timestamps), there or back.

    The kernel's clock, `time.time` and the monotonic clock are not touched: nor can a process alone do that.
    """
    global _shift
    _shift = timedelta(0) if _shift else timedelta(seconds=seconds)
    record.write("jumped", seconds=_shift.total_seconds())
    if "clock" in _done:
        return
    _done.add("clock")
    real = ids.now

    def shifted() -> datetime:
        return real() + _shift

    for name, module in list(sys.modules.items()):
        if name.startswith("agentmesh") and getattr(module, "now", None) is real:
            setattr(module, "now", shifted)  # noqa: B010  (of any module)


# ---------------------------------------------------------------- protections


def switch_off(protections: Sequence[str]) -> None:
    """Run on without these."""
    for name in protections:
        patch = PROTECTIONS[name].patch
        if name not in _done and patch is not None:
            _done.add(name)
            patch()


def check(protections: Sequence[str]) -> None:
    """Raises UsageError for a name that is none of ours."""
    for name in protections:
        if name not in PROTECTIONS:
            raise UsageError(f"there is no protection {name!r}; there are {', '.join(PROTECTIONS)}")


def _without_cas() -> None:
    publish = Transport.publish_durable

    async def anyhow(self: Transport, subject: str, data: bytes, **options: Any) -> PubAck:
        if options.get("expect_last") is not None:
            options |= {"expect_last": None, "msg_id": ""}
        return await publish(self, subject, data, **options)

    Transport.publish_durable = anyhow  # type: ignore[method-assign]


def _without_heartbeat() -> None:
    async def silence(self: Transport, delivery: Delivery) -> None:
        return None

    Transport.in_progress = silence  # type: ignore[method-assign]


def _without_double_ack() -> None:
    async def hope(self: Transport, delivery: Delivery) -> bool:
        await self.connection.publish(delivery.reply, b"+ACK")
        return True

    Transport.ack = hope  # type: ignore[method-assign]


def _without_retry() -> None:
    async def once(
        self: Publisher, subject: str, data: bytes, headers: Any, left: float, timeout: float, first: BaseException
    ) -> PubAck:
        raise PublishTimeoutError(subject, timeout) from first

    Publisher._again = once  # type: ignore[method-assign]


def _without_late_ack() -> None:
    live = attempt.Attempt.live

    async def ack_first(self: attempt.Attempt) -> None:
        await self.bench.transport.ack(self.delivery)
        await live(self)

    attempt.Attempt.live = ack_first  # type: ignore[method-assign]


def _without_look() -> None:
    async def undecided(transport: Transport, subjects: Subjects, body: TaskBody, *, latest: bool = False) -> None:
        return None

    blind = SimpleNamespace(ending=undecided, ENDED=lineage.ENDED, prompt=lineage.prompt)
    setattr(attempt, "lineage", blind)  # noqa: B010  (a module)


def _without_key() -> None:
    def fresh(self: TaskContext, step: str) -> str:
        return f"{self.task_id}/{step}/{uuid4()}"

    TaskContext.key = fresh  # type: ignore[method-assign]


class Protection:
    """What can be switched off.

    Args:
        means: What it is, for people.
        faults: Under which its absence shows.
        patch: Switches it off in this process; None: it is a property of the broker.
        rate: Things a submitter must do in a second for it to show soon.
    """

    def __init__(
        self, means: str, faults: tuple[str, ...], patch: Callable[[], None] | None, rate: float = 10.0
    ) -> None:
        self.means = means
        self.faults = faults
        self.patch = patch
        self.rate = rate


PROTECTIONS = {
    "cas": Protection("first writer of a result wins", ("worker-freeze", "worker-kill"), _without_cas),
    "heartbeat": Protection("signs of life while a task runs", ("worker-kill",), _without_heartbeat),
    "double-ack": Protection("the broker confirms the end of a task", ("link-acks",), _without_double_ack),
    "late-ack": Protection("a task is taken off its queue after it is done", ("worker-kill",), _without_late_ack),
    "look": Protection("a worker looks whether the task is decided", ("worker-kill",), _without_look, 40.0),
    "retry": Protection("what was not confirmed is sent again", ("link-drop", "link-hole"), _without_retry),
    "key": Protection("the same key in every attempt", ("worker-kill",), _without_key),
    "sync": Protection("accepted means on disk", (), None),
}
"""By the name that `--without` takes."""
