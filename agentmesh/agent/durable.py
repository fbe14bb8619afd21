"""The durable mailbox of an agent: events told with `durable=True`, at least once and in order.

One stored message at a time is out (`max_ack_pending` 1), so the order holds for the agent as a whole, over restarts
and over replicas. A handled event is acknowledged twice over; a failing one is tried again with growing delays and
after `MAX_ATTEMPTS` becomes a dead letter, so that it cannot block those behind it for ever.
"""

from __future__ import annotations

import asyncio
import logging

from agentmesh import codec
from agentmesh.agent.cell import AgentCell, Letter
from agentmesh.errors import AgentMeshError, AgentStoppedError, InvalidMessageError, NoHandlerError
from agentmesh.messages import TaskPolicy
from agentmesh.tasks import bury_message
from agentmesh.tasks.layout import ACK_WAIT, MAILBOX, mailbox_consumer
from agentmesh.transport import Delivery, PullConsumer

log = logging.getLogger("agentmesh.agent")

POLICY = TaskPolicy(max_attempts=5)


class DurableMailbox:
    """Moves stored events of one agent into its cell."""

    def __init__(self, cell: AgentCell) -> None:
        self._cell = cell
        self._transport = cell.client.transport
        self._subjects = cell.client.subjects
        self._loop: asyncio.Task[None] | None = None
        self._pull: PullConsumer | None = None

    async def start(self) -> None:
        """Begin to deliver."""
        await self._cell.client.tasks.ensure()
        spec = mailbox_consumer(self._subjects, self._cell.name)
        await self._transport.ensure_consumer(spec)
        self._pull = self._transport.pull(MAILBOX, spec.name)
        await self._pull.start()
        self._loop = asyncio.get_running_loop().create_task(self._run(self._pull), name=f"durable {self._cell.name}")

    async def stop(self) -> None:
        """Deliver no more; what is out is settled by the cell."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        if self._pull is not None:
            await self._pull.stop()

    async def _run(self, pull: PullConsumer) -> None:
        while True:
            pull.arm()
            await pull.ready.wait()
            pull.ready.clear()
            for delivery in pull.received():
                await self._deliver(delivery)

    async def _deliver(self, delivery: Delivery) -> None:
        """Put one event into the cell and wait until it is settled."""
        settled = asyncio.get_running_loop().create_future()

        async def settle(error: BaseException | None) -> None:
            await self._settle(delivery, error)
            if not settled.done():
                settled.set_result(None)

        try:
            envelope = codec.decode(delivery.data)
            entry = self._cell.behaviour.handlers.get(envelope.message_type)
            if entry is None:
                raise NoHandlerError(self._cell.name, envelope.message_type)
        except AgentMeshError as error:
            await self._bury(delivery, str(error))
            return
        if not self._cell.deliver_stored(Letter(entry, envelope, "", settle)):
            await self._transport.nak(delivery)
            return
        while not settled.done():
            await asyncio.wait([settled], timeout=ACK_WAIT / 3)
            if not settled.done():
                await self._transport.in_progress(delivery)

    async def _settle(self, delivery: Delivery, error: BaseException | None) -> None:
        if error is None:
            await self._transport.ack(delivery)
        elif isinstance(error, AgentStoppedError):
            await self._transport.nak(delivery)
        elif isinstance(error, InvalidMessageError) or delivery.attempt >= POLICY.max_attempts:
            await self._bury(delivery, f"{type(error).__name__}: {error}")
        else:
            log.warning("%s: durable event failed, tried again: %s", self._cell.name, error)
            await self._transport.nak(delivery, POLICY.delay_after(delivery.attempt))

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        log.error("%s: durable event is a dead letter: %s", self._cell.name, reason)
        await bury_message(self._transport, self._subjects, delivery, reason)
