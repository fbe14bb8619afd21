"""Subscriptions to what a stream keeps: acknowledged after the work, tried again, and buried when it is hopeless."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import deque

import msgspec

from agentmesh import codec
from agentmesh.errors import (
    AgentMeshError,
    BrokerError,
    ConfigError,
    DefinitionError,
    InvalidMessageError,
    JetStreamError,
    PayloadTooLargeError,
    Reject,
    Retry,
)
from agentmesh.facade.compression import unpacked
from agentmesh.facade.message import Incoming, Send
from agentmesh.facade.subscriptions import Callback, FacadeSubscription, call
from agentmesh.ids import new_id, now
from agentmesh.subjects import Subjects, token
from agentmesh.tasks import dead, slot
from agentmesh.tasks.layout import TASKS
from agentmesh.tasks.wire import Failure, ResultBody, TaskBody, decode_task
from agentmesh.transport import ConsumerSpec, Delivery, PullConsumer, Transport

log = logging.getLogger("agentmesh.facade")

ACK_WAIT = 10.0
"""Seconds without a sign of life until somebody else gets the message."""

LONGEST_PAUSE = 60.0
"""Seconds between attempts at most; they begin at one and double."""

_TAKEN = (10099, 10100)
"""JetStream: another consumer of the work queue takes these messages."""


class Working(FacadeSubscription):
    """A worker of a queue group on a subject that a stream keeps.

    Returns settle a message, errors bring it again, after `max_attempts` it is a dead letter. A task of agentmesh gets
    its result from what the callback returns, so that whoever submitted it has one.

    Args:
        stream: That keeps the subject.
        subject: May have wildcards.
        queue: Workers that say the same share the messages, also those who come later.
        callback: What to call.
        concurrency: See the base class.
        max_attempts: Deliveries until a message is buried.
        transport: The connection.
        subjects: Names dead letters and results.
        send: Sends answers.
        max_unpacked: Bytes a compressed body may have.
    """

    def __init__(
        self,
        stream: str,
        subject: str,
        queue: str,
        callback: Callback,
        concurrency: int,
        max_attempts: int,
        *,
        transport: Transport,
        subjects: Subjects,
        send: Send,
        max_unpacked: int,
    ) -> None:
        super().__init__(subject, queue, concurrency)
        self.stream = stream
        self._callback = callback
        self._max_attempts = max_attempts
        self._transport = transport
        self._subjects = subjects
        self._send = send
        self._max_unpacked = max_unpacked
        self._wake = asyncio.Event()
        self._held: deque[Delivery] = deque()
        self._hands: dict[asyncio.Task[None], Delivery] = {}
        self._pull: PullConsumer | None = None
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        spec = consumer(self._subjects, self.stream, self.subject, self.queue)
        try:
            await self._transport.ensure_consumer(spec)
        except JetStreamError as error:
            if error.code not in _TAKEN:
                raise
            raise DefinitionError(
                self.subject,
                "what is kept there is taken by others, such as the dispatcher of agentmesh up; give tasks an agent_id "
                "and subscribe to the queue of that agent, `…tasks.TENANT.AGENT.*`, or declare an Agent with a handler",
            ) from error
        except ConfigError as error:
            raise DefinitionError(self.subject, f"the group {self.queue!r} takes something else: {error}") from error
        self._pull = self._transport.pull(self.stream, spec.name, ready=self._wake)
        await self._pull.start()
        loop = asyncio.get_running_loop()
        self._loops = [
            loop.create_task(self._serve(self._pull), name=f"worker of {self.subject}"),
            loop.create_task(self._pulse(), name=f"signs of life of {self.subject}"),
        ]

    async def _end(self) -> None:
        serving, *rest = self._loops or (None,)
        self._loops = [task for task in rest if task is not None]
        if serving is not None:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        if self._pull is not None:
            await self._pull.stop()
        while self._held:
            await self._transport.nak(self._held.popleft())

    async def unsubscribe(self, *, grace: float | None = None) -> None:
        try:
            await super().unsubscribe(grace=grace)  # signs of life go on until the callbacks are done
        finally:
            for task in self._loops:
                task.cancel()
            await asyncio.gather(*self._loops, return_exceptions=True)

    # ------------------------------------------------------------ taking

    async def _serve(self, pull: PullConsumer) -> None:
        while True:
            self._wake.clear()
            free = self.concurrency - len(self._running)
            try:
                if free > len(self._held):
                    self._held.extend(pull.received() or await pull.take(free))
                    if not self._held:
                        pull.arm(free)
            except BrokerError as error:
                log.warning("the worker of %r can take nothing; trying again: %s", self.subject, error)
                await asyncio.sleep(1.0)
                continue
            self._pump()
            if not self._held and len(self._running) < self.concurrency:
                pull.arm(self.concurrency - len(self._running))
            await self._wake.wait()

    def _pump(self) -> None:
        while self._held and len(self._running) < self.concurrency:
            delivery = self._held.popleft()
            task = asyncio.get_running_loop().create_task(self._handle(delivery))
            self._running.add(task)
            self._hands[task] = delivery
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._hands.pop(task, None)
        self._wake.set()

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(ACK_WAIT / 3)
            for delivery in [*self._hands.values(), *self._held]:
                await self._transport.in_progress(delivery)

    # ------------------------------------------------------------ one message

    async def _handle(self, delivery: Delivery) -> None:
        try:
            await self._life(delivery)
        except asyncio.CancelledError:
            await self._transport.nak(delivery)  # another worker takes it
            raise
        except AgentMeshError as error:
            log.warning("a message of %r stays where it is for now: %s", self.subject, error)

    async def _life(self, delivery: Delivery) -> None:
        """The way of one message of a stream."""
        task = _task_in(delivery) if self.stream == TASKS else None
        if task is not None and await slot.read(self._transport, self._subjects, task.task_id, latest=True) is not None:
            await self._transport.ack(delivery)  # done, or cancelled
            return
        if task is not None and task.is_late():
            await self._decide(task, delivery, "expired")
            return
        try:
            headers = dict(delivery.headers or {})
            data = unpacked(delivery.data, headers, self._max_unpacked)
            incoming = Incoming(delivery.subject, data, headers, "", self._send, delivery.attempt)
            value = await call(self._callback, incoming)
            result = msgspec.Raw(codec.encode_body(value, object)) if task is not None else codec.NULL
        except (Reject, InvalidMessageError, PayloadTooLargeError) as error:
            await self._bury(delivery, task, error)
        except (Exception, SystemExit) as error:  # the edge to foreign code: a callback may raise anything
            await self._again(delivery, task, error)
        else:
            await self._decide(task, delivery, "completed", result)

    async def _decide(
        self, task: TaskBody | None, delivery: Delivery, status: str, result: msgspec.Raw = codec.NULL
    ) -> None:
        if task is not None:
            verdict = ResultBody(
                task.task_id,
                status,
                by=new_id(),
                agent_id=task.agent_id or "",
                task_type=task.task_type,
                result=result,
                attempt=delivery.attempt,
                worker=self.queue,
            )
            await slot.decide(self._transport, self._subjects, verdict)
        await self._transport.ack(delivery)

    async def _again(self, delivery: Delivery, task: TaskBody | None, error: BaseException) -> None:
        if delivery.attempt >= self._max_attempts:
            await self._bury(delivery, task, error)
            return
        delay = error.delay if isinstance(error, Retry) else None
        pause = min(LONGEST_PAUSE, 2.0 ** (delivery.attempt - 1)) if delay is None else delay
        log.warning(
            "a callback of %r failed, attempt %d of %d; again in %g s",
            *(self.subject, delivery.attempt, self._max_attempts, pause),
            exc_info=error,
        )
        await self._transport.nak(delivery, pause)

    async def _bury(self, delivery: Delivery, task: TaskBody | None, error: BaseException) -> None:
        reason = str(error) if isinstance(error, Reject) else f"{type(error).__name__}: {error}"
        log.error("a message of %r is a dead letter after %d attempts: %s", self.subject, delivery.attempt, reason)
        if task is None:
            letter_id = f"message-{zlib.crc32(self.stream.encode()):08x}-{delivery.sequence}"
            await dead.bury_message(self._transport, self._subjects, delivery, reason, letter_id=letter_id)
            return
        failure = Failure(delivery.attempt, self.queue, type(error).__name__, str(error)[:2000], now())
        await dead.bury(
            *(self._transport, self._subjects, delivery, reason),
            task_id=task.task_id,
            agent=task.agent_id or "",
            task_type=task.task_type,
            history=[failure],
        )


def consumer(subjects: Subjects, stream: str, subject: str, queue: str) -> ConsumerSpec:
    """The consumer that workers of a group share: named by the group and the subject."""
    group = "".join(char if char.isalnum() or char in "-_" else "-" for char in queue)
    name = f"{subjects.tenant}~{group}~{zlib.crc32(f'{queue} {subject}'.encode()):08x}"
    return ConsumerSpec(stream, name, (subject,), ack_wait=ACK_WAIT, max_ack_pending=0, description=f"group {queue}")


def _task_in(delivery: Delivery) -> TaskBody | None:
    """The task in a message of the queues, with an id as the dispatcher would give it; None if it is not one."""
    try:
        task = decode_task(delivery.data)
        task.task_id = token("task id", task.task_id or f"door-{delivery.sequence}")
    except AgentMeshError:
        return None
    return task
