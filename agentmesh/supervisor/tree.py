"""Supervisors: children that are started in order, started again when they fail, and stopped in reverse order.

    async def greeter() -> Child: ...

    supervisor = Supervisor("web", strategy="rest_for_one")
    await supervisor.start([ChildSpec("store", store), ChildSpec("greeter", greeter)])
    await supervisor.wait()  # until somebody stops it, or until it gives up
    await supervisor.stop()

A child is anything that can be stopped and waited for: a process, an agent, or another supervisor. When a child fails
more often than the policy allows, the supervisor stops all its children and ends with `RestartIntensityError`; the
supervisor above it then sees a failed child and decides in its turn.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agentmesh.errors import AgentMeshError, ConfigError, RestartIntensityError, SupervisionError
from agentmesh.supervisor.policy import Intensity, RestartPolicy

log = logging.getLogger("agentmesh.supervisor")

RESTART_TYPES = ("permanent", "transient", "temporary")
"""Started again always, after a failure, or never."""

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
"""Who is restarted with a failed child: nobody, all its siblings, or those started after it."""

AutoShutdown = Literal["never", "any_significant", "all_significant"]
"""Whether a supervisor ends in good order when one, or the last, of its significant children has ended by itself."""

EventKind = Literal["started", "exited", "restarting", "gave_up", "stopped", "shut_down"]

STOP_MARGIN = 2.0
"""Seconds beyond its `shutdown_timeout` after which a child that does not return from `stop` is abandoned."""


@dataclass(frozen=True)
class Exit:
    """How a child ended. Without an error it ended in good order."""

    error: BaseException | None = None
    detail: str = ""

    def __str__(self) -> str:
        if self.error is None:
            return self.detail or "ended"
        kind = "" if isinstance(self.error, AgentMeshError) else f"{type(self.error).__name__}: "
        return f"{kind}{self.error}"


class Child(Protocol):
    """What a supervisor needs of a running child."""

    async def stop(self, timeout: float) -> None:
        """End it in good order within `timeout` seconds, and by force after that.

        Also called, with 0, when the child has ended by itself and is not started again.
        """

    async def wait(self) -> Exit:
        """Wait for the end of the child. May be cancelled, which changes nothing for the child."""


@dataclass(frozen=True)
class ChildSpec:
    """How to start a child, and what to do when it ends."""

    name: str
    start: Callable[[], Awaitable[Child]]
    """Returns when the child is up, or raises. When it is cancelled, nothing of the child may be left."""
    restart: str = "permanent"
    """`permanent`, `transient` or `temporary`: started again always, after a failure, or never."""
    shutdown_timeout: float = 10.0
    """Seconds for an orderly stop before force is used; `inf` for supervisors, whose children have their own."""
    significant: bool = False
    """Its end may end the supervisor: see `AutoShutdown`. Not for a permanent child, which never ends by itself."""

    def __post_init__(self) -> None:
        if self.restart not in RESTART_TYPES:
            raise ConfigError("restart", f"{self.restart!r}: expected one of {', '.join(RESTART_TYPES)}")
        if self.significant and self.restart == "permanent":
            raise ConfigError("significant", f"{self.name} is permanent: it would be restarted, and never end")

    def wants_restart(self, exit: Exit) -> bool:
        """Whether this child is to be started again after such an end."""
        return self.restart == "permanent" or (self.restart == "transient" and exit.error is not None)


@dataclass(frozen=True)
class SupervisorEvent:
    """Something happened to a child."""

    kind: EventKind
    supervisor: str
    child: str
    detail: str = ""
    restarts: int = 0


@dataclass(frozen=True)
class ChildInfo:
    """A child as it is now."""

    name: str
    state: Literal["starting", "running", "restarting", "ended"]
    restarts: int
    child: Child | None


class _Entry:
    """A place in the tree; the child in it changes with every restart."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.state: Literal["starting", "running", "restarting", "ended"] = "starting"
        self.child: Child | None = None
        self.last: Child | None = None
        """The last one that ran; what it still holds is let go when it is not started again."""
        self.watcher: asyncio.Task[None] | None = None
        self.restarts = 0


class Supervisor:
    """See the module. Itself a child, so that trees nest.

    Args:
        name: For events and logs.
        policy: How often its children, taken together, may be restarted.
        strategy: Who is restarted with a failed child.
        auto_shutdown: Whether the end of significant children ends the supervisor.
        parallel: The children do not need each other, so they are stopped at the same time.
        on_event: Called with everything that happens to a child; must not block.
        on_escalation: Called when the supervisor has given up, after all its children were stopped.
    """

    def __init__(
        self,
        name: str,
        *,
        policy: RestartPolicy | None = None,
        strategy: Strategy = "one_for_one",
        auto_shutdown: AutoShutdown = "never",
        parallel: bool = False,
        on_event: Callable[[SupervisorEvent], None] | None = None,
        on_escalation: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.name = name
        self.policy = policy or RestartPolicy()
        self._strategy = strategy
        self._auto_shutdown = auto_shutdown
        self._parallel = parallel
        self._on_event = on_event
        self._on_escalation = on_escalation
        self._intensity = Intensity(self.policy)
        self._entries: dict[str, _Entry] = {}
        # Each task brings back the children it maps to, after a pause.
        self._restarts: dict[asyncio.Task[None], list[_Entry]] = {}
        self._lock = asyncio.Lock()  # held by whoever changes the tree
        self._over: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    # ------------------------------------------------------------ from outside
    async def start(self, specs: Iterable[ChildSpec] = ()) -> None:
        """Start children in order. If one cannot be started, those before it are stopped again.

        Raises:
            Exception: What the first start that failed raised.
        """
        try:
            for spec in specs:
                await self.add(spec)
        except BaseException:
            await self.stop()
            raise

    async def add(self, spec: ChildSpec, *, patient: bool = False) -> None:
        """Start one more child, after those that are there. Several may be added at the same time.

        Args:
            spec: The child.
            patient: A first start that fails is treated like any other end: tried again as the policy says.

        Raises:
            SupervisionError: There is a child of that name, or the supervisor is over.
            Exception: What the start raised; the child is forgotten. Not when `patient`.
        """
        entry = self._enter(spec)
        try:
            child = await spec.start()
        except Exception as error:  # the child's own code: the caller or the policy decides
            if not patient:
                self._entries.pop(spec.name, None)
                raise
            async with self._lock:
                if self._entries.get(spec.name) is entry:
                    await self._failed(entry, Exit(error))
            return
        except BaseException:
            self._entries.pop(spec.name, None)
            raise
        if self._entries.get(spec.name) is not entry:  # stopped meanwhile
            await self._stop_one(spec, child)
            return
        self._run(entry, child)

    def adopt(self, spec: ChildSpec, child: Child) -> None:
        """Supervise a child that runs already.

        Raises:
            SupervisionError: There is a child of that name, or the supervisor is over.
        """
        self._run(self._enter(spec), child)

    async def remove(self, name: str) -> None:
        """Stop a child and forget it.

        Raises:
            SupervisionError: There is no such child.
        """
        async with self._lock:
            entry = self._entry(name)
            await self._take(entry)
            self._entries.pop(name, None)

    async def restart_child(self, name: str) -> None:
        """Stop a child, start it again, and return when it is up. Does not count against the policy.

        Raises:
            SupervisionError: There is no such child.
            Exception: What the start raised; it is tried again as the policy says.
        """
        async with self._lock:
            entry = self._entry(name)
            await self._take(entry)
            entry.state = "restarting"
            try:
                child = await entry.spec.start()
            except Exception as error:
                await self._failed(entry, Exit(error))
                raise
            entry.restarts += 1
            self._run(entry, child)

    async def release(self) -> None:
        """Stop supervising; the children stay as they are. Restarts that are due do not happen any more."""
        async with self._lock:
            await self._calm(list(self._entries.values()))
            for entry in self._entries.values():
                _unwatch(entry)
            self._finish(Exit(detail="released"))

    async def stop(self, timeout: float | None = None) -> None:
        """Stop all children, last started first. Does nothing when the supervisor is over.

        Args:
            timeout: Seconds for each child before force is used; None takes the `shutdown_timeout` of each.
        """
        async with self._lock:
            await self._stop_all(timeout)
            self._finish(Exit(detail="stopped"))

    async def wait(self) -> Exit:
        """Wait until it was stopped, shut itself down, or gave up: then the exit holds the `RestartIntensityError`."""
        return await asyncio.shield(self._over)

    def children(self) -> list[ChildInfo]:
        """The children in the order they were started."""
        return [ChildInfo(e.spec.name, e.state, e.restarts, e.child) for e in self._entries.values()]

    # ------------------------------------------------------------ the life of a child
    def _enter(self, spec: ChildSpec) -> _Entry:
        if self._over.done():
            raise SupervisionError(f"supervisor {self.name!r} has ended")
        if spec.name in self._entries:
            raise SupervisionError(f"supervisor {self.name!r} has a child {spec.name!r} already")
        if spec.significant and self._auto_shutdown == "never":
            raise SupervisionError(
                f"{spec.name!r} is significant, but supervisor {self.name!r} never shuts itself down"
            )
        entry = self._entries[spec.name] = _Entry(spec)
        return entry

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise SupervisionError(f"supervisor {self.name!r} has no child {name!r}")
        return entry

    def _run(self, entry: _Entry, child: Child) -> None:
        entry.child, entry.last, entry.state = child, child, "running"
        name = f"{self.name}: watch {entry.spec.name}"
        entry.watcher = asyncio.get_running_loop().create_task(self._watch(entry, child), name=name)
        self._tell("started", entry)

    async def _watch(self, entry: _Entry, child: Child) -> None:
        try:
            exit = await child.wait()
        except Exception as error:  # a child that cannot even be watched has failed
            exit = Exit(error)
        async with self._lock:
            if entry.child is child and not self._over.done():
                entry.child = entry.watcher = None
                await self._failed(entry, exit)

    async def _failed(self, entry: _Entry, exit: Exit, unstarted: Sequence[_Entry] = ()) -> None:
        """A child ended: forget it, bring it back with those that go with it, or give up. Needs the lock."""
        entry.state = "ended"
        self._tell("exited", entry, str(exit))
        if not entry.spec.wants_restart(exit):
            await self._let_go(entry)
            if entry.spec.restart == "temporary":
                self._entries.pop(entry.spec.name, None)
            if self._is_to_shut_down(entry):
                await self._shut_down(entry, exit)
            return
        nth = self._intensity.count(asyncio.get_running_loop().time())
        if not nth:
            await self._escalate(entry, exit)
            return
        affected = await self._calm([*self._siblings(entry), *unstarted])
        for sibling in reversed(affected):
            await self._halt(sibling)
            if sibling.spec.restart == "temporary":
                self._entries.pop(sibling.spec.name, None)
        again = [sibling for sibling in affected if sibling.spec.restart != "temporary"]
        self._tell("restarting", entry, str(exit))
        self._bring_back(again, self.policy.delay(nth))

    def _is_to_shut_down(self, ended: _Entry) -> bool:
        """Whether the end of this child, by itself and for good, ends all."""
        if not ended.spec.significant:
            return False
        others = (other for other in self._entries.values() if other is not ended and other.spec.significant)
        return self._auto_shutdown == "any_significant" or all(other.state == "ended" for other in others)

    async def _shut_down(self, entry: _Entry, exit: Exit) -> None:
        """In good order, as if somebody had stopped it: a transient supervisor is not started again for it."""
        await self._stop_all(None)
        self._finish(Exit(detail=f"shut down, because {entry.spec.name} ended: {exit}"))
        self._tell("shut_down", entry, str(exit))

    def _siblings(self, entry: _Entry) -> list[_Entry]:
        """The child and those that are restarted with it."""
        if self._strategy == "one_for_one":
            return [entry]
        entries = list(self._entries.values())
        return entries if self._strategy == "one_for_all" else entries[entries.index(entry) :]

    async def _calm(self, entries: list[_Entry]) -> list[_Entry]:
        """Cancel the restarts that concern these children; all children concerned, in the order of the tree."""
        concerned = set(map(id, entries))
        current = asyncio.current_task()
        for restart, waiting in list(self._restarts.items()):
            if restart is not current and concerned & set(map(id, waiting)):
                restart.cancel()
                await asyncio.wait([restart])
                concerned |= set(map(id, waiting))
        return [entry for entry in self._entries.values() if id(entry) in concerned]

    async def _take(self, entry: _Entry) -> None:
        """Stop one child and keep it stopped; those whose restart was due with it are still restarted."""
        others = [other for other in await self._calm([entry]) if other is not entry and other.child is None]
        await self._halt(entry)
        if others:
            self._bring_back(others, 0.0)

    def _bring_back(self, entries: list[_Entry], delay: float) -> None:
        for entry in entries:
            entry.state = "restarting"
        restart = asyncio.get_running_loop().create_task(self._restart(entries, delay), name=f"{self.name}: restart")
        self._restarts[restart] = entries
        restart.add_done_callback(lambda task: self._restarts.pop(task, None))

    async def _restart(self, entries: list[_Entry], delay: float) -> None:
        await asyncio.sleep(delay)
        for position, entry in enumerate(entries):
            entry.restarts += 1
            try:
                child = await entry.spec.start()
            except Exception as error:  # the child's own code: one more failure
                async with self._lock:
                    await self._failed(entry, Exit(error), entries[position + 1 :])
                return
            self._run(entry, child)

    async def _escalate(self, entry: _Entry, exit: Exit) -> None:
        error = RestartIntensityError(entry.spec.name, self.policy.max_restarts, self.policy.period, str(exit))
        self._tell("gave_up", entry, str(exit))
        await self._let_go(entry)
        await self._stop_all(None)
        self._finish(Exit(error, str(error)))
        if self._on_escalation is not None:
            self._on_escalation(error)

    # ------------------------------------------------------------ the end
    async def _stop_all(self, timeout: float | None) -> None:
        await self._calm(list(self._entries.values()))
        entries = list(reversed(self._entries.values()))
        if self._parallel:
            await asyncio.gather(*(self._halt(entry, timeout) for entry in entries))
        else:
            for entry in entries:
                await self._halt(entry, timeout)
        self._entries.clear()

    async def _halt(self, entry: _Entry, timeout: float | None = None) -> None:
        """Stop a child if it runs."""
        _unwatch(entry)
        child, entry.child, entry.state = entry.child, None, "ended"
        if child is not None:
            await self._stop_one(entry.spec, child, timeout)
            self._tell("stopped", entry)

    async def _let_go(self, entry: _Entry) -> None:
        """A child that has ended for good, such as an agent whose mailbox would else outlive it."""
        last, entry.last = entry.last, None
        if last is not None:
            await self._stop_one(entry.spec, last, 0.0)

    async def _stop_one(self, spec: ChildSpec, child: Child, timeout: float | None = None) -> None:
        patience = spec.shutdown_timeout if timeout is None else min(timeout, spec.shutdown_timeout)
        try:
            async with asyncio.timeout(None if patience == math.inf else patience + STOP_MARGIN):
                await child.stop(patience)
        except TimeoutError:
            log.error("%s: %s did not stop within %g s; going on without it", self.name, spec.name, patience)
        except Exception:  # the child's own code: its siblings must be stopped all the same
            log.exception("%s: %s failed while it was stopped", self.name, spec.name)

    def _finish(self, exit: Exit) -> None:
        if not self._over.done():
            self._over.set_result(exit)

    def _tell(self, kind: EventKind, entry: _Entry, detail: str = "") -> None:
        if self._on_event is not None:
            self._on_event(SupervisorEvent(kind, self.name, entry.spec.name, detail, entry.restarts))


def _unwatch(entry: _Entry) -> None:
    watcher, entry.watcher = entry.watcher, None
    if watcher is not None and watcher is not asyncio.current_task():
        watcher.cancel()
