"""Steps of a budget are counted at the broker, so that the count is exact whatever hosts the tree runs on.

Every step adds one to the counter `ai.agent.budget.T.<tree_id>` before anything is sent; who gets a total above the
limit sends nothing. A refused step has been counted too: the counter of a tree that is out of steps stays so.
"""

from __future__ import annotations

import msgspec

from agentmesh.budgets import STEPS, Grants, out_of_time
from agentmesh.errors import ConnectionLostError
from agentmesh.subjects import Subjects
from agentmesh.tasks.keys import digest
from agentmesh.tasks.layout import BUDGETS, BUDGETS_SPEC, ensure
from agentmesh.transport import StoredMessage, Transport

_ONE = {"Nats-Incr": "1"}


class _Total(msgspec.Struct):
    val: str


async def charge(transport: Transport, subjects: Subjects, grants: Grants, once: str = "") -> None:
    """Take one step from each of these budgets, for something that is about to be sent.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        grants: The budgets.
        once: The id of what is sent, if it may have been sent before: by an earlier run of a workflow, for example.
            Then it takes one step in all. Who dies between taking the step and noting it takes another one.

    Raises:
        BudgetExceededError: One of them is used up, or its time is.
        BrokerError: The step could not be counted; it may have been.
    """
    problem = out_of_time(grants)
    if problem is not None:
        raise problem
    for one in reversed(grants):  # the narrowest first: what it refuses costs the others nothing
        if one.steps is None:
            continue
        note = subjects.budget(f"once-{digest(one.tree_id, once)[:40]}") if once else ""
        if note and await _is_noted(transport, note):
            continue
        if await _count(transport, subjects.budget(one.tree_id)) > one.steps:
            raise one.spent(STEPS)
        if note:
            await _count(transport, note)


async def _is_noted(transport: Transport, subject: str) -> bool:
    await ensure(transport, BUDGETS_SPEC)
    return await transport.last_message(BUDGETS, subject) is not None


async def _count(transport: Transport, subject: str) -> int:
    """Add one; returns the total with it."""
    await ensure(transport, BUDGETS_SPEC)
    stored = await transport.publish_durable(subject, b"", headers=_ONE)
    if stored.total is not None:
        return stored.total
    # The first confirmation was lost, and the second one says only where the message is.
    message = await transport.get_message(BUDGETS, stored.sequence) or await transport.last_message(BUDGETS, subject)
    return _total(message, subject)


def _total(message: StoredMessage | None, subject: str) -> int:
    if message is None:
        raise ConnectionLostError(f"a step was counted on {subject!r}, but the total cannot be read")
    return int(msgspec.json.decode(message.data, type=_Total).val)
