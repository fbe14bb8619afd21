"""Several things of a workflow at a time: `gather` waits for all, `race` for the first that succeeds."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh.errors import AgentMeshError, BrokerError, RaceFailedError, Retry, WorkflowEndedError
from agentmesh.tasks.wire import ResultBody, encode
from agentmesh.tasks.workflow.flow import children

if TYPE_CHECKING:
    from agentmesh.tasks.workflow.flow import Workflow


class Verdict(msgspec.Struct):
    """Content of the slot of a race."""

    winner: int
    """Position of the branch; -1 if none succeeded."""
    losers: list[str]
    """Ids of the tasks that the other branches had submitted."""
    errors: list[str] = []


_read = msgspec.json.Decoder(Verdict).decode


async def gather(flow: Workflow, branches: Sequence[Awaitable[Any]]) -> tuple[Any, ...]:
    """See `TaskContext.gather`."""
    strands = [_strand(flow, branch) for branch in branches]
    try:
        await _settled(strands)
    finally:
        await _ended(strands)
    for strand in strands:
        if strand.cancelled():
            raise asyncio.CancelledError
        if (error := strand.exception()) is not None:
            raise error
    return tuple(strand.result() for strand in strands)


async def race(flow: Workflow, branches: Sequence[Awaitable[Any]], name: str) -> Any:
    """See `TaskContext.race`."""
    flow.begin(name)
    if not branches:
        raise ValueError("a race needs at least one branch")
    fingerprint = f"race of {len(branches)}"
    try:
        body = await flow.journal.read(name, fingerprint)
    except BaseException:
        _close(branches)
        raise
    if body is not None:
        return await _replayed(flow, branches, name, _read(body.result))
    flow.teller.tell(name, "race", "running", flow.journal.id(name))
    noted: list[list[str]] = [[] for _ in branches]
    strands = [_strand(flow, branch, notes) for branch, notes in zip(branches, noted, strict=True)]
    try:
        winner = await _first(strands)
        body = await flow.journal.decide(
            name,
            fingerprint,
            "completed" if winner >= 0 else "failed",
            result=msgspec.Raw(encode(_verdict(winner, strands, noted))),
        )
    finally:
        await _ended(strands)
    return await _concluded(flow, name, body, winner, strands)


async def _concluded(flow: Workflow, name: str, body: ResultBody, winner: int, strands: list[asyncio.Task[Any]]) -> Any:
    verdict = _read(body.result)
    flow.teller.tell(name, "race", body.status, body.task_id, error="; ".join(verdict.errors))
    await flow.cancel_children(verdict.losers)
    if verdict.winner != winner:  # a run that was taken for dead went on, and decided it
        raise Retry(0.0, f"another run of this workflow decided {name!r} otherwise")
    if winner < 0:
        raise flow.final(RaceFailedError(name, verdict.errors))
    return strands[winner].result()


async def _replayed(flow: Workflow, branches: Sequence[Awaitable[Any]], name: str, verdict: Verdict) -> Any:
    """Only the branch that won is passed once more, for its value; its steps are recorded."""
    _close([branch for index, branch in enumerate(branches) if index != verdict.winner])
    await flow.cancel_children(verdict.losers)  # the first run may have died before it could
    if verdict.winner < 0:
        raise flow.final(RaceFailedError(name, verdict.errors))
    return await branches[verdict.winner]


def _strand(flow: Workflow, branch: Awaitable[Any], notes: list[str] | None = None) -> asyncio.Task[Any]:
    async def run() -> Any:
        if notes is not None:
            children.set(notes)
        return await branch

    strand = asyncio.get_running_loop().create_task(run(), name=f"branch of {flow.task_id}")
    flow.seat.add(strand)
    return strand


async def _settled(strands: Sequence[asyncio.Task[Any]]) -> None:
    if strands:
        await asyncio.wait(strands)


async def _first(strands: list[asyncio.Task[Any]]) -> int:
    """Position of the first branch that succeeds; -1 when none does.

    Raises:
        BrokerError, WorkflowEndedError: That of a branch: it says nothing about who wins.
    """
    pending = set(strands)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for index, strand in enumerate(strands):
            if strand not in done or strand.cancelled():
                continue
            error = strand.exception()
            if error is None:
                return index
            if isinstance(error, BrokerError | WorkflowEndedError):
                raise error
    return -1


def _verdict(winner: int, strands: list[asyncio.Task[Any]], noted: list[list[str]]) -> Verdict:
    losers = [task_id for index, notes in enumerate(noted) if index != winner for task_id in notes]
    return Verdict(winner, losers, [] if winner >= 0 else [_told(strand) for strand in strands])


def _told(strand: asyncio.Task[Any]) -> str:
    error = asyncio.CancelledError("it was cancelled") if strand.cancelled() else strand.exception()
    return str(error) if isinstance(error, AgentMeshError) else f"{type(error).__name__}: {error}"


async def _ended(strands: list[asyncio.Task[Any]]) -> None:
    for strand in strands:
        strand.cancel()
    await asyncio.gather(*strands, return_exceptions=True)


def _close(branches: Sequence[Awaitable[Any]]) -> None:
    """They are not run: say so to Python, which warns of coroutines that nobody awaits."""
    for branch in branches:
        if inspect.iscoroutine(branch):
            branch.close()
