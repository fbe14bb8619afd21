"""One memory service per tenant and broker: two files would each have half of the records.

Whoever serves has the lease `memory`, and says in it which file it serves. Another `agentmesh up` with another file is
refused the service for as long as it runs, even if the first one ends: it would answer as if nothing had ever been
remembered. It says so once, and runs everything else. To move the memory, move the file, and start that `up` again.

Another one with the same file waits and takes over: that is an `up` started again after it was killed, or a second one
on the same machine. The file has a lock of its own, so the lease decides who may try, and not who may write.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine

from agentmesh.lease import Holder, Lease
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport
from agentmesh.up.events import UpEvent, Warned

MEMORY = "memory"
"""Name of the lease."""

SETTLE_TIMEOUT = 10.0
"""Seconds to find out whether another memory service runs."""


class MemoryKeeper:
    """See the module.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        path: The file that would be served here.
        ttl: Whole seconds until the lease of one that was killed ends.
        begin: Starts the service and keeps it running.
        end: Stops it.
        emit: Told when the service is refused.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        path: str,
        *,
        ttl: float,
        begin: Callable[[], Awaitable[None]],
        end: Callable[[], Awaitable[None]],
        emit: Callable[[UpEvent], None],
    ) -> None:
        self._file = f"{socket.gethostname()}:{path}"
        self._lease = Lease(
            transport,
            subjects,
            MEMORY,
            ttl=ttl,
            about=self._file,
            on_gained=lambda: self._beside(self._serve()),
            on_other=lambda holder: self._beside(self._yield_to(holder)),
        )
        self._begin = begin
        self._end = end
        self._emit = emit
        self._serving = False
        self._changing = asyncio.Lock()
        self._work: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Serve if nobody else does; when this returns it is decided, and the service is up if it is ours."""
        await self._lease.start()
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT):
                await self._lease.settled()
        except TimeoutError:
            text = f"cannot find out whether another memory service runs: {self._lease.problem or 'no answer'}"
            hint = "it is started as soon as that is known; may this user use $KV.mesh_lease.> and make its stream?"
            self._emit(Warned(source=MEMORY, text=text, hint=hint))
        while self._work:
            await asyncio.gather(*self._work)

    async def stop(self) -> None:
        """Let go; the service is stopped by whoever stops the tree."""
        for work in self._work:
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self._lease.stop()

    async def _serve(self) -> None:
        async with self._changing:
            if not self._serving:
                self._serving = True
                await self._begin()

    async def _yield_to(self, holder: Holder) -> None:
        """Somebody else serves: not if it is dead and had our file, for good if it has another one."""
        if holder.about == self._file:
            if holder.seems_dead:
                await self._serve()
            return
        async with self._changing:
            await self._lease.stop()
            if self._serving:
                self._serving = False
                await self._end()
        text = (
            f"pid {holder.pid} on {holder.host} serves the memory of this tenant from {holder.about}; this one does not"
        )
        self._emit(Warned(source=MEMORY, text=text, hint="say so in mesh.toml: [memory] enabled = false"))

    def _beside(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="memory keeper")
        self._work.add(task)
        task.add_done_callback(self._work.discard)
