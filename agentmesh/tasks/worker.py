"""The worker of an agent replica: takes tasks from the agent's queues, runs them, settles them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh.errors import AgentMeshError, BrokerError
from agentmesh.ids import new_id
from agentmesh.limits import Limit
from agentmesh.messages import Task
from agentmesh.metrics.registry import Histogram
from agentmesh.subjects import Subjects
from agentmesh.tasks.attempt import CROWDED, PAUSED, STOPPED, Attempt, Bench, Runner
from agentmesh.tasks.gate import Gate
from agentmesh.tasks.giving import give_back, send_away
from agentmesh.tasks.lanes import Lanes
from agentmesh.tasks.layout import ACK_WAIT, ensure_streams
from agentmesh.tasks.line import Line
from agentmesh.tasks.lineage import CANCEL, Masters
from agentmesh.tasks.pulse import Pulse, look
from agentmesh.tasks.wire import TaskBody, decode_queued
from agentmesh.transport import Delivery, Message, Subscription, Transport

if TYPE_CHECKING:
    from agentmesh.tasks.client import TaskClient

log = logging.getLogger("agentmesh.tasks")

WHERE = "where"
"""Control subject: the question who runs a task."""

LAST_WORDS = 1.0
"""Seconds that `stop` gives to each: cancelled handlers, and giving back the tasks of those that go on."""

PAUSE_AFTER_ERROR = 0.5
"""Seconds a worker waits when the broker refuses what it needs."""

SCOUTS = 16
"""Tasks a worker takes at once to get past those that a limit makes wait."""

REMEMBERED = 20_000
"""Tasks of which a worker remembers that their waiting is recorded."""


class WhereQuery(msgspec.Struct):
    """Who runs this task? Empty: what do you run?"""

    task_id: str = ""


class Running(msgspec.Struct):
    """A task being worked on."""

    task_id: str
    task_type: str
    agent_id: str
    worker: str
    attempt: int
    seconds: float
    """How long its handler has been running."""


_encode = msgspec.json.Encoder().encode
_read_query = msgspec.json.Decoder(WhereQuery).decode


class TaskWorker:
    """Runs the tasks of one agent replica, at most `slots` at a time.

    Workers of the same agent share its queues. A task that this worker took is its own until it is settled, as long
    as the worker gives signs of life; after `ack_wait` seconds of silence another worker gets it.

    The broker's own limit of deliveries is not used, since what the broker gives up would stay in the queue for
    ever: a task with no attempts left is turned into a dead letter by the next worker that gets it.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        agent: Whose tasks.
        types: The task types it takes, by their names on the wire.
        run: Runs the handler; raises what it raises. Cancelled at the time limit, on cancellation, and on `stop`.
        slots: Tasks run at the same time.
        prefetch: Tasks held beyond that, so that the next one is here when a slot gets free.
        node: Name of this process in results and histories.
        ack_wait: Seconds, see above. The first worker of an agent sets it for all.
        client: Submits what workflows submit; None makes one when it is needed.
        limits: Bounds on the tasks of this agent, beside those their types declare.
        tenant_limits: Bounds on the tasks of the tenant.
    """

    max_away = 1_000
    """Workflows that may wait at one worker; one more is given back for a while. Running it again costs little."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        agent: str,
        *,
        types: dict[str, type[Task[Any]]],
        run: Runner,
        slots: int = 1,
        prefetch: int = 0,
        node: str = "",
        ack_wait: float = ACK_WAIT,
        client: TaskClient | None = None,
        limits: Sequence[Limit] = (),
        tenant_limits: Sequence[Limit] = (),
    ) -> None:
        self.agent = agent
        self.slots = slots
        self.prefetch = prefetch
        self._transport = transport
        self._subjects = subjects
        self._by_id: dict[str, Attempt] = {}
        gate = Gate(
            transport,
            subjects,
            agent,
            node=node,
            types=types,
            limits=limits,
            tenant_limits=tenant_limits,
            ttl=ack_wait,
            chore=self._chore,
            retry=self._retry,
        )
        self._gate = gate if gate.is_needed else None
        self._client = client
        self._bench = Bench(
            transport,
            subjects,
            agent,
            node,
            types,
            run,
            self._by_id,
            new_id(),
            self._task_client,
            self._moved,
            self._gate,
        )
        self._all_waited = False
        """Of what was taken last, no task could begin."""
        self._masters = Masters(transport, subjects)
        self._waits: dict[int, int] = {}
        """The last tasks that a limit made wait, by sequence: since which delivery; 0 when that is recorded."""
        self._wake = asyncio.Event()
        self._lanes = Lanes(transport, subjects, agent, ack_wait, self._wake)
        self._in_hand: dict[int, Attempt] = {}
        self._held: deque[Attempt] = deque()
        self._away = 0
        """Workflows that only wait: they are in hand, but take no slot."""
        self._lives: set[asyncio.Task[None]] = set()
        self._chores: set[asyncio.Task[None]] = set()
        self._pulse = Pulse(transport, self._in_hand, self._chore)
        self._loops: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None
        self._subscriptions: list[Subscription] = []
        self._stopping = False
        self._ended = False
        """Nothing arrives any more."""
        self._paused = False

    @property
    def running(self) -> dict[str, Running]:
        """The tasks whose handlers run now, by id."""
        return {task_id: _running(attempt) for task_id, attempt in self._by_id.items() if attempt.handling}

    @property
    def held(self) -> int:
        """Tasks that it has and whose handlers do not run: they wait for a slot, for room at a limit, or for others."""
        return len(self._in_hand) - len(self.running)

    @property
    def queued(self) -> Histogram:
        """Seconds that tasks waited at the broker and here until they were begun."""
        return self._bench.queued

    # ------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Make what is missing at the broker, and begin to take tasks."""
        await ensure_streams(self._transport)
        ack_wait = await self._lanes.start()
        for what, callback in ((CANCEL, self._on_cancel), (WHERE, self._on_where)):
            self._subscriptions.append(await self._transport.subscribe(self._subjects.control(what), callback))
        if self._gate is not None:
            await self._gate.start()
        loop = asyncio.get_running_loop()
        self._serving = loop.create_task(self._serve(), name=f"tasks of {self.agent}")
        self._loops = {
            self._serving,
            loop.create_task(self._pulse.run(ack_wait), name=f"task heartbeats of {self.agent}"),
        }

    async def stop(self, grace: float = 10.0) -> None:
        """Take no more tasks and finish those that run; what is not done within `grace` seconds is given back.

        Returns after `grace` seconds and a few round trips; a few seconds later, if handlers ignore that they are
        cancelled or the broker does not answer.
        """
        self._stopping = True
        await self._lanes.end()  # what is on its way to us would come back to nobody, and count as an attempt
        self._ended = True
        self._wake.set()
        if self._serving is not None:
            await _ended({self._serving}, LAST_WORDS)
        await _ended(self._lives, grace)
        for attempt in self._in_hand.values():
            attempt.interrupt(STOPPED)
        await _ended(self._lives, LAST_WORDS)
        for attempt in self._in_hand.values():
            self._chore(attempt.abandon())
        await _ended(self._chores, LAST_WORDS)
        for work in (*self._lives, *self._chores, *self._loops):
            work.cancel()
        await _ended(self._loops, LAST_WORDS)
        await self._lanes.stop()
        if self._gate is not None:
            await self._gate.stop()
        for subscription in self._subscriptions:
            await subscription.unsubscribe()

    @property
    def paused(self) -> bool:
        """Whether it takes no tasks at present."""
        return self._paused

    def pause(self) -> None:
        """Take no more tasks until `resume`: those that run go on, those held or still arriving are given back."""
        self._paused = True
        self._lanes.disarm()
        self._wake.set()

    def resume(self) -> None:
        """Take tasks again."""
        self._paused = False
        self._wake.set()

    @property
    def _closed(self) -> bool:
        """No task is begun."""
        return self._stopping or self._paused

    # ------------------------------------------------------------ taking tasks

    async def _serve(self) -> None:
        """Fill the slots from the queues; when they are empty, wait for the broker to push. Until nothing arrives."""
        while True:
            self._wake.clear()
            try:
                for delivery in self._lanes.received():
                    self._accept(delivery)
                self._fill_slots()
                if self._ended:
                    return
                room = self._room()
                if room > 0 and (taken := await self._lanes.take(max(room, SCOUTS) if self._all_waited else room)):
                    self._all_waited = self._gate is not None
                    for delivery in taken:
                        self._accept(delivery)
                    continue
            except BrokerError:
                log.exception("worker of %s cannot take tasks; trying again", self.agent)
                await asyncio.sleep(PAUSE_AFTER_ERROR)
                continue
            await self._wake.wait()

    def _room(self) -> int:
        """How many tasks more this worker wants. Those that a limit makes wait, and workflows that only wait, leave
        their room to others."""
        if self._closed:
            return 0
        waiting = self._gate.parked if self._gate is not None else 0
        return self.slots + self.prefetch + self._away + waiting - len(self._in_hand)

    def _accept(self, delivery: Delivery) -> None:
        """A task has arrived: to run, to hold, to wait for room at a limit, or too many."""
        known = self._in_hand.get(delivery.sequence)
        if known is not None:
            known.delivery = delivery  # the broker had not heard of us for too long; it is still ours
        elif self._gate is not None and not self._closed and (line := self._gate.glance(delivery)) is not None:
            self._put_off(Attempt(self._bench, delivery), line)
        elif self._room() <= (-SCOUTS if self._all_waited else 0):
            self._refuse(delivery)
        else:
            attempt = self._in_hand[delivery.sequence] = Attempt(self._bench, delivery)
            attempt.waits_since = self._waits.get(delivery.sequence, 0)
            self._held.append(attempt)
            self._all_waited = False
            self._pulse.wake()
            self._fill_slots()

    def _refuse(self, delivery: Delivery) -> None:
        """Let another worker have it. Of one whose waiting is recorded, deliveries do not count anyway."""
        if self._waits.get(delivery.sequence) == 0:
            self._chore(self._transport.nak(delivery))
        else:
            self._chore(give_back(self._bench, delivery, PAUSED if self._paused else "no slot free"))

    def _fill_slots(self) -> None:
        if self._closed and self._gate is not None:
            self._held.extend(self._gate.clear())
        while self._held and (self._closed or len(self._lives) - self._away < self.slots):
            attempt = self._held.popleft()
            if self._closed:
                del self._in_hand[attempt.delivery.sequence]
                self._chore(give_back(self._bench, attempt.delivery, STOPPED if self._stopping else PAUSED))
                continue
            life = asyncio.get_running_loop().create_task(attempt.live(), name="task")
            attempt.task = life
            self._lives.add(life)
            life.add_done_callback(partial(self._forget, attempt))

    def _task_client(self) -> TaskClient:
        if self._client is None:
            from agentmesh.tasks.client import TaskClient

            self._client = TaskClient(self._transport, self._subjects)
        return self._client

    def _moved(self, attempt: Attempt) -> None:
        """A workflow has begun to wait, or waits no more."""
        self._away += 1 if attempt.away else -1
        if attempt.away and self._away > self.max_away:
            attempt.interrupt(CROWDED)
        self._wake.set()

    def _forget(self, attempt: Attempt, life: asyncio.Task[None]) -> None:
        if attempt.away:
            self._away -= 1
        self._lives.discard(life)
        line, attempt.line = attempt.line, None
        if line is None or self._closed:
            self._in_hand.pop(attempt.delivery.sequence, None)
        if line is not None:
            self._put_off(attempt, line)
        if not life.cancelled() and (error := life.exception()) is not None:
            log.error("the life of %s ended with an error of ours", attempt, exc_info=error)
        self._wake.set()

    def _put_off(self, attempt: Attempt, line: Line) -> None:
        """A limit makes it wait: here, if it is one of few, else with the broker."""
        assert self._gate is not None
        delivery = attempt.delivery
        if self._closed:
            self._chore(give_back(self._bench, delivery, STOPPED if self._stopping else PAUSED))
            return
        delay = self._gate.put_off(attempt, line)
        since = 0 if attempt.waits else self._waits.get(delivery.sequence, delivery.attempt)
        self._waits[delivery.sequence] = since
        if len(self._waits) > REMEMBERED:
            del self._waits[next(iter(self._waits))]
        if delay:
            self._in_hand.pop(delivery.sequence, None)
            self._chore(self._send_away(attempt, delay, since))
            return
        self._in_hand[delivery.sequence] = attempt
        self._pulse.wake()
        attempt.waits_since = since
        if since:
            self._chore(self._record_wait(attempt))
        if attempt.body is not None and attempt.body.master_id:
            self._chore(self._look_up(attempt.body))

    async def _look_up(self, body: TaskBody) -> None:
        """A task waits in hand: the prompt that the one it belongs to has ended may have come before."""
        if await self._masters.has_ended(body) and self._gate is not None:
            self._retry(self._gate.find(body.task_id))

    async def _record_wait(self, attempt: Attempt) -> None:
        await attempt.record_wait()
        self._waits[attempt.delivery.sequence] = 0

    async def _send_away(self, attempt: Attempt, delay: float, since: int) -> None:
        """For later, unless the task has ended meanwhile: it need not wait for room to be told so."""
        delivery = attempt.delivery
        if await self._masters.has_ended(decode_queued(delivery.data)) and await attempt.end_unrun():
            return
        await send_away(self._bench, delivery, delay, since)
        self._waits[delivery.sequence] = 0

    def _retry(self, attempts: list[Attempt]) -> None:
        """There may be room now for what waited."""
        self._held.extendleft(reversed(attempts))
        self._fill_slots()

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside; `stop` waits for it."""
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except AgentMeshError:
            log.warning("worker of %s: the broker does not take what we have to say", self.agent, exc_info=True)

    # ------------------------------------------------------------ control subjects

    def _on_cancel(self, message: Message) -> None:
        """A prompt: who runs that task, or one that belongs to it, looks at its slot. A forged one has no effect."""
        task_id = message.data.decode("utf-8", "replace")
        self._masters.forget(task_id)
        for attempt in self._by_id.values() if task_id else ():
            if attempt.belongs_to(task_id):
                self._chore(look(attempt))
        waiting = self._gate.find(task_id) if self._gate is not None and task_id else []
        if waiting:
            self._retry(waiting)

    def _on_where(self, message: Message) -> None:
        """Answer only if there is something to say."""
        try:
            wanted = _read_query(message.data).task_id if message.data else ""
        except msgspec.MsgspecError:
            return
        found = [entry for task_id, entry in self.running.items() if not wanted or task_id == wanted]
        if found and message.reply:
            self._chore(self._transport.publish(message.reply, _encode(found)))


async def _ended(work: set[asyncio.Task[None]], timeout: float) -> None:
    if work:
        await asyncio.wait(work, timeout=timeout)


def _running(attempt: Attempt) -> Running:
    assert attempt.body is not None
    seconds = asyncio.get_running_loop().time() - attempt.clock.started_at
    return Running(
        attempt.task_id,
        attempt.body.task_type,
        attempt.bench.agent,
        attempt.bench.node,
        attempt.number,
        round(seconds, 3),
    )
