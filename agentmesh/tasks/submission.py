"""A task as it is put into a queue: what its submitter says, and what it inherits from the handler that submits it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from agentmesh import codec
from agentmesh.budgets import Budget, deadline_of, earliest, grant
from agentmesh.context import Context, check_depth, covering, current, next_hops
from agentmesh.errors import DeadlineExceededError, DefinitionError
from agentmesh.ids import new_id, now
from agentmesh.messages import Task, wire_name
from agentmesh.subjects import Subjects, token
from agentmesh.tasks.pressure import IMPATIENT, Patience
from agentmesh.tasks.wire import TaskBody
from agentmesh.trace import inherit, outside


@dataclass(frozen=True)
class Wishes:
    """What a submitter says about a task; see `TaskClient.submit`."""

    to: str | None = None
    task_id: str | None = None
    priority: str | None = None
    deadline: float | None = None
    source: str = ""
    trace_id: str = ""
    detached: bool = False
    budget: Budget | None = None
    due: datetime | None = None
    """From when its deadline counts; None: from now."""
    patience: Patience = IMPATIENT


def make_body(subjects: Subjects, task: Task[Any], wishes: Wishes) -> TaskBody:
    """The document of a task. Submitted in a handler, it belongs to the handler's call tree.

    Raises:
        DefinitionError: It cannot be submitted.
        CallDepthError, BudgetExceededError: The tree is too deep.
        DeadlineExceededError: The deadline it would inherit has passed.
    """
    name = wire_name(type(task))
    if not name:
        raise DefinitionError(type(task).__name__, "subclass it and submit an instance of the subclass")
    here = current()
    trace = here or outside()
    time = now()
    body = TaskBody(
        task_id=token("task id", wishes.task_id) if wishes.task_id is not None else new_id(),
        agent_id=wishes.to,
        task_type=name,
        parameters=msgspec.Raw(codec.encode_body(task)),
        priority=wishes.priority or type(task).policy().priority,
        timestamp=time,
        schema_version=codec.SCHEMA_VERSION,
        tenant_id=subjects.tenant,
        deadline=None if wishes.deadline is None else (wishes.due or time) + timedelta(seconds=wishes.deadline),
        source_agent_id=wishes.source,
        trace_id=wishes.trace_id or (trace.trace_id if trace is not None else ""),
        budget=covering(),
    )
    if trace is not None and (trace.traceparent or trace.baggage):
        inherit(body, trace)
    if here is not None:
        _inherit(body, here, wishes.detached)
    if wishes.budget is not None:
        body.budget = (*body.budget, grant(wishes.budget, body.hops, wishes.source))
    if body.budget:
        _shorten(body, deadline_of(body.budget))
    check_depth(wishes.to or name, body.hops, body.budget)
    if body.deadline_inherited and body.is_late():
        raise DeadlineExceededError(f"{name}: not submitted, the deadline of the message being handled has passed", 0.0)
    return body


def _inherit(body: TaskBody, here: Context, detached: bool) -> None:
    body.parent_id = here.task_id
    if detached:
        body.detached = True
        body.hops = next_hops() if body.budget else 0
        return
    body.hops = next_hops()
    _shorten(body, here.deadline)
    if here.submitted is not None:
        here.submitted.append(body.task_id)


def _shorten(body: TaskBody, deadline: datetime | None) -> None:
    first = earliest(body.deadline, deadline)
    if first is not body.deadline:
        body.deadline, body.deadline_inherited = first, True
