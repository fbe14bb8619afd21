"""`agentmesh limits`: how far limits are used, and who waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli.base import Commands, Session

if TYPE_CHECKING:
    from agentmesh.tasks.use import LimitUse

commands = Commands()
PANEL = "Work"

limits = commands.group("limits", help="How far concurrency and rate limits are used.", panel=PANEL)


@limits.command("ls", example="agentmesh limits ls\nagentmesh limits ls --json")
def ls(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The most to show.")] = 50,
) -> None:
    """List the limits in use, those with the most waiting tasks first.

    A limit with a key has a line for each of its values. What was not used within the last minute is not shown.
    """
    found = session.run(_ls(session, limit))
    if session.out.json:
        session.out.document(found)
        return
    rows = [(f"{use.scope} {use.owner}", use.key or None, _used(use), _unit(use), use.waiting or None) for use in found]
    session.out.table(["LIMIT", "KEY", "USED", "OF", "WAITING"], rows, empty="no limits in use")


def _used(use: LimitUse) -> str:
    if use.kind == "usd":  # counted in nano-dollars
        return f"${use.used / 1e9:.4g}/${use.allowed / 1e9:g}"
    return f"{use.used}/{use.allowed}"


def _unit(use: LimitUse) -> str:
    if use.kind == "usd":
        return "spent today"
    if use.kind in ("tokens", "requests"):
        return f"{use.kind} in {use.period:g} s"
    return f"starts in {use.period:g} s" if use.period else "at once"


async def _ls(session: Session, limit: int) -> list[LimitUse]:
    async with session.connect() as mesh:
        return await mesh.limits.ls(limit)
