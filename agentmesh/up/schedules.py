"""The schedules of the settings: made, changed and removed so that the broker has what the file says."""

from __future__ import annotations

import logging

import msgspec

from agentmesh.codec import SCHEMA_VERSION
from agentmesh.errors import ConfigError, InvalidNameError, InvalidScheduleError
from agentmesh.ids import now
from agentmesh.subjects import Subjects
from agentmesh.tasks import ScheduleInfo, Schedules
from agentmesh.tasks.wire import TaskBody
from agentmesh.transport import Transport
from agentmesh.up.plan import SchedulePlan
from agentmesh.when import repeating

log = logging.getLogger("agentmesh.up")


async def keep_schedules(transport: Transport, subjects: Subjects, name: str, plans: tuple[SchedulePlan, ...]) -> None:
    """Make what is missing, change what differs, remove what is no longer there. Paused ones stay paused.

    Only schedules that came from the settings of the mesh `name` are touched. Doing it again, or by several
    supervisors at once, changes nothing.

    Raises:
        ConfigError: The broker takes no such expression or time zone.
    """
    schedules, origin = Schedules(transport, subjects), f"up {name}"
    found = {info.id: info for info in await schedules.ls()}
    for plan in plans:
        known = found.get(plan.id)
        if known is not None and known.origin != origin:
            _complain(known)
            continue
        await _keep(schedules, subjects, plan, origin)
    wanted = {plan.id for plan in plans}
    for info in found.values():
        if info.origin == origin and info.id not in wanted:
            log.info("schedule %s is not in the settings any more: it is removed", info.id)
            await schedules.drop(info.id)


async def _keep(schedules: Schedules, subjects: Subjects, plan: SchedulePlan, origin: str) -> None:
    body = TaskBody(
        agent_id=plan.to,
        task_type=plan.task_type,
        parameters=msgspec.Raw(msgspec.json.encode(plan.data)),
        priority=plan.priority,
        timestamp=now(),
        schema_version=SCHEMA_VERSION,
        tenant_id=subjects.tenant,
        source_agent_id="up",
    )
    try:
        when = repeating(plan.every, plan.cron, plan.tz)
        await schedules.add(body, when, plan.id, deadline=plan.deadline, replace=True, origin=origin)
    except (InvalidScheduleError, InvalidNameError) as error:
        raise ConfigError(f"schedules.{plan.id}", str(error)) from error


def _complain(known: ScheduleInfo) -> None:
    by = known.origin or known.created_by or "somebody else"
    log.warning(
        "schedules.%s: there is a schedule of that name by %s, which stays as it is; remove it with: "
        "agentmesh schedule rm %s",
        *(known.id, by, known.id),
    )
