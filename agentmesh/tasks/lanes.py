"""The three queues of an agent, served so that urgent work goes first and nothing starves."""

from __future__ import annotations

import asyncio

from agentmesh.subjects import PRIORITIES, Subjects
from agentmesh.tasks.layout import TASKS, task_consumer
from agentmesh.transport import Delivery, PullConsumer, Transport

NORMAL_TURN, LOW_TURN = 4, 16
"""Every 4th look begins with `normal`, every 16th with `low`; all others with `high`. So with every queue full, of 16
looks 12 go to `high`, 3 to `normal` and 1 to `low`."""


class Lanes:
    """Pulls from the queues `high`, `normal` and `low` of one agent.

    A queue found empty is armed: the broker will push its next task. Armed queues need no looking at.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        agent: Whose queues.
        ack_wait: Seconds, of the consumers.
        ready: Set when `received` has something.
    """

    def __init__(
        self, transport: Transport, subjects: Subjects, agent: str, ack_wait: float, ready: asyncio.Event
    ) -> None:
        self._transport = transport
        self._specs = [task_consumer(subjects, agent, priority, ack_wait) for priority in PRIORITIES]
        self._pulls: list[PullConsumer] = [transport.pull(TASKS, spec.name, ready=ready) for spec in self._specs]
        self._looks = 0

    async def start(self) -> float:
        """Make the consumers that are missing; one that exists is used as it is.

        Returns:
            The shortest `ack_wait` in effect.
        """
        shortest = self._specs[0].ack_wait
        for spec, pull in zip(self._specs, self._pulls, strict=True):
            await self._transport.ensure_consumer(spec)
            await pull.start()
            info = await self._transport.consumer_info(TASKS, spec.name)
            if info is not None:
                shortest = min(shortest, info.config["ack_wait"] / 1e9)
        return shortest

    async def end(self) -> None:
        """Ask for nothing more; what was sent before the broker knew comes out of `take` and `received`."""
        await asyncio.gather(*(pull.end() for pull in self._pulls))

    async def stop(self) -> None:
        for pull in self._pulls:
            await pull.stop()

    def disarm(self) -> None:
        """Have nothing pushed any more; what the broker is just sending still arrives."""
        for pull in self._pulls:
            pull.disarm()

    async def take(self, n: int) -> list[Delivery]:
        """Up to `n` tasks that wait, in order of priority; arms the queues that turn out to be empty."""
        taken: list[Delivery] = []
        for pull in self._in_turn():
            if pull.armed:
                continue
            got = await pull.take(n - len(taken))
            taken += got
            if len(taken) >= n:
                break
            pull.arm()
        return taken

    def received(self) -> list[Delivery]:
        """What armed queues delivered."""
        return [delivery for pull in self._pulls for delivery in pull.received()]

    def _in_turn(self) -> list[PullConsumer]:
        self._looks += 1
        high, normal, low = self._pulls
        if self._looks % LOW_TURN == 0:
            return [low, high, normal]
        if self._looks % NORMAL_TURN == 0:
            return [normal, high, low]
        return self._pulls
