"""The reconciler: looks for the undecided tasks of a ledger, and submits again what the broker no longer has.

Same id, same body. It is safe in any case: whoever takes a task looks at its slot first. What is decided is never
submitted again as long as its result is kept; what waits or runs is found and left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from agentmesh.errors import (
    AgentMeshError,
    BrokerError,
    InvalidMessageError,
    LedgerError,
    SequenceConflictError,
    StreamFullError,
)
from agentmesh.ids import new_id
from agentmesh.tasks import slot
from agentmesh.tasks.layout import RESULTS, SCHEDULES, SPECS, TASKS, named
from agentmesh.tasks.ledger import Entry, Ledger
from agentmesh.tasks.wire import ResultBody, decode_task
from agentmesh.transport import StoredMessage

if TYPE_CHECKING:
    from agentmesh.tasks.client import TaskClient

log = logging.getLogger("agentmesh.ledger")

BATCH = 500
"""Tasks looked for together."""

LONGEST_PERIOD = 10.0
"""Seconds between looks into the ledger, at most."""

CERTAIN = 6.5 * 86_400.0
"""Seconds for which a result is sure to be kept (it is for seven days). Of a task that nobody has looked for that long,
no trace means nothing."""

_AT_ONCE = 64
_PAGE = 500


@dataclass
class Reconciled:
    """What became of the tasks that were looked for; their ids."""

    decided: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Found in the broker: they wait, run, or are not due yet."""
    resubmitted: list[str] = field(default_factory=list)
    full: list[str] = field(default_factory=list)
    """Their queue is full; tried again later."""
    doubtful: list[str] = field(default_factory=list)
    """Gone, and nobody has looked for them for so long that they may have been decided: not submitted again."""


class Reconciler:
    """See the module. One per tenant and ledger; those of several processes share the work.

    Args:
        tasks: The submitter. From `start` to `stop` what it submits is written down.
        ledger: Not open yet.
    """

    def __init__(self, tasks: TaskClient, ledger: Ledger) -> None:
        self.ledger = ledger
        self._tasks = tasks
        self._transport = tasks.transport
        self._subjects = tasks.subjects
        self._loop: asyncio.Task[None] | None = None

    async def start(self, *, watch: bool = True) -> None:
        """Open the ledger, and look for what it holds, at once and from then on.

        Args:
            watch: False: only when `reconcile` is called.

        Raises:
            LedgerError: It cannot be opened.
        """
        await self.ledger.open()
        self._tasks.ledger = self.ledger
        self._tasks.results.on_decided = partial(self.ledger.decided, self._subjects.tenant)
        try:
            await self._tasks.results.listen()
        except BaseException:
            await self.stop()
            raise
        if watch:
            self._loop = asyncio.get_running_loop().create_task(self._serve(), name="ledger")

    async def stop(self) -> None:
        """Stop looking, and close the ledger; what is undecided stays in it."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        self._tasks.ledger = self._tasks.results.on_decided = None
        await self.ledger.close()

    async def _serve(self) -> None:
        while True:
            try:
                await self.reconcile()
            except (BrokerError, LedgerError) as error:
                log.warning("ledger %s is looked through again later: %s", self.ledger.path, error)
            except AgentMeshError:
                log.exception("ledger %s could not be looked through", self.ledger.path)
            await asyncio.sleep(min(LONGEST_PERIOD, self.ledger.patience / 3))

    async def reconcile(self, *, early: bool = False, doubtful: bool = False) -> Reconciled:
        """Look for every task whose time has come, and submit again what is lost.

        Args:
            early: Also what was accepted just now.
            doubtful: Also submit those again of which nobody can know whether they were decided.

        Raises:
            BrokerError: It cannot be reached; what was not looked for is, later.
            LedgerError: The file cannot be read or written.
        """
        done = Reconciled()
        tenant, began = self._subjects.tenant, self.ledger.now()
        while entries := await self.ledger.claim(tenant, BATCH, began=began, early=early, doubtful=doubtful):
            await self._look_for(entries, done)
        return done

    async def _look_for(self, entries: list[Entry], done: Reconciled) -> None:
        """Whatever moves on meanwhile is found: first upstream, then downstream, the slot last."""
        await self._ensure()
        entries = await self._undecided(entries, done)
        entries = await self._missing_where_stored(entries, done)
        if not entries:
            return
        held = await self._held()
        for entry in entries:
            if entry.task_id in held:
                entry.sequence = held[entry.task_id]
                done.waiting.append(entry.task_id)
        found = [entry for entry in entries if entry.task_id in held]
        await self._confirm(found)
        entries = await self._undecided([entry for entry in entries if entry.task_id not in held], done)
        for entry in entries:
            await self._submit_again(entry, done)

    async def _ensure(self) -> None:
        """Make the streams again if they are gone altogether: what is not there cannot be read."""
        for name in (TASKS, RESULTS):
            if await self._transport.stream_info(name) is None:
                for spec in SPECS:
                    await self._transport.ensure_stream(named(self._transport, spec))

    async def _undecided(self, entries: list[Entry], done: Reconciled) -> list[Entry]:
        left = []
        for some in _portions(entries):
            slots = await asyncio.gather(*(slot.read(self._transport, self._subjects, e.task_id) for e in some))
            for entry, decided in zip(some, slots, strict=True):
                if decided is None:
                    left.append(entry)
                else:
                    done.decided.append(entry.task_id)
                    self.ledger.decided(entry.tenant, entry.task_id)
        return left

    async def _missing_where_stored(self, entries: list[Entry], done: Reconciled) -> list[Entry]:
        """Those that are not where the broker put them; the others are confirmed to wait."""
        missing = []
        for some in _portions(entries):
            found = await asyncio.gather(*map(self._is_where_stored, some))
            there = [entry for entry, here in zip(some, found, strict=True) if here]
            done.waiting += [entry.task_id for entry in there]
            await self._confirm(there)
            missing += [entry for entry, here in zip(some, found, strict=True) if not here]
        return missing

    async def _is_where_stored(self, entry: Entry) -> bool:
        if not entry.sequence or entry.state == "submitting" or self._is_delayed(entry):
            return False
        stored = await self._transport.get_message(TASKS, entry.sequence)
        return stored is not None and _task_id(stored) == entry.task_id and self._is_ours(stored)

    def _is_ours(self, stored: StoredMessage) -> bool:
        door = self._subjects.task_door()
        return stored.subject == door or stored.subject.startswith(f"{door}.")

    def _is_delayed(self, entry: Entry) -> bool:
        return entry.subject == self._subjects.schedule(entry.task_id)

    async def _confirm(self, entries: Iterable[Entry]) -> None:
        """They are known to be undecided now."""
        for entry in entries:
            entry.state = "accepted"
        await asyncio.gather(*map(self.ledger.update, entries))

    async def _held(self) -> dict[str, int]:
        """Id and, in the TASKS stream, sequence of all that waits or runs, in the order in which it moves on."""
        held: dict[str, int] = {}
        for body in [*await self._tasks.schedules.delayed(), *await self._tasks.schedules.due()]:
            held[body.task_id] = 0
        queues, door = self._subjects.all_tasks()
        for pattern in (door, queues):
            async for stored in self._queued(pattern):
                held[_task_id(stored)] = stored.sequence
        return held

    async def _queued(self, pattern: str) -> AsyncIterator[StoredMessage]:
        start, full = 1, True
        while full:
            page = await self._transport.messages(TASKS, pattern, start=start, limit=_PAGE)
            full = len(page) == _PAGE
            for stored in page:
                start = stored.sequence + 1
                yield stored

    # ------------------------------------------------------------ what is lost

    async def _submit_again(self, entry: Entry, done: Reconciled) -> None:
        never_confirmed = entry.state == "submitting"
        if entry.state == "accepted" and self.ledger.age(entry) > CERTAIN:
            entry.state = "doubtful"
            await self.ledger.update(entry)
            done.doubtful.append(entry.task_id)
            log.error("task %s is gone, and may have been decided: it is not submitted again", entry.task_id)
            return
        body = decode_task(entry.body)
        if body.is_late():
            verdict = ResultBody(entry.task_id, "expired", by=f"ledger:{new_id()}", task_type=body.task_type)
            await slot.decide(self._transport, self._subjects, verdict)
            self.ledger.decided(entry.tenant, entry.task_id)
            done.decided.append(entry.task_id)
            return
        try:
            entry.sequence = await self._publish(entry, never_confirmed)
        except StreamFullError:
            done.full.append(entry.task_id)
            return
        entry.state = "accepted"
        entry.resubmitted += 1
        await self.ledger.update(entry)
        done.resubmitted.append(entry.task_id)
        log.warning("task %s was %s: submitted again", entry.task_id, "never confirmed" if never_confirmed else "lost")

    async def _publish(self, entry: Entry, never_confirmed: bool) -> int:
        # What the broker confirmed once it would take for a duplicate; an unconfirmed submit may still be on its way.
        again = "" if never_confirmed else f"/again-{new_id()}"
        msg_id = f"{self._subjects.tenant}.{entry.task_id}{again}"
        if not self._is_delayed(entry):
            return (await self._transport.publish_durable(entry.subject, entry.body, msg_id=msg_id)).sequence
        await self._transport.ensure_stream(SCHEDULES)
        try:
            stored = await self._transport.publish_durable(
                entry.subject, entry.body, msg_id=msg_id, headers=entry.headers, expect_last=0
            )
        except SequenceConflictError:  # it is there
            return 0
        return stored.sequence


def _portions(entries: list[Entry]) -> Iterable[list[Entry]]:
    return (entries[first : first + _AT_ONCE] for first in range(0, len(entries), _AT_ONCE))


def _task_id(stored: StoredMessage) -> str:
    try:
        return decode_task(stored.data).task_id
    except InvalidMessageError:
        return ""
