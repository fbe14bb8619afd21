"""Giving tasks back to the queue untried: to another worker, or for later."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from agentmesh.errors import BrokerError
from agentmesh.tasks import history, wire
from agentmesh.tasks.wire import Failure
from agentmesh.transport import Delivery

if TYPE_CHECKING:
    from agentmesh.tasks.attempt import Bench

log = logging.getLogger("agentmesh.tasks")


async def give_back(bench: Bench, delivery: Delivery, reason: str, delay: float = 0.0) -> None:
    """Let another worker have the task; it does not count as an attempt."""
    task_id = wire.peek_id(delivery.data)
    if task_id:
        entry = Failure(delivery.attempt, bench.node, "", reason)
        try:
            await history.record(bench.transport, bench.subjects, task_id, history.RETURNED, entry)
        except BrokerError as error:
            log.warning("task %s is given back unrecorded, which counts as an attempt: %s", task_id, error)
    await bench.transport.nak(delivery, delay)


async def send_away(bench: Bench, delivery: Delivery, delay: float, since: int) -> None:
    """Have a task that a limit makes wait delivered again after `delay` seconds; that counts as no attempt.

    Args:
        bench: The worker's.
        delivery: Of the task.
        delay: Seconds.
        since: The delivery since which the task waits; 0 if that is recorded already.
    """
    task_id = wire.peek_id(delivery.data)
    if since and delivery.attempt > 1 and (await history.read(bench.transport, bench.subjects, task_id)).waits:
        since = 0
    if since:
        await record_wait(bench, delivery, since)
    await bench.transport.nak(delivery, delay)


async def record_wait(bench: Bench, delivery: Delivery, since: int) -> None:
    """Since that delivery the task's attempts are counted as they begin, however often it is delivered."""
    entry = Failure(since, bench.node)
    await history.record(bench.transport, bench.subjects, wire.peek_id(delivery.data), history.WAITS, entry)
