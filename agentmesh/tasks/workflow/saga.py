"""Steps that are undone, last one first, when a later one fails.

How a saga ended is decided once, in a slot of its own: completed, or failed and to be undone. From then on every run
comes to the same, so one that is killed while it undoes is gone on with by the next run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, TypeVarTuple, overload

import msgspec

from agentmesh.errors import (
    BrokerError,
    Retry,
    SagaNotUndoneError,
    SagaUndoneError,
    StepFailedError,
    WorkflowChangedError,
    WorkflowError,
)
from agentmesh.messages import Task, TaskPolicy
from agentmesh.tasks.wire import ResultBody, encode
from agentmesh.tasks.workflow.flow import undoing

if TYPE_CHECKING:
    from agentmesh.tasks.workflow.flow import Workflow

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

STEP_POLICY = TaskPolicy()
"""How a step is tried unless it says otherwise."""


class Saga:
    """Use it as `async with ctx.saga("trip") as saga:`.

    What leaves the block as an exception has the steps undone that `do` and `run` finished in it, last one first.
    Then `SagaUndoneError` is raised, or `SagaNotUndoneError`, which lists what could not be undone; a handler that
    lets one of them out makes its task a dead letter.

    Three things leave the block without any of that, because the workflow will go on later: the handler is interrupted
    (stopped, drained, its process dies), it raises `Retry`, or the broker cannot be reached.
    """

    def __init__(self, flow: Workflow, name: str, undo_attempts: int) -> None:
        self.name = name
        self._flow = flow
        self._policy = TaskPolicy(max_attempts=undo_attempts, backoff=0.2, max_backoff=10.0)
        self._undos: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
        self._changed: list[str] = []
        self._outcome: ResultBody | None = None
        self._token: Token[bool] | None = None

    # ------------------------------------------------------------ doing

    @overload
    async def do(
        self,
        name: str,
        call: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        undo: Callable[[R], Any],
        max_attempts: int = ...,
        backoff: float = ...,
        timeout: float | None = ...,
    ) -> R: ...
    @overload
    async def do(
        self,
        name: str,
        call: Callable[[*Ts], R],
        /,
        *args: *Ts,
        undo: Callable[[R], Any],
        max_attempts: int = ...,
        backoff: float = ...,
        timeout: float | None = ...,
    ) -> R: ...
    async def do(
        self,
        name: str,
        call: Callable[[*Ts], Any],
        /,
        *args: *Ts,
        undo: Callable[..., Any],
        max_attempts: int = STEP_POLICY.max_attempts,
        backoff: float = STEP_POLICY.backoff,
        timeout: float | None = None,
    ) -> Any:
        """A step, as `TaskContext.step`, and how to undo it.

        A step that failed, or whose process died before its outcome was stored, is not undone by `undo`, which needs
        its result. Where it may have had its effect all the same, say `undo_with` before it.

        Args:
            name: The step's.
            call: Does it.
            args: For `call`.
            undo: Called with what `call` returned.
            max_attempts: As in `TaskContext.step`; undoing has the attempts of the saga.
            backoff: As in `TaskContext.step`.
            timeout: As in `TaskContext.step`.
        """
        policy = TaskPolicy(max_attempts=max_attempts, backoff=backoff)
        value = await self._noted(name, self._flow.step(name, call, args, policy, timeout))
        self._undos.append((name, undo, (value,)))
        return value

    async def run(
        self,
        task: Task[R],
        *,
        undo: Callable[[R], Any],
        to: str | None = None,
        name: str | None = None,
        priority: str | None = None,
    ) -> R:
        """A task, as `TaskContext.run`, and how to undo it: `undo` is called with its result."""
        name = name or type(task)._wire_name
        value = await self._noted(name, self._flow.run(task, to=to, name=name, priority=priority))
        self._undos.append((name, undo, (value,)))
        return value

    def undo_with(self, name: str, undo: Callable[[*Ts], Any], *args: *Ts) -> None:
        """Have `undo(*args)` called when the saga fails, whatever happens next.

        Say it before an effect whose outcome may be unknown; `undo` must do no harm where there is nothing to undo.
        """
        self._undos.append((name, undo, args))

    async def _noted(self, name: str, work: Coroutine[Any, Any, R]) -> R:
        """What other code has done under this name, this code cannot undo."""
        try:
            return await work
        except WorkflowChangedError:
            self._changed.append(name)
            raise

    # ------------------------------------------------------------ the end

    async def __aenter__(self) -> Self:
        flow = self._flow
        flow.begin(self.name)
        self._outcome = await flow.journal.read(self.name, "saga")
        if self._outcome is None:
            await flow.mark_sagas()
            flow.teller.tell(self.name, "saga", "running", flow.journal.id(self.name))
        flow.open_sagas += 1
        self._token = undoing.set(undoing.get() or self._is_to_be_undone())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            undoing.reset(self._token)
        if isinstance(error, asyncio.CancelledError | BrokerError):
            return
        if isinstance(error, Retry) and not self._flow.desk.ended:  # a task that is decided is not tried again
            return
        if self._outcome is None:
            self._outcome = await self._decided(error)
        if self._is_to_be_undone():
            await self._undo(error)
        self._flow.open_sagas -= 1

    def _is_to_be_undone(self) -> bool:
        return self._outcome is not None and self._outcome.status != "completed"

    async def _decided(self, error: BaseException | None) -> ResultBody:
        flow = self._flow
        names = msgspec.Raw(encode([name for name, _, _ in self._undos]))
        if error is None:
            body = await flow.journal.decide(self.name, "saga", "completed", result=names)
        else:
            reason = str(error) if isinstance(error, WorkflowError) else f"{type(error).__name__}: {error}"
            body = await flow.journal.decide(self.name, "saga", "failed", result=names, reason=reason)
        flow.teller.tell(self.name, "saga", body.status, body.task_id, error=body.reason)
        return body

    async def _undo(self, error: BaseException | None) -> None:
        """Undo everything, going on where an earlier run ended.

        Raises:
            SagaUndoneError: It is done.
            SagaNotUndoneError: Not all of it.
        """
        assert self._outcome is not None
        undone, left = [], [f"{name} (done by other code than this)" for name in self._changed]
        for name, undo, args in reversed(self._undos):
            try:
                await self._flow.step(f"{name} (undo)", undo, args, self._policy, None, kind="undo")
                undone.append(name)
            except StepFailedError as failure:
                left.append(f"{name} ({failure.error_type}: {failure.message})")
        known = {name for name, _, _ in self._undos}
        left += [
            f"{name} (this run did not come to it again)"
            for name in msgspec.json.decode(self._outcome.result, type=list[str])
            if name not in known and name not in self._changed
        ]
        self._flow.open_sagas -= 1
        reason = self._outcome.reason
        if left:
            raise self._flow.final(SagaNotUndoneError(self.name, reason, left, undone)) from error
        raise self._flow.final(SagaUndoneError(self.name, reason, undone)) from error
