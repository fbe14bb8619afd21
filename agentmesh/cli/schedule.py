"""`agentmesh schedule`: tasks that are due later, or again and again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agentmesh.cli import typed
from agentmesh.cli.base import Commands, Session
from agentmesh.cli.output import as_json
from agentmesh.cli.task import PANEL, Limit, TaskType, To, Urgency, warn_if_nobody_takes
from agentmesh.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.tasks import ScheduleInfo

T = TypeVar("T")

RUNS = 5
"""Firings that are shown in advance."""

commands = Commands()
schedule = commands.group("schedule", help="Tasks that are due later, or again and again.", panel=PANEL)

ScheduleId = Annotated[str, typer.Argument(metavar="ID", help="Id of the schedule.", show_default=False)]


@schedule.command("ls", example="agentmesh schedule ls\nagentmesh schedule ls --repeating --json")
def ls(
    session: Session,
    repeating: Annotated[bool, typer.Option("--repeating", help="Without delayed tasks.")] = False,
    limit: Limit = 100,
) -> None:
    """List what is scheduled: repeating tasks, and delayed ones that are not due yet."""
    kind: Any = "repeating" if repeating else "all"
    found = session.run(_with(session, lambda mesh: mesh.schedules.ls(kind, limit)))
    if session.out.json:
        session.out.document([_document(info) for info in found])
        return
    rows = [
        (info.id, _when(info), _next(info), info.task_type, info.agent_id or None, info.origin or None)
        for info in found
    ]
    session.out.table(["ID", "WHEN", "NEXT", "TYPE", "AGENT", "KEPT BY"], rows, empty="nothing is scheduled")
    session.out.note(next((problem for info in found if (problem := _runs(info)[1]) and not info.paused), ""))


@schedule.command(
    "add",
    example="""agentmesh schedule add Digest --id nightly --cron '0 0 3 * * *' --tz Europe/Berlin
agentmesh schedule add Poll --data '{"feed": "news"}' --every 5m --to reader
agentmesh schedule add Remind --data '{"what": "tea"}' --at 2030-12-24T18:00""",
)
def add(
    session: Session,
    type: TaskType,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="JSON|@FILE|-", help="Fields of the task, as a JSON object.")
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="TIME", help="Time between firings, whole seconds: 60, 5m, 2h.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="FIELDS", help="Six fields, seconds first; or @hourly, @daily …")
    ] = None,
    at: typed.At = None,
    tz: Annotated[
        str | None, typer.Option("--tz", metavar="ZONE", help="Time zone of --cron (else UTC) or --at (else local).")
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="An id of yours; else a new one.")] = None,
    to: To = None,
    priority: Urgency = None,
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="TIME", help="After each firing; then it expires."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change a schedule of that id.")] = False,
) -> None:
    """Schedule a task and print the id of the schedule. The broker keeps it and fires it.

    Adding the same once more changes nothing; something else under an id that is taken needs `--replace`.
    """
    for kind, name in (("agent", to), ("schedule id", id)):
        if name is not None:
            session.check(kind, name)
    if sum(given is not None for given in (every, cron, at)) != 1:
        raise UsageError("say when, with one of --every, --cron and --at")
    task = typed.message(_task_class(), type, typed.read_object(data))
    how: dict[str, Any] = {"to": to, "priority": priority, "deadline": typed.seconds("--deadline", deadline)}
    if at is not None:
        how |= {"at": typed.moment(at, tz), "task_id": id}
    else:
        how |= {"every": typed.seconds("--every", every), "cron": cron, "tz": tz, "replace": replace}
        how |= {"schedule_id": id or ""}

    async def make(mesh: Client) -> str:
        made = await (mesh.submit(task, **how) if at is not None else mesh.schedule(task, **how))
        if to is None:
            await warn_if_nobody_takes(session, mesh, type)
        return made.id

    made = session.run(_with(session, make, ledger=at is not None))
    if session.out.json:
        session.out.document({"id": made})
    else:
        session.out.answer(made)


@schedule.command("show", example="agentmesh schedule show nightly")
def show(session: Session, id: ScheduleId) -> None:
    """Show a schedule: its task, and when it fires next."""
    info = session.run(_one(session, id))
    if session.out.json:
        session.out.document(_document(info))
        return
    runs, problem = _runs(info)
    fields = _document(info) | {
        "data": as_json(info.parameters),
        "stored_at": _shown(info.stored_at),
        "next": "\n".join(map(_shown, runs)) or ("paused" if info.paused else "unknown"),
    }
    session.out.fields((name.replace("_", " "), value) for name, value in fields.items())
    session.out.note(problem)


@schedule.command("pause", example="agentmesh schedule pause nightly")
def pause(session: Session, id: ScheduleId) -> None:
    """Keep a schedule and fire nothing, until it is resumed. An `agentmesh up` that keeps it leaves it paused."""
    _change(session, id, "paused", lambda mesh: mesh.schedules.pause(id))


@schedule.command("resume", example="agentmesh schedule resume nightly")
def resume(session: Session, id: ScheduleId) -> None:
    """Let a paused schedule go on. What would have been due in between is left out."""
    _change(session, id, "resumed", lambda mesh: mesh.schedules.resume(id))


@schedule.command("rm", example="agentmesh schedule rm nightly")
def rm(session: Session, id: ScheduleId) -> None:
    """Forget a schedule. A delayed task is cancelled; one from a mesh.toml comes back with the next `agentmesh up`."""
    _change(session, id, "removed", lambda mesh: mesh.schedules.remove(id))


# ---------------------------------------------------------------- parts


def _task_class() -> Any:
    from agentmesh.messages import Task

    return Task[Any]


async def _with(session: Session, ask: Callable[[Client], Awaitable[T]], *, ledger: bool = False) -> T:
    async with session.connect(ledger=ledger) as mesh:
        return await ask(mesh)


async def _one(session: Session, schedule_id: str) -> ScheduleInfo:
    session.check("schedule id", schedule_id)
    return (await _with(session, lambda mesh: mesh.schedules.get(schedule_id))).info


def _change(session: Session, schedule_id: str, done: str, ask: Callable[[Client], Awaitable[Any]]) -> None:
    session.check("schedule id", schedule_id)
    session.run(_with(session, ask))
    if session.out.json:
        session.out.document({"id": schedule_id, done: True})
    else:
        session.out.note(f"schedule {schedule_id} is {done}")


def _document(info: ScheduleInfo) -> dict[str, Any]:
    runs, problem = _runs(info)
    return {
        "id": info.id,
        "when": info.when.pattern,
        "tz": info.when.time_zone,
        "repeats": info.repeats,
        "paused": info.paused,
        "next": None if problem else runs,
        "task_type": info.task_type,
        "data": info.parameters,
        "agent_id": info.agent_id,
        "priority": info.priority,
        "deadline": info.deadline,
        "stored_at": info.stored_at,
        "created_by": info.created_by,
        "origin": info.origin,
    }


def _runs(info: ScheduleInfo) -> tuple[list[datetime], str]:
    """The next runs, or why they are not known."""
    try:
        return info.next_runs(RUNS), ""
    except MissingExtraError as error:
        return [], f"when it fires next is not known here: {error}"


def _when(info: ScheduleInfo) -> str:
    """In short; of what is due once, NEXT says when."""
    if not info.repeats:
        return "once"
    return f"every {_interval(info.when.every)}" if info.when.every else str(info.when)


def _interval(seconds: int) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _next(info: ScheduleInfo) -> str | None:
    if info.paused:
        return "paused"
    runs, _ = _runs(info)
    return _shown(runs[0]) if runs else None


def _shown(time: datetime) -> str:
    """In local time, as people read it."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
