"""`agentmesh dead`: what was given up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from agentmesh.cli.base import Commands, Session
from agentmesh.cli.task import PANEL, Limit, TaskId

if TYPE_CHECKING:
    from agentmesh.tasks import TaskClient

T = TypeVar("T")

commands = Commands()
dead = commands.group("dead", help="Dead letters: tasks that were given up.", panel=PANEL)


@dead.command("ls", example="agentmesh dead ls")
def dead_ls(session: Session, limit: Limit = 100) -> None:
    """List dead letters, oldest first, with the reason."""
    letters = session.run(_dead(session, lambda tasks: tasks.dead_ls(limit)))
    if session.out.json:
        session.out.document(letters)
        return
    rows = [
        (letter.task_id, letter.task_type or letter.kind, letter.agent_id or None, letter.attempts, letter.reason)
        for letter in letters
    ]
    session.out.table(["ID", "TYPE", "AGENT", "ATTEMPTS", "REASON"], rows, empty="no dead letters")


@dead.command("show", example="agentmesh dead show 0Wx3kPz1-7")
def dead_show(session: Session, id: TaskId) -> None:
    """Show a dead letter: the message, and what was tried."""
    session.check("task id", id)
    letter = session.run(_dead(session, lambda tasks: tasks.dead_show(id)))
    if session.out.json:
        session.out.document(letter)
        return
    tried = [f"{f.attempt}. {f.error_type}: {f.message} ({f.worker or 'unknown node'})" for f in letter.history]
    session.out.fields(
        [
            ("id", letter.task_id),
            ("type", letter.task_type or letter.kind),
            ("agent", letter.agent_id),
            ("reason", letter.reason),
            ("tried", "\n".join(tried)),
            ("message", letter.original().decode(errors="backslashreplace")),
        ]
    )
    session.out.note(f"\nagain: agentmesh dead retry {id}    forget it: agentmesh dead drop {id}")


@dead.command("retry", example="agentmesh dead retry 0Wx3kPz1-7")
def dead_retry(session: Session, id: TaskId) -> None:
    """Put a dead letter back into its queue, under a new id, which is printed."""
    session.check("task id", id)
    fresh = session.run(_dead(session, lambda tasks: tasks.dead_retry(id)))
    if session.out.json:
        session.out.document({"id": fresh})
    else:
        session.out.answer(fresh)


@dead.command("drop", example="agentmesh dead drop 0Wx3kPz1-7")
def dead_drop(session: Session, id: TaskId) -> None:
    """Forget a dead letter for good."""
    session.check("task id", id)
    session.run(_dead(session, lambda tasks: tasks.dead_drop(id)))
    if session.out.json:
        session.out.document({"id": id, "dropped": True})
    else:
        session.out.note(f"{id} is gone")


async def _dead(session: Session, ask: Callable[[TaskClient], Awaitable[T]]) -> T:
    async with session.connect() as mesh:
        return await ask(mesh.tasks)
