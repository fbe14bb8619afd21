"""Admission: a task begins when every limit it is under has room.

The limits of a task are taken one after the other, in one order everywhere, rates last; what was taken is given back
when a later one is refused, so nobody holds one while waiting for another. A refused task waits in the line of the
limit that refused it: a few are kept in hand, the rest is sent away to come back later. So others get past them.

What is taken is renewed as long as the worker lives (a third of `ttl` apart) and given back when the handler has ended,
even if its task was settled before that. A worker that falls silent loses it after `ttl` seconds; if it was only frozen
its handlers are counted again as soon as it is back, and until they end more may run than is allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh import codec
from agentmesh.errors import BrokerError, InvalidMessageError, InvalidNameError
from agentmesh.limits import Limit, Rule, rules
from agentmesh.messages import Task, wire_name
from agentmesh.subjects import Subjects
from agentmesh.tasks.allowance import Beat, FreeSlot, GiveBackStart, Holder, TakeSlot, TakeStart
from agentmesh.tasks.clock import loop_time
from agentmesh.tasks.line import Line
from agentmesh.tasks.records import records_of
from agentmesh.tasks.wire import TaskBody, decode_queued
from agentmesh.transport import Delivery, Message, Subscription, Transport

if TYPE_CHECKING:
    from agentmesh.tasks.attempt import Attempt

log = logging.getLogger("agentmesh.tasks")

PROMPT, WAITING = "limit", "waiting"
"""Control subjects: there is room at a limit; and the question how many wait where."""

IN_HAND = 32
"""Tasks that a worker keeps in hand, in all lines together."""

_LOOK_EVERY = 0.5
"""Seconds between looks at limits that tasks wait for; a prompt comes earlier, but may get lost."""

_HERE = 0.75
"""How often a place is offered to a task in hand here before those at other workers hear of it."""

_LOOKS = 64
"""Lines looked at each time."""

_TRIES = 3
"""Starts counted in vain, because this process was too slow, until the task has to wait."""


class Waiting(msgspec.Struct):
    """Tasks that wait for one record of a limit at one worker."""

    path: str
    agent_id: str
    worker: str
    waiting: int


_encode = msgspec.json.Encoder().encode


class Gate:
    """The limits of one worker.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        agent: Whose tasks.
        node: Name of this process.
        types: The task types, by their names on the wire.
        limits: Of the agent's queue.
        tenant_limits: Of all tasks of the tenant.
        ttl: Seconds of silence after which what this worker holds is free.
        chore: Runs a coroutine beside everything else.
        retry: Called with tasks in hand that may begin now.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        agent: str,
        *,
        node: str,
        types: dict[str, type[Task[Any]]],
        limits: Sequence[Limit],
        tenant_limits: Sequence[Limit],
        ttl: float,
        chore: Callable[[Coroutine[Any, Any, None]], None],
        retry: Callable[[list[Attempt]], None],
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._agent = agent
        self._node = node
        self._types = types
        self._ttl = ttl
        self._chore = chore
        self._retry = retry
        self._records = records_of(transport, subjects)
        wide = (*rules("tenant", "all", tenant_limits), *rules("agent", agent, limits))
        self._rules = {name: _ordered(kind, wide) for name, kind in types.items()}
        self._held: dict[str, dict[str, Holder]] = {}
        self._lines: dict[str, Line] = {}
        self._busy = asyncio.Event()
        self._prompted = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._subscriptions: list[Subscription] = []

    @property
    def is_needed(self) -> bool:
        """Whether there is any limit at all."""
        return any(self._rules.values())

    def applies(self, task_type: type[Task[Any]]) -> bool:
        """Whether tasks of the type are under any limit."""
        return bool(self._rules.get(wire_name(task_type)))

    @property
    def parked(self) -> int:
        """Tasks in hand that wait."""
        return sum(len(line.parked) for line in self._lines.values())

    async def start(self) -> None:
        """Begin to listen and to renew."""
        self._subscriptions = [
            await self._transport.subscribe(self._subjects.control(PROMPT), self._on_prompt),
            await self._transport.subscribe(self._subjects.control(WAITING), self._on_waiting),
        ]
        loop = asyncio.get_running_loop()
        self._loops = [
            loop.create_task(self._forever(self._look), name=f"limits of {self._agent}"),
            loop.create_task(self._forever(self._renew), name=f"limit heartbeats of {self._agent}"),
        ]

    async def stop(self) -> None:
        """Stop listening. What is held was given back when its handlers ended; the rest ends by its `ttl`."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for subscription in self._subscriptions:
            await subscription.unsubscribe()

    def clear(self) -> list[Attempt]:
        """Those in hand that wait; they are not any more."""
        found = [attempt for line in self._lines.values() for attempt in line.parked]
        self._lines.clear()
        return found

    def find(self, task_id: str) -> list[Attempt]:
        """Those in hand that are that task or end with it; they wait no more."""
        found = []
        for line in self._lines.values():
            mine = [attempt for attempt in line.parked if attempt.belongs_to(task_id)]
            for attempt in mine:
                line.parked.remove(attempt)
            found += mine
        return found

    # ------------------------------------------------------------ admission

    def glance(self, delivery: Delivery) -> Line | None:
        """The line this task would have to wait in, if that is known without asking; costs no round trip."""
        if not self._lines:
            return None
        with contextlib.suppress(InvalidMessageError, InvalidNameError):
            body = decode_queued(delivery.data)
            applying = self._rules.get(body.task_type)
            if applying and not body.is_late():
                task = codec.decode_body(self._types[body.task_type], parameters(body))
                for rule in applying:
                    line = self._lines.get(rule.path(task))
                    if line is not None and line.closed:
                        return line
        return None

    async def admit(self, attempt: Attempt, task: Task[Any]) -> Line | None:
        """Take what the task needs. None: it may begin at once, and no later. Else the line it has to wait in.

        Raises:
            BrokerError: It cannot be known; nothing is taken for long.
        """
        applying = self._rules[wire_name(type(task))]
        counted: dict[str, TakeStart] = {}
        try:
            refused = await self._take_all(attempt, applying, task, counted)
            if refused is None and attempt.waits:
                await attempt.record_beginning()
            if refused is None and counted:
                refused = await self._in_time(counted, applying, task)
                if refused is not None and attempt.waits:
                    await attempt.record_return()
        except BaseException:
            self._give_back(attempt, counted)
            raise
        if refused is None:
            self._begun(applying, task)
        else:
            self._give_back(attempt, counted)
        return refused

    def leave(self, attempt: Attempt) -> None:
        """Its handler has ended, or did not begin: others may have its place."""
        for path in attempt.places:
            held = self._held.get(path, {})
            held.pop(attempt.mark, None)
            if not held:
                self._held.pop(path, None)
            self._chore(self._free(path, attempt.mark))
            line = self._lines.get(path)
            if attempt.handled and line is not None and random.random() < _HERE:
                self._open(line, 1)  # nobody has to tell us; but those who wait elsewhere get their turns, too
        attempt.places.clear()

    async def _take_all(
        self, attempt: Attempt, applying: Sequence[Rule], task: Task[Any], counted: dict[str, TakeStart]
    ) -> Line | None:
        """Take one after the other, up to the first that is refused: its line."""
        for rule in applying:
            path = rule.path(task)
            if rule.limit.concurrency:
                if not await self._take_slot(attempt, rule, path, task):
                    return self._line(path, rule, task, 0.0)
                continue
            start = await self._count_start(rule, path, task)
            if start.refused:
                return self._line(path, rule, task, start.wait)
            counted[path] = start
        return None

    def _give_back(self, attempt: Attempt, counted: dict[str, TakeStart]) -> None:
        self.leave(attempt)
        for path, start in counted.items():
            self._chore(self._uncount(path, start))

    async def _take_slot(self, attempt: Attempt, rule: Rule, path: str, task: Task[Any]) -> bool:
        holder = Holder(attempt.task_id, self._node, self._ttl)
        attempt.places.append(path)  # also if we never hear that it was taken
        taken = await self._records.do(
            path, TakeSlot(attempt.mark, holder, rule.limit.concurrency, rule.limit.value(task))
        )
        if taken.refused:
            attempt.places.remove(path)
            return False
        self._held.setdefault(path, {})[attempt.mark] = holder
        self._busy.set()
        return True

    async def _count_start(self, rule: Rule, path: str, task: Task[Any], slack: float = 1.0) -> TakeStart:
        clock, limit = self._records.clock, rule.limit
        await self._records.ready()
        seconds = slack * max(0.02, min(0.5, 0.05 * limit.period))
        start = TakeStart(clock.interval, seconds, limit.rate, limit.period, limit.value(task))
        return await self._records.do(path, start)

    async def _in_time(self, counted: dict[str, TakeStart], applying: Sequence[Rule], task: Task[Any]) -> Line | None:
        """What was counted for a moment that has passed is counted again for a later one."""
        by_path = {rule.path(task): rule for rule in applying}
        for tries in range(1, _TRIES + 1):
            late = [path for path, start in counted.items() if self._records.clock.latest() > start.counted_at]
            if not late:
                return None
            for path in late:
                start = await self._count_start(by_path[path], path, task, slack=2.0**tries)
                if start.refused:
                    return self._line(path, by_path[path], task, start.wait)
                counted[path] = start
        return self._line(late[0], by_path[late[0]], task, 0.0)

    async def _free(self, path: str, mark: str) -> None:
        freed = await self._records.do(path, FreeSlot(mark))
        if freed.made_room:
            await self._transport.publish(self._subjects.control(PROMPT), path.encode())

    async def _uncount(self, path: str, start: TakeStart) -> None:
        await self._records.do(path, GiveBackStart(start.counted_at))

    # ------------------------------------------------------------ waiting

    def put_off(self, attempt: Attempt, line: Line) -> float:
        """Have it wait: 0.0: in hand; else the seconds for which it is to be sent away."""
        line = self._lines.setdefault(line.path, line)  # nobody waited in it for a moment: it may be forgotten
        self._busy.set()
        if line.takes and self.parked < IN_HAND:
            attempt.body = attempt.body or decode_queued(attempt.delivery.data)  # by which `find` knows it
            line.parked.append(attempt)
            return 0.0
        return line.send_away()

    def _line(self, path: str, rule: Rule, task: Task[Any], wait: float) -> Line:
        line = self._lines.get(path)
        if line is None:
            line = self._lines[path] = Line(path, rule, rule.limit.value(task))
        line.full, line.looked_at = True, loop_time()
        line.open_at = line.looked_at + wait
        self._busy.set()
        if rule.limit.rate:
            self._prompted.set()  # for the loop to sleep no longer than that
        return line

    def _begun(self, applying: Sequence[Rule], task: Task[Any]) -> None:
        for rule in applying if self._lines else ():
            line = self._lines.get(rule.path(task))
            if line is not None:
                line.begun()

    def _open(self, line: Line, room: int) -> None:
        """There is room: those in hand may try."""
        line.full = False
        ready = [line.parked.popleft() for _ in range(min(room, len(line.parked)))]
        if ready:
            self._retry(ready)

    # ------------------------------------------------------------ loops

    async def _forever(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            if not self._held and not self._lines:
                self._busy.clear()
                await self._busy.wait()
            try:
                await step()
            except BrokerError as error:
                log.debug("limits of %s: %s", self._agent, error)
                await asyncio.sleep(_LOOK_EVERY)

    async def _renew(self) -> None:
        """Say that we live, wherever we hold something."""
        await asyncio.sleep(self._ttl / 3)
        held = [(path, dict(holders)) for path, holders in self._held.items()]
        await asyncio.gather(*(self._beat(path, holders) for path, holders in held))

    async def _beat(self, path: str, holders: dict[str, Holder]) -> None:
        await self._records.do(path, Beat(holders))
        for mark in holders.keys() - self._held.get(path, {}).keys():
            await self._records.do(path, FreeSlot(mark))  # it ended meanwhile, and must not come back to life

    async def _look(self) -> None:
        """Look at what tasks wait for: when somebody says that there is room, when it is time, and now and then."""
        now = loop_time()
        times = [line.open_at - now for line in self._lines.values() if line.rule.limit.rate and line.full]
        pause = min([_LOOK_EVERY, self._ttl / 4, *(max(0.005, left) for left in times)])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._prompted.wait()
        self._prompted.clear()
        for path in [path for path, line in self._lines.items() if not line.waiting()]:
            del self._lines[path]
        lines = list(self._lines.values())[:_LOOKS]
        await asyncio.gather(*(self._look_at(line) for line in lines))
        for line in lines:  # next time, those that were not looked at come first
            if self._lines.get(line.path) is line and len(self._lines) > _LOOKS:
                self._lines[line.path] = self._lines.pop(line.path)

    async def _look_at(self, line: Line) -> None:
        limit = line.rule.limit
        if limit.rate:
            if loop_time() >= line.open_at:
                self._open(line, limit.rate)
            return
        record = await self._records.look(line.path)
        line.looked_at = loop_time()
        room = limit.concurrency - len(record.holders)
        if room > 0:
            self._open(line, room)
        else:
            line.full = True

    # ------------------------------------------------------------ control subjects

    def _on_prompt(self, message: Message) -> None:
        """There may be room. It is looked at before anything begins, so a forged one has no effect."""
        if message.data.decode("utf-8", "replace") in self._lines:
            self._prompted.set()

    def _on_waiting(self, message: Message) -> None:
        """Answer only if somebody waits."""
        found = [Waiting(path, self._agent, self._node, line.waiting()) for path, line in self._lines.items()]
        found = [entry for entry in found if entry.waiting]
        if found and message.reply:
            self._chore(self._transport.publish(message.reply, _encode(found[:_LOOKS])))


def parameters(body: TaskBody) -> msgspec.Raw | bytes:
    """The fields of the task, also of one that has none."""
    return b"{}" if bytes(body.parameters) == b"null" else body.parameters


def _ordered(kind: type[Task[Any]], wide: Sequence[Rule]) -> tuple[Rule, ...]:
    """All rules for a type: slots before rates, since a start that was counted in vain is lost for a period."""
    own = rules("task", wire_name(kind), kind.policy().limits)
    shared = {(rule.scope, rule.owner, rule.what): rule for rule in (*own, *wide)}
    return tuple(sorted(shared.values(), key=lambda rule: (rule.limit.rate > 0, rule.scope, rule.owner, rule.what)))
