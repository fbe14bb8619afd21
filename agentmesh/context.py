"""What a handler knows about the message it is working on, and what its own messages inherit.

While a handler runs, `current()` is its `Context`. The client reads it, so that what a handler sends belongs to the
same call tree:

| inherited            | by requests and tool calls | by tasks                          | by events |
| -------------------- | -------------------------- | --------------------------------- | --------- |
| trace id, budgets    | yes                        | yes                               | yes       |
| one hop more         | yes                        | yes; detached: only with a budget | yes       |
| what is left of time | yes                        | yes, unless detached              |           |
| ends with the caller | yes                        | yes, unless detached              |           |
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from agentmesh.budgets import MAX_HOPS, Budget, Grants, deadline_of, earliest, grant, limits_depth, too_deep
from agentmesh.errors import CallDepthError
from agentmesh.ids import now
from agentmesh.trace import trace_id_of


class Attempt(Protocol):
    """What a tool call needs to know of the attempt that makes it; see `TaskContext`."""

    task_id: str

    async def fence(self) -> int: ...

    def step_key(self, tool: str, arguments: bytes) -> str: ...


@dataclass(slots=True)
class Context:
    """About the message at hand. Ask for it with a second parameter: `async def h(self, message, ctx: Context)`."""

    agent: str
    """The agent that handles the message."""
    sender: str
    """Who sent it; empty if the sender did not say."""
    message_id: str
    trace: str
    """The trace id, or the id of the message that begins the trace, which is made into one when somebody asks."""
    deadline: datetime | None = None
    """When the sender stops waiting (UTC); None if it does not wait."""
    hops: int = 0
    """Handlers the chain of messages went through before this one."""
    task_id: str = ""
    """The task for which this is done: the one at hand, or the one whose handler asked, directly or not."""
    budget: Grants = ()
    """What the call tree may use; the outermost budget first."""
    submitted: MutableSequence[str] | None = None
    """Ids of the tasks that were submitted by this handler and end with it; of the handler of a task, the last one."""
    attempt: Attempt | None = None
    """The attempt at hand, in the handler of a task."""
    traceparent: str = ""
    """W3C trace context, when somebody traces: the span that what is sent here belongs to."""
    tracestate: str = ""
    baggage: str = ""
    queued: float = 0.0
    """Seconds from when it was sent, or stored, until its handler began, by the clocks of both."""

    @property
    def trace_id(self) -> str:
        """Shared by all messages that follow from the first one: 32 hex digits, as W3C trace context has them, unless
        whoever sent the first one chose another."""
        return self.trace if self.trace != self.message_id else trace_id_of(self.trace)

    @trace_id.setter
    def trace_id(self, value: str) -> None:
        self.trace = value

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative when it has passed; None without one."""
        return None if self.deadline is None else (self.deadline - now()).total_seconds()


_current: ContextVar[Context | None] = ContextVar("agentmesh_context", default=None)
_outside: ContextVar[Grants] = ContextVar("agentmesh_budgets", default=())

current = _current.get
enter = _current.set
leave = _current.reset


def covering() -> Grants:
    """The budgets that cover what is sent now, the outermost first."""
    here = current()
    return _outside.get() if here is None else here.budget


def time_of_end() -> datetime | None:
    """When what is sent now is of no use any more: the deadline of the message at hand, or the end of a budget."""
    here = current()
    if here is None:
        return deadline_of(_outside.get())
    return here.deadline if not here.budget else earliest(here.deadline, deadline_of(here.budget))


def next_hops() -> int:
    """How many handlers a message that is sent now has gone through."""
    here = current()
    return 0 if here is None else here.hops + 1


def check_depth(whom: str, hops: int, grants: Grants) -> None:
    """Refuse a call that goes too deep.

    Raises:
        CallDepthError: By default.
        BudgetExceededError: If a budget says how deep the tree may be.
    """
    problem = too_deep(grants, hops) if grants else None
    if problem is not None:
        raise problem
    if hops >= MAX_HOPS and not limits_depth(grants):
        raise CallDepthError(whom, hops)


@contextmanager
def budget(*, depth: int | None = None, steps: int | None = None, seconds: float | None = None) -> Iterator[None]:
    """Limit the call trees of all that is sent inside the block, together. See `Budget` for the limits.

    When a limit is reached, sending raises `BudgetExceededError`, here or in the handler that wanted to send; a handler
    that does not catch it passes it on to whoever asked.
    """
    with granted(Budget(depth=depth, steps=steps, seconds=seconds)):
        yield


@contextmanager
def granted(limits: Budget, owner: str = "") -> Iterator[None]:
    """Send under these limits, and those that hold anyway. `owner`: who says so; inside a handler it is the agent."""
    here = current()
    if here is None:
        outer = _outside.set((*_outside.get(), grant(limits, 0, owner)))
        try:
            yield
        finally:
            _outside.reset(outer)
        return
    new = grant(limits, here.hops + 1, here.agent)
    before = enter(replace(here, budget=(*here.budget, new), deadline=earliest(here.deadline, new.deadline)))
    try:
        yield
    finally:
        leave(before)
