"""The mover: what the broker says is due goes into the queue of its agent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec

from agentmesh.errors import (
    AgentMeshError,
    BrokerError,
    ConsumerGoneError,
    InvalidMessageError,
    InvalidNameError,
    StreamFullError,
)
from agentmesh.ids import now
from agentmesh.subjects import Subjects, token
from agentmesh.tasks import dead, wire
from agentmesh.tasks.layout import ACK_WAIT, SCHED, SCHEDULES, due_consumer, ensure, ensure_streams
from agentmesh.tasks.serving import RETRY_DELAY, Serving
from agentmesh.tasks.wire import ScheduleBody, TaskBody, decode_schedule, encode
from agentmesh.transport import Delivery, Transport

log = logging.getLogger("agentmesh.tasks")

_DEFINITION = frozenset(ScheduleBody.__struct_fields__) - frozenset(TaskBody.__struct_fields__)
"""Fields that say when, and are of no use to a worker."""


class Mover:
    """Moves what is due into the queues of a tenant.

    Any number may run at the same time: a firing is moved by one of them, and its task stored once, because its id
    follows from the firing. If a mover dies in between, the next one moves it again. While a queue is full, what is due
    waits here. Of several firings of one schedule that wait, only the newest is run.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        ack_wait: Seconds after which the broker gives a due task to another mover.
    """

    def __init__(self, transport: Transport, subjects: Subjects, *, ack_wait: float = ACK_WAIT) -> None:
        self._transport = transport
        self._subjects = subjects
        self._ack_wait = ack_wait
        self._serving: Serving | None = None
        self._newest = datetime.fromtimestamp(0, UTC)
        """The latest time on the broker's clock that we know to have passed."""

    async def start(self) -> None:
        """Begin to move."""
        await ensure_streams(self._transport)
        await ensure(self._transport, SCHEDULES)
        spec = due_consumer(self._subjects, self._ack_wait)
        await self._transport.ensure_consumer(spec)
        self._serving = Serving(self._transport, spec, self._move_all, "mover", on_trouble=self._make_again)
        await self._serving.start()

    async def stop(self) -> None:
        """Stop; what is on its way is moved by the next mover."""
        if self._serving is not None:
            await self._serving.stop()

    async def _move_all(self, due: list[Delivery]) -> None:
        await self._look_ahead(due)
        await asyncio.gather(*(self._move(delivery) for delivery in due))

    async def _make_again(self, error: BrokerError) -> None:
        """The stream was deleted: what was scheduled is gone, but not what will be."""
        if not isinstance(error, ConsumerGoneError):
            return
        try:
            await self._transport.ensure_stream(SCHEDULES)
            await self._transport.ensure_consumer(due_consumer(self._subjects, self._ack_wait))
        except BrokerError as problem:
            log.warning("the stream of schedules cannot be made again: %s", problem)

    async def _look_ahead(self, due: Iterable[Delivery]) -> None:
        """Learn how far the broker's clock is, by what it stored last: our own clock may differ."""
        last = max(due, key=lambda delivery: delivery.sequence)
        self._newest = max(self._newest, last.stored_at)
        if last.pending:
            stored = await self._transport.last_message(SCHED, self._subjects.due())
            if stored is not None:
                self._newest = max(self._newest, stored.time)

    async def _move(self, delivery: Delivery) -> None:
        """The way of one firing into a queue."""
        try:
            body = decode_schedule(delivery.data)
            if self._is_overtaken(delivery):
                log.info("schedule %s: a firing was left out, the next one is due", body.schedule_id)
                await self._transport.ack(delivery)
                return
            await self._store(delivery, body)
            await self._transport.ack(delivery)
        except (InvalidMessageError, InvalidNameError) as error:
            log.error("a due task is a dead letter: %s", error)
            await dead.bury(self._transport, self._subjects, delivery, str(error), task_id=wire.peek_id(delivery.data))
        except StreamFullError:
            await self._transport.nak(delivery, RETRY_DELAY)  # the agent's queue is full: the firing waits
        except AgentMeshError as error:
            log.warning("a due task waits for now: %s", error)
        except Exception as error:  # the edge: what nobody foresaw must not stop what else is due
            log.exception("a due task is a dead letter")
            reason = f"cannot be moved: {type(error).__name__}: {error}"
            await dead.bury(self._transport, self._subjects, delivery, reason, task_id=wire.peek_id(delivery.data))

    async def _store(self, delivery: Delivery, body: ScheduleBody) -> None:
        """Store the task. All fields of the definition but those that say when are kept, also unknown ones."""
        task_id = token("task id", body.task_id or firing_id(body.schedule_id, delivery.stored_at))
        document = msgspec.json.decode(delivery.data, type=dict[str, msgspec.Raw])
        document = {name: value for name, value in document.items() if name not in _DEFINITION}
        document["task_id"] = msgspec.Raw(encode(task_id))
        document["timestamp"] = msgspec.Raw(encode(now()))
        if body.deadline_after is not None:
            expires = delivery.stored_at + timedelta(seconds=body.deadline_after)
            document["deadline"] = msgspec.Raw(encode(expires))
        door = self._subjects.task_door()
        await self._transport.publish_durable(
            self._subjects.tasks(body.agent_id, body.lane()) if body.agent_id else door,
            encode(document),
            msg_id=f"{self._subjects.tenant}.{task_id}",
        )

    def _is_overtaken(self, delivery: Delivery) -> bool:
        """Whether a later firing of the same schedule has happened: it brings the next one along."""
        upcoming = (delivery.headers or {}).get("Nats-Schedule-Next", "purge")
        try:
            return upcoming != "purge" and datetime.fromisoformat(upcoming) <= self._newest
        except (ValueError, TypeError):  # nothing of the broker's
            return False


def firing_id(schedule_id: str, at: datetime) -> str:
    """The id of the task of one firing, such as `nightly-20261121T030000004`."""
    return f"{schedule_id}-{at.astimezone(UTC):%Y%m%dT%H%M%S}{at.microsecond // 1000:03}"
