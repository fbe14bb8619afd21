"""`agentmesh submit`, `map` and `task`: work that is not lost."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli import exits, typed
from agentmesh.cli.base import Commands, Session
from agentmesh.cli.output import age, as_json, plain
from agentmesh.cli.progress import Bar
from agentmesh.errors import NoSuchTaskError, QueueFullError, UsageError

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.messages import Task
    from agentmesh.tasks import Finished, Job, JobEvent, Step, TaskStatus

commands = Commands()
PANEL = "Work"


class State(StrEnum):
    """States of a task."""

    SCHEDULED = "scheduled"
    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"


class Priority(StrEnum):
    """Priorities of tasks."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


TaskType = Annotated[str, typer.Argument(metavar="TYPE", help="Type of the task.", show_default=False)]
TaskId = Annotated[str, typer.Argument(metavar="ID", help="Id of the task.", show_default=False)]
To = Annotated[str | None, typer.Option("--to", metavar="AGENT", help="Who shall do it; else one that takes the type.")]
Urgency = Annotated[Priority | None, typer.Option("--priority", help="Before or behind others; else the type's own.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="The most to show.")]


@commands.command(
    "submit",
    example="""agentmesh submit CountWords --data '{"text": "to be or not to be"}' --wait
agentmesh submit ReviewFile --data @file.json --priority high --id nightly-1
agentmesh submit Remind --data '{"what": "tea"}' --delay 4m""",
    panel=PANEL,
)
def submit(
    session: Session,
    type: TaskType,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="JSON|@FILE|-", help="Fields of the task, as a JSON object.")
    ] = None,
    to: To = None,
    priority: Urgency = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="TIME", help="From now; later it is not worth starting.")
    ] = None,
    delay: Annotated[
        str | None, typer.Option("--delay", metavar="TIME", help="Until it is due; the broker keeps it until then.")
    ] = None,
    at: typed.At = None,
    id: Annotated[
        str | None, typer.Option("--id", help="An id of yours: submitting it again runs nothing again.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="The first to use it submits; others get that job."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait, and print the result instead of the id.")] = False,
    patience: Annotated[
        str, typer.Option("--patience", metavar="TIME", help="How long to wait for room in a full queue.")
    ] = "30s",
) -> None:
    """Submit a task and print its id. From then on it survives anything.

    With `--wait` its result is printed when it is there; interrupting that does not cancel the task.
    """
    if to is not None:
        session.check("agent", to)
    if id is not None:
        session.check("task id", id)
    if id is not None and idempotency_key is not None:
        raise UsageError("give --id or --idempotency-key, not both")
    how: dict[str, Any] = {
        "to": to,
        "priority": priority,
        "deadline": typed.seconds("--deadline", deadline),
        "delay": typed.seconds("--delay", delay),
        "at": typed.moment(at),
        "task_id": id,
        "idempotency_key": idempotency_key,
        "patience": typed.seconds("--patience", patience),
        "on_full": _says_so(session),
    }
    session.run(_submit(session, _task(type, typed.read_object(data)), how, wait))


def _says_so(session: Session) -> Callable[[QueueFullError], None]:
    """Tells once per queue that we wait for room."""
    told: set[str] = set()

    def tell(refusal: QueueFullError) -> None:
        if refusal.queue not in told:
            told.add(refusal.queue)
            session.out.note(f"{refusal}; waiting for room")

    return tell


async def _submit(session: Session, task: Task[Any], how: dict[str, Any], wait: bool) -> None:
    from agentmesh.messages import wire_name

    task_type = wire_name(type(task))
    async with session.connect(ledger=True) as mesh:
        job = await mesh.submit(task, **how)
        if how["to"] is None:
            await warn_if_nobody_takes(session, mesh, task_type)
        if wait:
            session.out.note(f"task {job.id}")
            await _print_result(session, job)
        elif session.out.json:
            session.out.document({"id": job.id})
        else:
            session.out.answer(job.id)


task = commands.group("task", help="Look at tasks, wait for them, cancel them.", panel=PANEL)


@task.command("ls", example="agentmesh task ls\nagentmesh task ls --state failed --json")
def ls(
    session: Session,
    state: Annotated[State | None, typer.Option("--state", help="Only tasks in this state.")] = None,
    limit: Limit = 50,
) -> None:
    """List tasks: those that wait or run, and those decided in the last seven days."""
    found = session.run(_ls(session, state, limit))
    if session.out.json:
        session.out.document(found)
        return
    rows = [
        (s.task_id, s.task_type, s.agent_id or None, s.state, s.attempt or None, age(s.decided_at or s.submitted_at))
        for s in found
    ]
    session.out.table(["ID", "TYPE", "AGENT", "STATE", "ATTEMPT", "AGE"], rows, empty="no tasks")


async def _ls(session: Session, state: State | None, limit: int) -> list[TaskStatus]:
    async with session.connect() as mesh:
        return await mesh.tasks.ls(state.value if state else "", limit)


@task.command("get", example="agentmesh task get 0Wx3kPz1-7 --json")
def get(session: Session, id: TaskId) -> None:
    """Show where a task stands: state, attempts, and its result or the reason it has none."""
    status = session.run(_get(session, session.check("task id", id)))
    if session.out.json:
        session.out.document(status)
    else:
        session.out.fields(_told(status))


def _told(status: TaskStatus) -> Iterator[tuple[str, Any]]:
    for name, value in plain(status).items():
        shown = as_json(value) if isinstance(value, dict | list) else value
        yield {"agent_id": "agent", "seconds": "runs for, s"}.get(name, name.replace("_", " ")), shown


async def _get(session: Session, task_id: str) -> TaskStatus:
    async with session.connect() as mesh:
        return await mesh.tasks.get(task_id)


@task.command("wait", example="agentmesh task wait 0Wx3kPz1-7\nagentmesh task wait nightly-1 --timeout 10m")
def wait(session: Session, id: TaskId) -> None:
    """Wait for a task and print its result; progress and parts of the result are shown from the start.

    Exits with 1 if it failed, was cancelled or became a dead letter, with 5 if its deadline or `--timeout` passed.
    """
    session.run(_wait(session, session.check("task id", id)))


async def _wait(session: Session, task_id: str) -> None:
    async with session.connect() as mesh:
        await mesh.tasks.get(task_id)  # one that does not exist would be waited for for ever
        await _print_result(session, mesh.job(task_id))


@task.command("cancel", example="agentmesh task cancel 0Wx3kPz1-7")
def cancel(session: Session, id: TaskId) -> None:
    """Cancel a task that waits or runs. Exits with 1 if it was decided already.

    An id that nobody knows is cancelled too: a task submitted under it later does not run.
    """
    cancelled, known = session.run(_cancel(session, session.check("task id", id)))
    if session.out.json:
        session.out.document({"id": id, "cancelled": cancelled})
    elif cancelled:
        session.out.note(f"task {id} is cancelled")
        if not known:
            session.out.warning("no task had that id; one that is submitted under it now does not run")
    else:
        session.out.error(f"task {id} was decided before; see: agentmesh task get {id}")
    if not cancelled:
        raise typer.Exit(exits.FAILED)


async def _cancel(session: Session, task_id: str) -> tuple[bool, bool]:
    """Whether we cancelled it, and whether there was such a task."""
    async with session.connect() as mesh:
        try:
            await mesh.tasks.get(task_id)
        except NoSuchTaskError:
            return await mesh.tasks.cancel(task_id, "cli"), False
        return await mesh.tasks.cancel(task_id, "cli"), True


@task.command("show", example="agentmesh task show trip-17\nagentmesh task show trip-17 --json")
def show(session: Session, id: TaskId) -> None:
    """Show where a task stands, and the steps of a workflow: what is done, runs, failed or was undone."""
    status, steps = session.run(_show_steps(session, session.check("task id", id)))
    if session.out.json:
        session.out.document({**plain(status), "steps": [plain(step) for step in steps]})
        return
    session.out.fields(_told(status))
    if not steps:
        return
    session.out.answer("")
    rows = [
        (step.name, _kind(step), step.state, age(step.ended_at or step.began_at), step.error or None) for step in steps
    ]
    session.out.table(["STEP", "WHAT", "STATE", "AGE", "ERROR"], rows)
    for step in steps:
        if _waits_for_signal(step):
            session.out.note(f"it waits for: agentmesh task signal {id} {shlex.quote(step.name)} --data VALUE")


async def _show_steps(session: Session, task_id: str) -> tuple[TaskStatus, list[Step]]:
    async with session.connect() as mesh:
        return await mesh.tasks.get(task_id), await mesh.tasks.steps(task_id)


def _kind(step: Step) -> str:
    what = f"{step.kind} {step.task_type}".rstrip()
    return f"{what} ({step.total - step.failed} of {step.total})" if step.total and step.state != "running" else what


@task.command("signal", example="agentmesh task signal trip-17 approved --data true")
def signal(
    session: Session,
    id: TaskId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the signal.", show_default=False)],
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="JSON|@FILE|-", help="Value of the signal; else null.")
    ] = None,
) -> None:
    """Give a workflow the signal it waits for, or will. The first one counts; exits with 1 if there was one."""
    value = None if data is None else typed.read_value(data)
    counts, awaited = session.run(_signal(session, session.check("task id", id), name, value))
    if session.out.json:
        session.out.document({"id": id, "signal": name, "counts": counts})
    elif counts:
        session.out.note(f"task {id} has got {name!r}")
        if awaited and name not in awaited:
            session.out.warning(f"it is kept for later: now the task waits for {', '.join(map(repr, awaited))}")
    else:
        session.out.error(f"{name!r} came too late: it was given before or has timed out, or task {id} is decided")
    if not counts:
        raise typer.Exit(exits.FAILED)


async def _signal(session: Session, task_id: str, name: str, value: Any) -> tuple[bool, list[str]]:
    """Whether ours counts, and what the task waited for when it was given."""
    async with session.connect() as mesh:
        await mesh.tasks.get(task_id)  # one that does not exist would never hear it
        awaited = [step.name for step in await mesh.tasks.steps(task_id) if _waits_for_signal(step)]
        return await mesh.tasks.signal(task_id, name, value), awaited


def _waits_for_signal(step: Step) -> bool:
    return step.kind == "signal" and step.state == "running"


@commands.command(
    "map",
    example="""agentmesh map CountWords --data '{"text": "one two"}' --data '{"text": "three"}'
ls *.py | jq -R '{path: .}' -c | agentmesh map ReviewFile --items -
agentmesh map ReviewFile --items @files.jsonl --limit 8 --keep-going > results.jsonl""",
    panel=PANEL,
)
def map_(
    session: Session,
    type: TaskType,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", metavar="JSON", help="Fields of one task; repeat it.")
    ] = None,
    items: Annotated[
        str | None, typer.Option("--items", "-i", metavar="@FILE|-", help="One JSON object a line, one task each.")
    ] = None,
    to: To = None,
    priority: Urgency = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Tasks under way at the same time.")] = 64,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="Do the rest when one fails; else the rest is cancelled.")
    ] = False,
) -> None:
    """Run one task per item, many at a time, and print a JSON line for each, in the order of the items.

    A line is `{"item": …, "result": …}` or `{"item": …, "error": {"type": …, "message": …}}`. Exits with 1 if any
    failed.
    """
    if to is not None:
        session.check("agent", to)
    fields = [typed.read_object(entry) for entry in data or []]
    fields += [_item(number, line) for number, line in enumerate(_lines(items), 1) if line.strip()]
    if not fields:
        raise UsageError("no items: give --data JSON or --items @FILE")
    tasks = [_task(type, entry) for entry in fields]
    failed = session.run(_map(session, tasks, {"to": to, "priority": priority, "limit": limit}, keep_going))
    if failed:
        session.out.note(f"{failed} of {len(tasks)} failed")
        raise typer.Exit(exits.FAILED)


def _lines(items: str | None) -> list[str]:
    if items is None:
        return []
    if items != "-" and not items.startswith("@"):
        raise UsageError(f"--items {items!r}: expected @FILE, or - for standard input")
    return typed.read_text(items).splitlines()


def _item(number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"--items, line {number}: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"--items, line {number}: expected a JSON object, not {line[:60]!r}")
    return value


# ---------------------------------------------------------------- parts


async def warn_if_nobody_takes(session: Session, mesh: Client, kind: str) -> None:
    """Say that a task without an address waits for an agent that takes it; it may start later."""
    from agentmesh.registry import near_misses

    known = {m.name for agent in await mesh.agents() for m in agent.messages if m.kind == "task"}
    if kind in known:
        return
    near = near_misses(kind, known)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    session.out.warning(f"no agent that runs now takes {kind}{hint}; it waits for one, then becomes a dead letter")


def _task(kind: str, fields: dict[str, Any]) -> Task[Any]:
    from agentmesh.messages import Task

    return typed.message(Task[Any], kind, fields)


async def _print_result(session: Session, job: Job[Any]) -> None:
    """Show progress while the task is under way, then print its result."""
    from agentmesh.errors import BrokerError, DeadlineExceededError

    goes_on = f"the task is not lost; its result: agentmesh task wait {job.id}"
    limit = None if session.options.timeout is None else session.timeout()
    try:
        async with asyncio.timeout(limit):
            with Bar(session.out, "working", fraction=True) as bar:
                async for event in job:
                    _show(session, bar, event)
            result = await job.result()
    except TimeoutError:
        session.out.note(goes_on)
        raise DeadlineExceededError(f"result of task {job.id}", limit or 0.0) from None
    except (asyncio.CancelledError, BrokerError):
        session.out.note(goes_on)
        raise
    session.out.value(result)


def _show(session: Session, bar: Bar, event: JobEvent) -> None:
    from agentmesh.tasks import Progress, Restarted, Step

    if isinstance(event, Progress):
        bar.at(event.fraction, event.text)
    elif isinstance(event, Restarted):
        bar.at(0.0, f"attempt {event.attempt}")
    elif isinstance(event, Step):
        bar.at(0.0, event.name if event.state == "running" else f"{event.name}: {event.state}")
    elif session.out.verbose:
        session.out.note(event.data if isinstance(event.data, str) else as_json(event.data))


async def _map(session: Session, tasks: list[Task[Any]], how: dict[str, Any], keep_going: bool) -> int:
    """Print a line per item, in order; returns how many failed."""
    finished: dict[int, Finished[Any]] = {}
    printed = 0
    async with session.connect(ledger=True) as mesh:
        batch = mesh.map(type(tasks[0]), tasks, on_error="return" if keep_going else "raise", **how)
        batch.on_full = _says_so(session)
        with Bar(session.out, "working", total=len(tasks)) as bar:
            try:
                async for entry in batch:
                    finished[entry.index] = entry
                    bar.at(batch.done, f"{batch.failed} failed" if batch.failed else "")
                    while printed in finished:
                        session.out.document(_line(finished.pop(printed)))
                        printed += 1
            except asyncio.CancelledError:
                session.out.note(f"interrupted: {batch.done} of {len(tasks)} were done, the rest is cancelled")
                raise
    return batch.failed


def _line(entry: Finished[Any]) -> dict[str, Any]:
    item = entry.item.model_dump(mode="json")
    if entry.error is None:
        return {"item": item, "result": entry.result}
    return {"item": item, "error": {"type": type(entry.error).__name__, "message": str(entry.error)}}
