"""`agentmesh ledger`: what was submitted from here and is not decided yet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli.base import Commands, Session
from agentmesh.cli.output import age
from agentmesh.cli.task import PANEL, Limit
from agentmesh.errors import UsageError

if TYPE_CHECKING:
    from agentmesh.tasks.ledger import Entry
    from agentmesh.tasks.reconcile import Reconciled

commands = Commands()
ledger = commands.group("ledger", help="What was submitted from here, in a file that outlives the broker.", panel=PANEL)

File = Annotated[
    Path | None,
    typer.Option("--ledger", metavar="FILE", help="Else that of the settings; $AGENTMESH_LEDGER."),
]


@ledger.command("ls", example="agentmesh ledger ls\nagentmesh ledger ls --ledger tasks.db --json")
def ls(session: Session, file: File = None, limit: Limit = 100) -> None:
    """List what is not known to be decided, oldest first; asks no broker.

    `submitting` was never confirmed by the broker, `accepted` was. `doubtful` is gone from it, and was not looked for
    in so long a time that its result may be gone, too.
    """
    entries = session.run(_ls(_path(session, file), limit))
    shown = [_document(entry) for entry in entries]
    if session.out.json:
        session.out.document(shown)
        return
    rows = [(e["id"], e["type"], e["tenant"], e["state"], e["resubmitted"], age(e["created_at"])) for e in shown]
    columns = ["ID", "TYPE", "TENANT", "STATE", "RESUBMITTED", "AGE"]
    session.out.table(columns, rows, empty="everything that was submitted is decided")


@ledger.command("reconcile", example="agentmesh ledger reconcile\nagentmesh ledger reconcile --doubtful")
def reconcile(
    session: Session,
    file: File = None,
    doubtful: Annotated[
        bool, typer.Option("--doubtful", help="Also submit again what may have been decided long ago.")
    ] = False,
) -> None:
    """Strike out what is decided, and submit again, under its id, what the broker no longer has.

    Do it after a disk was replaced, a stream purged or a backup restored. Processes that are connected with the
    ledger do the same by themselves.
    """
    done = session.run(_reconcile(session, _path(session, file), doubtful))
    if session.out.json:
        session.out.document(done)
        return
    session.out.answer(
        f"{len(done.decided)} decided, {len(done.waiting)} wait or run, {len(done.resubmitted)} submitted again"
    )
    for task_id in done.resubmitted:
        session.out.note(f"submitted again: {task_id}")
    for task_id in done.full:
        session.out.warning(f"{task_id} is gone, and its queue is full: try again later")
    for task_id in done.doubtful:
        session.out.warning(f"{task_id} is gone, and may have been decided: submit it again with --doubtful")


def _path(session: Session, file: Path | None) -> Path:
    from agentmesh.errors import LedgerError

    known = session.settings.ledger.path
    if file is None and known is None:
        raise UsageError("there is no ledger: name it with --ledger FILE, $AGENTMESH_LEDGER or [ledger] path")
    path = file if file is not None else session.settings.path(str(known))
    if not path.exists():
        raise LedgerError(str(path), "there is no such file")
    return path


async def _ls(path: Path, limit: int) -> list[Entry]:
    from agentmesh.tasks.ledger import Ledger

    async with Ledger(path) as found:
        return await found.ls(limit)


async def _reconcile(session: Session, path: Path, doubtful: bool) -> Reconciled:
    from agentmesh.tasks.ledger import Ledger
    from agentmesh.tasks.reconcile import Reconciler

    async with session.connect() as mesh:
        reconciler = Reconciler(mesh.tasks, Ledger(path))
        await reconciler.start(watch=False)
        try:
            return await reconciler.reconcile(early=True, doubtful=doubtful)
        finally:
            await reconciler.stop()


def _document(entry: Entry) -> dict[str, Any]:
    from agentmesh.tasks.wire import decode_task

    body = decode_task(entry.body)
    return {
        "id": entry.task_id,
        "type": body.task_type,
        "tenant": entry.tenant,
        "agent_id": body.agent_id or "",
        "state": entry.state,
        "resubmitted": entry.resubmitted,
        "created_at": datetime.fromtimestamp(entry.created_at, UTC),
        "deadline": body.deadline,
    }
