"""`agentmesh pause`, `resume` and `quarantine`: what is held back, and letting it in again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli.base import Commands, Session
from agentmesh.cli.output import age

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.orders import Pause, Quarantine

commands = Commands()
PANEL = "Watch and steer"

Agents = Annotated[list[str] | None, typer.Argument(metavar="[AGENT]...", help="Agents, by name.")]
All = Annotated[bool, typer.Option("--all", help="Every agent of the tenant.")]


@commands.command(
    "pause",
    example='agentmesh pause greeter --reason "new model tonight"\nagentmesh pause --all\nagentmesh pause',
    panel=PANEL,
)
def pause(
    session: Session,
    agents: Agents = None,
    everything: All = False,
    reason: Annotated[str, typer.Option("--reason", help="Shown to whoever is refused.")] = "",
) -> None:
    """Have agents take nothing new: tasks and durable events wait, requests are refused. Without names: list pauses.

    It holds on every host and for agents that start later, until `agentmesh resume`.
    """
    if not agents and not everything:
        _list(session)
        return
    names = _names(session, agents, everything)

    async def order() -> list[list[str]]:
        async with session.connect() as mesh:
            nodes = [
                await (mesh.pause(name, reason=reason) if name else mesh.pause_all(reason=reason)) for name in names
            ]
            await _warn_of_unknown(session, mesh, names)
            return nodes

    nodes = session.run(order())
    if session.out.json:
        _document(session, names, nodes)
    for name in names:
        session.out.note(f"{name or 'every agent'} is paused")


async def _warn_of_unknown(session: Session, mesh: Client, names: list[str]) -> None:
    """Agents may be paused before they start, so a name that nobody has is no error; it may be a slip."""
    from agentmesh.registry import near_misses

    if names == [""]:
        return
    known = {agent.name for agent in await mesh.agents()}
    for name in names:
        if name not in known:
            near = near_misses(name, sorted(known))
            hint = f"; did you mean {' or '.join(near)}? Take it back: agentmesh resume {name}" if near else ""
            session.out.warning(f"no agent {name!r} runs now, it is paused when it starts{hint}")


@commands.command("resume", example="agentmesh resume greeter\nagentmesh resume --all", panel=PANEL)
def resume(session: Session, agents: Agents = None, everything: All = False) -> None:
    """Take pauses back. `--all` takes back the pause of all; agents that were paused by name stay paused."""
    names = _names(session, agents, everything)

    async def order() -> tuple[list[list[str]], set[str]]:
        from agentmesh.orders import Orders

        async with session.connect() as mesh:
            paused = {one.agent for one in await Orders(mesh.transport, mesh.subjects).pauses()}
            return [await (mesh.resume(name) if name else mesh.resume_all()) for name in names], paused

    nodes, paused = session.run(order())
    if session.out.json:
        _document(session, names, nodes)
    for name in names:
        session.out.note(_resumed(name) if name in paused else _not_paused(name))
    if "" in paused and names != [""]:
        session.out.warning("all agents are paused together: agentmesh resume --all")


def _names(session: Session, agents: list[str] | None, everything: bool) -> list[str]:
    """The agents that were named; an empty name stands for all."""
    from agentmesh.errors import UsageError

    if bool(agents) == everything:
        raise UsageError("name agents, or say --all")
    return [session.check("agent", name) for name in agents] if agents else [""]


def _resumed(name: str) -> str:
    return f"{name} is no longer paused" if name else "the pause of all agents is over"


def _not_paused(name: str) -> str:
    return f"{name} was not paused" if name else "there was no pause of all; what is paused: agentmesh pause"


def _document(session: Session, names: list[str], nodes: list[list[str]]) -> None:
    session.out.document([{"agent": name or None, "nodes": known} for name, known in zip(names, nodes, strict=True)])


def _list(session: Session) -> None:
    async def read() -> list[Pause]:
        from agentmesh.orders import Orders

        async with session.connect() as mesh:
            return await Orders(mesh.transport, mesh.subjects).pauses()

    pauses = session.run(read())
    if session.out.json:
        session.out.document(pauses)
        return
    rows = [(one.agent or "(all)", age(one.since), one.by or None, one.reason or None) for one in pauses]
    session.out.table(["AGENT", "FOR", "BY", "REASON"], rows, empty="nothing is paused")


quarantine = commands.group(
    "quarantine", help="Messages that ended an agent again and again, and are refused for a time.", panel=PANEL
)


@quarantine.command("ls", example="agentmesh quarantine ls")
def quarantine_ls(session: Session) -> None:
    """List what is quarantined."""

    async def read() -> list[Quarantine]:
        from agentmesh.orders import Orders

        async with session.connect() as mesh:
            return await Orders(mesh.transport, mesh.subjects).quarantines()

    found = session.run(read())
    if session.out.json:
        session.out.document(found)
        return
    rows = [(q.id, q.agent, q.message_type, q.failures, q.sender or None, age(q.since), q.reason) for q in found]
    columns = ["ID", "AGENT", "MESSAGE", "FAILURES", "SENDER", "FOR", "REASON"]
    session.out.table(columns, rows, empty="nothing is quarantined")


@quarantine.command("release", example="agentmesh quarantine release 1f0c…")
def quarantine_release(
    session: Session, ids: Annotated[list[str], typer.Argument(metavar="ID...", help="As `quarantine ls` shows them.")]
) -> None:
    """Let such messages in again. The one that was kept is a dead letter: `agentmesh dead retry`."""
    for one in ids:
        session.check("quarantine id", one)

    async def release() -> list[Quarantine]:
        from agentmesh.orders import Orders

        async with session.connect() as mesh:
            orders = Orders(mesh.transport, mesh.subjects)
            return [await orders.release(one) for one in ids]

    released = session.run(release())
    if session.out.json:
        session.out.document(released)
    for order in released:
        session.out.note(f"{order.message_type} may reach {order.agent} again")
