"""The stuck sweep: tasks in the queues that no consumer will ever deliver are found and decided.

Our consumers deliver without a limit, so a task can only get stuck when somebody changed what we made: a consumer that
was given a `max_deliver` gives tasks up, and they would stay in the queue for ever, without a result. The same holds
for a task that was published, past us, into a queue that no worker reads, such as one with a priority of its own.

Such a task becomes a dead letter and is decided `dead`: within seconds when the broker says that it gave up, which it
says only once and to whoever listens; else at the next sweep. Tasks of agents that nobody hosts are not stuck: they
wait, and are only reported.

Any number of sweeps may run at once: burying is idempotent, and a task that was decided meanwhile is only removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agentmesh import registry
from agentmesh.errors import AgentMeshError, InvalidMessageError, InvalidNameError
from agentmesh.subjects import PRIORITIES, Subjects, deliveries_exceeded
from agentmesh.tasks import dead, history, slot, wire
from agentmesh.tasks.layout import TASKS, ensure_streams
from agentmesh.tasks.wire import Failure
from agentmesh.transport import Message, StoredMessage, Subscription, Transport

log = logging.getLogger("agentmesh.tasks")

PERIOD = 60.0
"""Seconds between sweeps."""

FIRST = 5.0
"""Seconds until the first one: agents may just be starting."""

SECOND_LOOK = 2.0
"""Seconds after which something must still look stuck: what is being settled is gone by then."""

_PAGE = 100
_EVERYTHING = 2**62


@dataclass
class Sweep:
    """What one sweep found."""

    buried: list[str] = field(default_factory=list)
    """Ids of the tasks that are dead letters now."""
    unhosted: dict[str, int] = field(default_factory=dict)
    """How many tasks wait for agents that nobody hosts."""


class StuckSweep:
    """See the module.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        on_buried: Called with each task id that was buried, and the reason.
        on_unhosted: Called with the agents nobody hosts and how many tasks wait for each, when that changed.
        period: Seconds between sweeps.
        second_look: Seconds after which something must still look stuck.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        *,
        on_buried: Callable[[str, str], None] = lambda task_id, reason: None,
        on_unhosted: Callable[[Mapping[str, int]], None] = lambda agents: None,
        period: float = PERIOD,
        second_look: float = SECOND_LOOK,
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._on_buried = on_buried
        self._on_unhosted = on_unhosted
        self._period = period
        self._second_look = second_look
        self._given_up = asyncio.Event()
        self._last: dict[str, int] = {}

    async def run(self) -> None:
        """Sweep until cancelled."""
        subscription = await self._listen()
        try:
            await self._pause(min(FIRST, self._period))
            while True:
                try:
                    self._report(await self.sweep())
                except AgentMeshError as error:
                    log.warning("the stuck sweep was cut short: %s", error)
                await self._pause(self._period)
        finally:
            if subscription is not None and self._transport.is_connected:
                await subscription.unsubscribe()

    async def sweep(self) -> Sweep:
        """Look once, and once more at what looks stuck."""
        await ensure_streams(self._transport)
        found = Sweep()
        queues = await self._queues()
        if not queues:
            return found
        suspects = await self._suspects(queues)
        if suspects:
            await asyncio.sleep(self._second_look)
            queues = await self._queues()
            still = await self._suspects({subject: queues[subject] for subject, _ in suspects if subject in queues})
            for key in suspects.keys() & still.keys():
                task_id = await self._bury(*still[key])
                if task_id:
                    found.buried.append(task_id)
        found.unhosted = await self._unhosted(queues)
        return found

    # ------------------------------------------------------------ looking
    async def _queues(self) -> dict[str, int]:
        """How many tasks of this tenant there are, by subject."""
        queues: dict[str, int] = {}
        for pattern in self._subjects.all_tasks():
            queues |= await self._transport.subjects_of(TASKS, pattern)
        return queues

    async def _suspects(self, queues: Mapping[str, int]) -> dict[tuple[str, int], tuple[StoredMessage, str]]:
        """What will not be delivered, with the reason, by subject and sequence."""
        found: dict[tuple[str, int], tuple[StoredMessage, str]] = {}
        for subject, count in queues.items():
            floor, reason = await self._floor(subject, count)
            start = 1
            while floor >= start:
                batch = await self._transport.messages(TASKS, subject, start=start, limit=_PAGE)
                for stored in batch:
                    if stored.sequence <= floor:
                        found[subject, stored.sequence] = stored, reason
                start = batch[-1].sequence + 1 if len(batch) == _PAGE else floor + 1
        return found

    async def _floor(self, subject: str, count: int) -> tuple[int, str]:
        """Stream sequence up to which nothing on the subject is delivered any more, and why."""
        name = self._consumer(subject)
        if name is None:
            return _EVERYTHING, f"no worker reads {subject!r}: it ends in an agent and {', '.join(PRIORITIES)}"
        info = await self._transport.consumer_info(TASKS, name)
        if info is None or count <= info.pending + info.ack_pending:
            return 0, ""
        limit = int(info.config.get("max_deliver") or -1)
        if limit > 0:
            fix = f"nats consumer edit {TASKS} {name} --max-deliver=-1"
            return info.floor, f"the broker gave up after {limit} deliveries, because somebody told it so; undo: {fix}"
        return info.floor, f"the broker does not deliver it any more; was consumer {name} edited?"

    def _consumer(self, subject: str) -> str | None:
        """The consumer that delivers what is on a subject; None: there cannot be one."""
        if subject == self._subjects.task_door():
            return self._subjects.dispatch_consumer()
        agent, lane = subject.split(".")[-2:]
        with contextlib.suppress(InvalidNameError):
            return self._subjects.task_consumer(agent, lane)
        return None

    async def _unhosted(self, queues: Mapping[str, int]) -> dict[str, int]:
        infos = await registry.discover(self._transport, self._subjects, brief=True)
        hosted = {info.name for info in infos}
        waiting: dict[str, int] = {}
        for subject, count in queues.items():
            agent = subject.split(".")[-2]
            if subject != self._subjects.task_door() and self._consumer(subject) and agent not in hosted:
                waiting[agent] = waiting.get(agent, 0) + count
        return waiting

    # ------------------------------------------------------------ deciding
    async def _bury(self, stored: StoredMessage, reason: str) -> str:
        """Decide one that is stuck; its id, empty if it was decided already."""
        transport, subjects = self._transport, self._subjects
        task_id = wire.peek_id(stored.data) or f"bad-{stored.sequence}"
        if await slot.read(transport, subjects, task_id) is not None:
            await transport.delete_message(TASKS, stored.sequence)
            return ""
        agent, task_type = "", ""
        past: list[Failure] = []
        with contextlib.suppress(InvalidMessageError):
            body = wire.decode_task(stored.data)
            agent, task_type = body.agent_id or "", body.task_type
            past = (await history.read(transport, subjects, task_id)).failures
        await dead.bury_stored(
            transport, subjects, stored, reason, task_id=task_id, agent=agent, task_type=task_type, history=past
        )
        log.error("task %s was stuck and is a dead letter: %s", task_id, reason)
        self._on_buried(task_id, reason)
        return task_id

    # ------------------------------------------------------------ when
    async def _listen(self) -> Subscription | None:
        """The broker says when it gives up: a prompt to look, since anybody could say so."""
        try:
            return await self._transport.subscribe(deliveries_exceeded(TASKS), self._on_advisory)
        except AgentMeshError as error:  # not allowed: what gets stuck is found a minute later
            log.info("the broker's advisories cannot be heard: %s", error)
            return None

    def _on_advisory(self, message: Message) -> None:
        if message.subject.rpartition(".")[2].startswith(f"{self._subjects.tenant}~"):
            self._given_up.set()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._given_up.wait()
        self._given_up.clear()

    def _report(self, found: Sweep) -> None:
        if found.unhosted != self._last:
            self._last = found.unhosted
            self._on_unhosted(found.unhosted)
