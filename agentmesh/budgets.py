"""What a call tree may use: how deep it goes, how many messages it sends, how long it takes.

    with budget(steps=50, seconds=60):
        answer = await mesh.ask("planner", Plan(goal=goal))

A budget covers everything that follows from what is sent under it, on every host: the requests, tasks, events and tool
calls of the handlers, and of the handlers those reach. Inside a handler it narrows the budgets that cover the handler;
it never widens them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from agentmesh.errors import BudgetExceededError, DefinitionError
from agentmesh.ids import new_id, now

MAX_HOPS = 8
"""How deep agents may call agents when no budget says otherwise; a longer chain is almost always a loop."""

DEPTH, STEPS, SECONDS = "depth", "steps", "seconds"
"""What a budget limits."""


@dataclass(frozen=True)
class Budget:
    """Limits for a call tree; None leaves that one alone."""

    depth: int | None = None
    """Handlers in a row, counted from what is sent under this budget; 8 if no budget says anything."""

    steps: int | None = None
    """Messages and tool calls in the whole tree, what is sent under this budget included. Exact over all hosts; costs
    a round trip to the broker for each of them. What a service such as the memory is asked is free."""

    seconds: float | None = None
    """Wall clock time for the tree."""

    def __post_init__(self) -> None:
        for name in (DEPTH, STEPS, SECONDS):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DefinitionError("budget", f"{name} must be more than 0, not {value!r}")


class Grant(msgspec.Struct, frozen=True, omit_defaults=True):
    """A budget on its way through a call tree, as it travels in requests, events and tasks."""

    tree_id: str
    """Names the counter of its steps."""
    owner: str = ""
    """Who gave it."""
    depth: int | None = None
    hops: int = 0
    """With `depth`: a message must have gone through fewer handlers than this."""
    steps: int | None = None
    seconds: float | None = None
    deadline: datetime | None = None
    """With `seconds`: when the time is up."""

    def spent(self, limit: str) -> BudgetExceededError:
        """The error for its `limit`: `depth`, `steps` or `seconds`."""
        return BudgetExceededError(limit, getattr(self, limit), self.owner, self.tree_id)


Grants = tuple[Grant, ...]
"""The budgets that cover a message, the outermost first. All of them hold."""


def grant(budget: Budget, hops: int, owner: str = "") -> Grant:
    """A new grant for a tree whose first message has gone through `hops` handlers."""
    if not isinstance(budget, Budget):
        raise DefinitionError("budget", f"expected a Budget, such as Budget(steps=100), not {budget!r}")
    return Grant(
        tree_id=new_id(),
        owner=owner,
        depth=budget.depth,
        hops=0 if budget.depth is None else hops + budget.depth,
        steps=budget.steps,
        seconds=budget.seconds,
        deadline=None if budget.seconds is None else now() + timedelta(seconds=budget.seconds),
    )


def too_deep(grants: Grants, hops: int) -> BudgetExceededError | None:
    """The budget that a message which has gone through `hops` handlers exceeds, if any."""
    return next((one.spent(DEPTH) for one in grants if one.depth is not None and hops >= one.hops), None)


def limits_depth(grants: Grants) -> bool:
    """Whether one of them says how deep the tree may be, so that `MAX_HOPS` does not hold."""
    return any(one.depth is not None for one in grants)


def out_of_time(grants: Grants) -> BudgetExceededError | None:
    """The budget whose time is up, if any."""
    return next((one.spent(SECONDS) for one in grants if one.deadline is not None and one.deadline <= now()), None)


def earliest(*deadlines: datetime | None) -> datetime | None:
    """The first of them; None if there is none."""
    return min((deadline for deadline in deadlines if deadline is not None), default=None)


def deadline_of(grants: Sequence[Grant]) -> datetime | None:
    """When the first of their times is up."""
    return earliest(*(one.deadline for one in grants)) if grants else None
