"""A task that ends in the middle of a saga: its handler runs once more, only to undo what the saga did.

In that run finished steps are passed and no other is begun, so the handler comes to where it was, and out of the saga.
The task stays in its queue until that is done; the run is repeated when its process dies.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from agentmesh import codec
from agentmesh.errors import (
    AgentStoppedError,
    BrokerError,
    InvalidMessageError,
    SagaNotUndoneError,
    WorkflowError,
)
from agentmesh.messages import Task
from agentmesh.tasks.outcome import Again, Dead, Decided, Outcome, Return
from agentmesh.tasks.workflow.journal import has_sagas

if TYPE_CHECKING:
    from agentmesh.tasks.attempt import Attempt

log = logging.getLogger("agentmesh.tasks")

UNDO_DELIVERIES = 50
"""Deliveries after which a saga that cannot be undone is given up."""


async def undone(attempt: Attempt, outcome: Outcome) -> Outcome:
    """Have undone what there is to undo before `outcome` is carried out; what is to be carried out then."""
    if not isinstance(outcome, Decided | Dead) or not _ends(outcome):
        return outcome
    if attempt.settled or not await _has_open_saga(attempt):
        return outcome
    if isinstance(outcome, Decided) and outcome.body is not None:
        outcome = Decided(status=await attempt.decide(outcome.body))
    status = "dead" if isinstance(outcome, Dead) else outcome.status
    task = _task(attempt)
    if task is None or status == "completed":
        return outcome
    if attempt.delivery.attempt > UNDO_DELIVERIES:
        return Dead(f"it was {status}, and its saga could not be undone in {UNDO_DELIVERIES} deliveries")
    attempt.begin_undoing()
    return await _run(attempt, task, status, outcome)


async def put_off(attempt: Attempt, outcome: Outcome) -> Outcome:
    """What to do with a task whose handler does not end: another run undoes its saga."""
    if attempt.undoes:
        return Return("its saga is not undone yet", 1.0)
    if not _ends(outcome) or attempt.context is None or not attempt.context.open_sagas:
        return outcome
    if isinstance(outcome, Decided) and outcome.body is not None:
        await attempt.decide(outcome.body)
    return Return("its saga is to be undone", 1.0)


def _ends(outcome: Outcome) -> bool:
    if isinstance(outcome, Decided):
        return (outcome.status if outcome.body is None else outcome.body.status) != "completed"
    return isinstance(outcome, Dead)


async def _has_open_saga(attempt: Attempt) -> bool:
    context, bench = attempt.context, attempt.bench
    if not attempt.task_id:
        return False
    if context is not None and (context.open_sagas or context.sagas):
        return context.open_sagas > 0
    return await has_sagas(bench.transport, bench.subjects, attempt.task_id)


def _task(attempt: Attempt) -> Task[Any] | None:
    assert attempt.body is not None
    task_type = attempt.bench.types.get(attempt.body.task_type)
    if task_type is None:
        return None
    attempt.policy = task_type.policy()
    try:
        return codec.decode_body(task_type, attempt.body.parameters)  # type: ignore[no-any-return]
    except InvalidMessageError:
        return None


async def _run(attempt: Attempt, task: Task[Any], status: str, outcome: Outcome) -> Outcome:
    log.info("%s is %s: its saga is undone", attempt, status)
    try:
        await attempt.run(task, ended=status)
    except asyncio.CancelledError:
        if attempt.cancelled_from_outside():
            raise
        return Return(attempt.why or "interrupted while it was undone")
    except AgentStoppedError as error:
        return Return(str(error))
    except BrokerError:
        raise
    except SagaNotUndoneError as error:
        return Dead(f"{outcome.reason}; {error}" if isinstance(outcome, Dead) else f"it was {status}; {error}")
    except WorkflowError:
        return outcome
    except Exception as error:  # the edge to foreign code
        log.warning("undoing %s failed, trying again", attempt, exc_info=True)
        failure = attempt.failure(type(error).__name__, str(error))
        return Again(attempt.policy.delay_after(min(attempt.delivery.attempt, 10)), failure)
    return outcome
