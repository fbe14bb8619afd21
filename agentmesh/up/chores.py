"""What has to be done once per tenant, although several `agentmesh up` run: the active supervisor does it.

All supervisors of a tenant at one broker want the lease `supervisor`; who has it is active, the others stand by. A
chore is a coroutine function that runs until it is cancelled: it is started when the lease is gained and cancelled
when it is lost, and started again when it fails. After SIGKILL of the active supervisor another one takes over within
the TTL + 0.5 s, after an orderly stop at once. One that was frozen finds its renewal refused when it goes on, and may
have acted a moment beside its successor: chores have to be idempotent.

Not everything needs this. The message door is a queue group, and the doors of tasks and of what is due are consumers
that any number may share, with every item handled by one of them. Those run at every supervisor: nothing has to be
taken over when one dies. Chores are what looks at everything at once: the stuck sweep, and what others `add`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from agentmesh import happenings
from agentmesh.lease import Holder, Lease
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport

log = logging.getLogger("agentmesh.up")

SUPERVISOR = "supervisor"
"""Name of the lease."""

RETRY_DELAY = 5.0
"""Seconds until a chore that failed is started again."""

Chore = Callable[[], Coroutine[Any, Any, None]]


class Chores:
    """See the module.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        about: Name of this supervisor, for people.
        ttl: Whole seconds until another supervisor takes over from one that was killed.
        on_change: Called with True when this supervisor has become the active one, with False when it is no longer,
            or when another one is seen to be.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        *,
        about: str,
        ttl: float,
        on_change: Callable[[bool], None] = lambda active: None,
    ) -> None:
        self.lease = Lease(
            transport,
            subjects,
            SUPERVISOR,
            ttl=ttl,
            about=about,
            on_gained=self._on_gained,
            on_lost=self._on_lost,
            on_other=lambda holder: on_change(False),
        )
        self._transport = transport
        self._subjects = subjects
        self._about = about
        self._on_change = on_change
        self._chores: dict[str, Chore] = {}
        self._running: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> bool:
        """Whether this supervisor does the chores now."""
        return self.lease.held

    @property
    def holder(self) -> Holder | None:
        """The active supervisor, as far as is known."""
        return self.lease.holder

    def add(self, name: str, chore: Chore) -> None:
        """Have `chore` done by the active supervisor. Before `start`."""
        self._chores[name] = chore

    async def start(self) -> None:
        """Stand for election."""
        await self.lease.start()

    async def stop(self) -> None:
        """Stop the chores, and let another supervisor do them at once."""
        await self._cancel()
        await self.lease.stop()
        await self._cancel()

    # ------------------------------------------------------------ inside
    def _on_gained(self) -> None:
        for name, chore in self._chores.items():
            self._begin(self._keep_doing(name, chore), f"chore {name}")
        if self.lease.previous is not None:
            self._begin(self._record(self.lease.previous), "record the fail-over")
        self._on_change(True)

    def _on_lost(self, reason: str) -> None:
        for chore in self._running:
            chore.cancel()
        self._on_change(False)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _keep_doing(self, name: str, chore: Chore) -> None:
        while True:
            try:
                await chore()
                return
            except Exception:  # a chore that fails must not end the others, nor the supervisor
                log.exception("chore %s failed; trying again", name)
            await asyncio.sleep(RETRY_DELAY)

    async def _record(self, before: Holder) -> None:
        """Tell who is active now. Told by whoever takes over: the one before may not be able to."""
        document = {
            "from": {"about": before.about, "host": before.host, "pid": before.pid, "token": before.token},
            "about": self._about,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": self.lease.token,
        }
        await happenings.record(self._transport, self._subjects, "failover", SUPERVISOR, document)

    async def _cancel(self) -> None:
        running = list(self._running)
        for chore in running:
            chore.cancel()
        await asyncio.gather(*running, return_exceptions=True)
