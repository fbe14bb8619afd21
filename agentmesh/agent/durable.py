"""The durable mailbox of an agent: events told with `durable=True`, at least once and in order.

One stored message at a time is out (`max_ack_pending` 1), so the order holds for the agent as a whole, over restarts
and over replicas. A handled event is acknowledged twice over; a failing one is tried again with growing delays and
becomes a dead letter when it was delivered `max_attempts` times, so that it cannot block those behind it for ever.
"""

from __future__ import annotations

import asyncio
import logging

from agentmesh import codec
from agentmesh.agent.cell import AgentCell
from agentmesh.errors import AgentMeshError, AgentStoppedError, BrokerError, NoHandlerError, Reject, Retry
from agentmesh.messages import TaskPolicy
from agentmesh.orders import Orders
from agentmesh.tasks import bury_message
from agentmesh.tasks.layout import ACK_WAIT, MAILBOX, mailbox_consumer
from agentmesh.trace import adopt
from agentmesh.transport import Delivery, PullConsumer

log = logging.getLogger("agentmesh.agent")

POLICY = TaskPolicy(max_attempts=5)

DEATHS = 3
"""How often a redelivered event may be begun and not settled, because the process ended, before it is given up."""

LAST_WORDS = 1.0
"""Seconds beyond its grace in which a stop waits for the event at hand to be given back."""

PAUSE_AFTER_ERROR = 0.5
"""Seconds to wait when the broker refuses what is needed."""


class DurableMailbox:
    """Hands stored events of one agent to its cell, one at a time."""

    def __init__(self, cell: AgentCell) -> None:
        self._cell = cell
        self._transport = cell.client.transport
        self._subjects = cell.client.subjects
        self._orders = Orders(cell.client.transport, cell.client.subjects)
        self._loop: asyncio.Task[None] | None = None
        self._pull: PullConsumer | None = None
        self._stopping = False
        self._period = ACK_WAIT / 3
        """Seconds between signs of life for the event at hand."""
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()

    def pause(self) -> None:
        """Deliver nothing more until `resume`; the event at hand is finished."""
        self._may_go_on.clear()
        if self._pull is not None:
            self._pull.disarm()

    def resume(self) -> None:
        """Deliver again."""
        self._may_go_on.set()
        if self._pull is not None:
            self._pull.ready.set()

    async def start(self) -> None:
        """Begin to deliver."""
        await self._cell.client.tasks.ensure()
        spec = mailbox_consumer(self._subjects, self._cell.name)
        await self._transport.ensure_consumer(spec)
        info = await self._transport.consumer_info(MAILBOX, spec.name)
        if info is not None:  # one that was there already is used as it is
            self._period = min(ACK_WAIT, info.config["ack_wait"] / 1e9) / 3
        self._pull = self._transport.pull(MAILBOX, spec.name)
        await self._pull.start()
        self._loop = asyncio.get_running_loop().create_task(self._run(self._pull), name=f"durable {self._cell.name}")

    async def stop(self, grace: float) -> None:
        """Deliver no more. The event at hand is settled, or given back by the stop of the cell within `grace`."""
        self._stopping = True
        self._may_go_on.set()
        if self._pull is not None:
            self._pull.ready.set()
        if self._loop is not None:
            await asyncio.wait([self._loop], timeout=grace + LAST_WORDS)
            self._loop.cancel()
        if self._pull is not None:
            await self._pull.stop()

    async def _run(self, pull: PullConsumer) -> None:
        while not self._stopping:
            try:
                await self._may_go_on.wait()
                pull.arm()
                await pull.ready.wait()
                pull.ready.clear()
                for delivery in pull.received():
                    await self._deliver(delivery)
            except BrokerError as error:  # what is not settled comes again after its ack_wait
                log.error("durable mailbox of %s, trying again: %s", self._cell.name, error)
                await asyncio.sleep(PAUSE_AFTER_ERROR)

    async def _deliver(self, delivery: Delivery) -> None:
        """Have one event handled, with signs of life to the broker, and settle it."""
        if self._stopping or not self._may_go_on.is_set():
            await self._transport.nak(delivery)
            return
        if delivery.attempt > 1 and await self._orders.strike(_strike(delivery)) > DEATHS:
            await self._bury(delivery, f"the process that handled it ended before it did, {DEATHS} times or more")
            await self._orders.forgive(_strike(delivery))
            return
        work = asyncio.get_running_loop().create_task(self._handle(delivery), name=f"event {self._cell.name}")
        try:
            while not (await asyncio.wait([work], timeout=self._period))[0]:
                await self._transport.in_progress(delivery)
        finally:
            work.cancel()
        await self._settle(delivery, "it was cancelled" if work.cancelled() else work.exception())
        if delivery.attempt > 1:
            await self._orders.forgive(_strike(delivery))

    async def _handle(self, delivery: Delivery) -> None:
        try:
            envelope = codec.decode(delivery.data)
            adopt(envelope, delivery.headers)
            entry = self._cell.behaviour.handlers.get(envelope.message_type)
            if entry is None or entry.kind != "event":
                raise NoHandlerError(self._cell.name, envelope.message_type)
            event = codec.decode_body(entry.message_type, envelope.content)
        except AgentMeshError as error:
            raise Reject(str(error)) from error
        await self._cell.run_event(event, envelope)

    async def _settle(self, delivery: Delivery, problem: BaseException | str | None) -> None:
        """What the outcome means for the stored event; the only place that answers the broker."""
        if problem is None:
            await self._transport.ack(delivery)
        elif isinstance(problem, AgentStoppedError):
            await self._transport.nak(delivery)
        elif isinstance(problem, Reject):
            await self._bury(delivery, problem.reason)
        elif delivery.attempt >= POLICY.max_attempts:
            await self._bury(delivery, _told(problem))
        else:
            log.warning("%s: durable event failed, tried again: %s", self._cell.name, _told(problem))
            wish = problem.delay if isinstance(problem, Retry) else None
            await self._transport.nak(delivery, POLICY.delay_after(delivery.attempt) if wish is None else wish)

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        log.error("%s: durable event is a dead letter: %s", self._cell.name, reason)
        await bury_message(self._transport, self._subjects, delivery, reason)


def _strike(delivery: Delivery) -> str:
    """Under which name it is counted that the event was begun."""
    return f"event-{delivery.sequence}"


def _told(problem: BaseException | str) -> str:
    return problem if isinstance(problem, str) else f"{type(problem).__name__}: {problem}"
