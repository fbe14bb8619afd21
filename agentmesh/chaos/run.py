"""One run: servers and processes are started, faults strike, and when they are over everything must come to rest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentmesh.chaos import evidence as evidence_of
from agentmesh.chaos.checker import Checker
from agentmesh.chaos.cluster import Rig
from agentmesh.chaos.disk import Disk, disks
from agentmesh.chaos.evidence import Evidence, Watcher
from agentmesh.chaos.faults import Faults, Scene
from agentmesh.chaos.history import Entry, Recorder, Tail
from agentmesh.chaos.members import Member, gone
from agentmesh.chaos.plan import Fault
from agentmesh.chaos.processes import resident_bytes
from agentmesh.chaos.raw import Stored
from agentmesh.chaos.report import Report, report
from agentmesh.chaos.workload import Setting, Shape, members, prepare, reader
from agentmesh.errors import BrokerError
from agentmesh.ids import new_id

READY = 30.0
"""Seconds in which all processes must be up before the first fault."""

ORPHAN_GRACE = 5.0
"""Seconds in which what belonged to a killed process must be gone."""

STOP_GRACE = 12.0
"""Seconds that a worker or an `agentmesh up` has to stop at the end."""

Told = Callable[[str], None]
"""Called with a line for people whenever something happens."""


@dataclass(frozen=True)
class Options:
    """What a run is."""

    seed: int
    seconds: float
    """Of load, with faults."""
    faults: Sequence[Fault] = ()
    servers: int = 1
    shape: Shape = field(default_factory=Shape)
    without: tuple[str, ...] = ()
    ack_wait: float = 2.0
    patience: float = 30.0
    """Seconds in which everything must come to rest after the last fault."""
    disk_mb: int = 0
    """Size of a disk of its own for each server, which can fail; 0: none. Needs root."""
    settled_may_stay: bool = False
    """A full disk makes the broker keep messages in a queue that their consumer has settled: nobody gets them again."""
    keep: Path | None = None
    """Where histories, logs and stores stay; None: they are removed when every promise was kept."""


async def run(options: Options, told: Told = lambda line: None) -> Report:
    """Carry out a run and judge it. Cancelling stops all its processes, and only those.

    Args:
        options: What to do.
        told: For progress.
    """
    folder = Path(tempfile.mkdtemp(prefix="agentmesh-chaos-")) if options.keep is None else options.keep.absolute()
    (folder / "history").mkdir(parents=True, exist_ok=True)
    try:
        async with _servers(options, folder) as rig:
            found = await _Run(options, told, rig, folder).carry_out()
    except asyncio.CancelledError:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    violations = Checker(found).violations()
    made = report(found, violations, options.seed, str(folder))
    (folder / "report.json").write_text(json.dumps(made.document(), indent=1))
    if options.keep is None and not violations:
        shutil.rmtree(folder, ignore_errors=True)
    return made


@contextlib.asynccontextmanager
async def _servers(options: Options, folder: Path) -> AsyncIterator[Rig]:
    stores = [folder / "servers" / f"n{number + 1}" for number in range(options.servers)]
    async with contextlib.AsyncExitStack() as stack:
        medium: list[Disk] = []
        if options.disk_mb:
            medium = await stack.enter_async_context(disks(options.servers, options.disk_mb))
            stores = [disk.path / "store" for disk in medium]
        sync = "sync" not in options.without
        yield await stack.enter_async_context(Rig(options.servers, stores=stores, disks=medium, sync_always=sync))


class _Run:
    def __init__(self, options: Options, told: Told, rig: Rig, folder: Path) -> None:
        self._options = options
        self._told = told
        self._rig = rig
        self._record = Recorder(folder / "history", "chaos")
        self._setting = Setting(
            folder=folder,
            urls=rig.urls,
            tenant=f"chaos-{new_id()}",
            replicas=rig.replicas,
            seed=options.seed,
            ack_wait=options.ack_wait,
            without=options.without,
        )
        self._members = members(self._setting, options.shape, self._record)
        self._watcher = Watcher([server.url for server in rig.servers], self._setting.tenant)
        self._evidence = Evidence(ack_wait=options.ack_wait, patience=options.patience)
        self._beside: set[asyncio.Task[None]] = set()
        self._tail = Tail(self._setting.history)
        self._history: list[Entry] = []
        self._ready: dict[int, int] = {}
        """Processes that reported to be ready, and their parents."""
        self._finished: set[str] = set()

    async def carry_out(self) -> Evidence:
        """From the start of the processes to the last look at the streams."""
        try:
            await self._begin()
            await self._strike()
            await self._come_to_rest()
            await self._read_again()
            await self._stop_members()
            self._evidence.results = await self._results()
        finally:
            for task in self._beside:
                task.cancel()
            await asyncio.gather(*self._beside, return_exceptions=True)
            await asyncio.gather(*(member.end() for member in self._everybody()))
        self._evidence.seen = self._watcher.seen
        self._know()
        self._evidence.history = sorted(self._history, key=lambda entry: float(entry["mono"]))
        evidence_of.save(self._evidence, self._setting.folder)
        return self._evidence

    # ------------------------------------------------------------ phases

    async def _begin(self) -> None:
        self._told("starting servers, workers, supervisors and submitters")
        await prepare(self._setting, [server.url for server in self._rig.servers])
        for member in self._everybody():
            member.begin()
        for supervisor in self._members["supervisor"]:
            supervisor.on_exit = self._look_for_orphans
        shape = self._options.shape
        await self._all_ready(shape.workers + shape.supervisors + shape.submitters)
        self._do_beside(self._watcher.watch())
        self._do_beside(self._sample_memory())

    async def _all_ready(self, count: int) -> None:
        end = time.monotonic() + READY
        while len(self._ready) < count:
            self._know()
            for member in self._everybody():
                member.check()
            if time.monotonic() > end:
                raise BrokerError(f"not everything was up within {READY:g} s; see the logs in {self._setting.folder}")
            await asyncio.sleep(0.1)

    async def _strike(self) -> None:
        self._record.write("load begins")
        scene = Scene(self._rig, self._members, self._record)
        ends = time.monotonic() + self._options.seconds
        await Faults(scene, lambda fault, target: self._told(f"{fault}  {target}")).run(list(self._options.faults))
        await asyncio.sleep(max(0.0, ends - time.monotonic()))
        self._record.write("faults end")

    async def _come_to_rest(self) -> None:
        """Faults are over and submitters submit no more: now everything must finish."""
        self._told(f"no more faults: everything must come to rest, within {self._options.patience:g} s")
        began = time.monotonic()
        for submitter in self._members["submitter"]:
            submitter.finish()
        while time.monotonic() < began + self._options.patience:
            with contextlib.suppress(BrokerError):
                self._evidence.left = await self._watcher.left()
                waiting = [one for one in self._members["submitter"] if not await one.ended(0.0)]
                if not waiting and not self._unsettled():
                    self._evidence.drained = time.monotonic() - began
                    return
            await asyncio.sleep(0.2)

    def _unsettled(self) -> bool:
        """Whether there is still something to do."""
        left = self._evidence.left
        return any(what.startswith("unsettled") for what in left) or bool(left and not self._options.settled_may_stay)

    async def _read_again(self) -> None:
        """Somebody else reads every result."""
        self._told("a process of its own reads every result again; then everything is stopped and judged")
        decided = {stored.subject.rpartition(".")[2] for stored in await self._results()}
        one = reader(self._setting, sorted(decided), self._record)
        one.begin()
        end = time.monotonic() + self._options.patience
        while "reader" not in self._finished and time.monotonic() < end:
            await asyncio.sleep(0.1)
            self._know()
        await one.end()

    async def _stop_members(self) -> None:
        self._know()
        for member in self._everybody():
            member.finish()
        stopped = await asyncio.gather(*(member.ended(STOP_GRACE) for member in self._everybody()))
        for member, well in zip(self._everybody(), stopped, strict=True):
            if not well and member not in self._members["submitter"]:
                self._evidence.orphans.append(f"{member.role} did not stop within {STOP_GRACE:g} s of SIGTERM")
        await asyncio.gather(*(member.end() for member in self._everybody()))
        for pid in await gone(list(self._ready), ORPHAN_GRACE):
            self._evidence.orphans.append(f"process {pid} is alive after all that could own it were stopped")

    # ------------------------------------------------------------ parts

    def _everybody(self) -> list[Member]:
        return [member for group in self._members.values() for member in group]

    def _do_beside(self, work: Coroutine[Any, Any, None]) -> None:
        self._beside.add(asyncio.get_running_loop().create_task(work))

    def _know(self) -> None:
        """Take note of what the processes wrote."""
        for entry in self._tail.more():
            self._history.append(entry)
            if entry["kind"] == "ready":
                self._ready[entry["pid"]] = entry.get("parent", 0)
            elif entry["kind"] == "finished":
                self._finished.add(entry["role"])

    async def _sample_memory(self) -> None:
        while True:
            self._know()
            for pid in self._ready:
                if size := resident_bytes(pid):
                    self._record.write("memory", child=pid, bytes=size)
            await asyncio.sleep(1.0)

    def _look_for_orphans(self, parent: int) -> None:
        self._do_beside(self._find_orphans(parent))

    async def _find_orphans(self, parent: int) -> None:
        self._know()
        mine = [pid for pid, owner in self._ready.items() if owner == parent]
        for pid in await gone(mine, ORPHAN_GRACE):
            self._evidence.orphans.append(f"process {pid} outlived its `agentmesh up` ({parent}) by {ORPHAN_GRACE:g} s")

    async def _results(self) -> list[Stored]:
        """All results; a server that is still finding its peers is asked again."""
        end = time.monotonic() + self._options.patience
        while True:
            try:
                return await self._watcher.results()
            except BrokerError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)
