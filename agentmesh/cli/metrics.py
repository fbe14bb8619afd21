"""`agentmesh metrics`: what the processes of a mesh count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli.base import Commands, Session

if TYPE_CHECKING:
    from agentmesh.metrics import Family

commands = Commands()


@commands.command(
    "metrics",
    example="agentmesh metrics\nagentmesh metrics --process node-1\nagentmesh metrics agentmesh_mailbox --json",
    panel="Watch and steer",
)
def metrics(
    session: Session,
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only names that begin with it.")] = "",
    process: Annotated[
        str, typer.Option("--process", "--node", metavar="NAME", help="Only what this process counts.")
    ] = "",
) -> None:
    """Print the metrics of all processes, and how much waits at the broker, in the text format of Prometheus.

    With `--json`, a document.
    """
    from agentmesh.errors import UsageError
    from agentmesh.metrics import render

    families = session.run(_families(session, process))
    if process and not families:
        raise UsageError(f"no process {process!r} answers; without --process the label `process` of all is shown")
    chosen = [family for family in families if family.name.startswith(prefix)]
    if session.out.json:
        session.out.document(chosen)
    else:
        session.out.answer(render(chosen), end="")


async def _families(session: Session, process: str) -> list[Family]:
    from agentmesh.metrics import collect_families

    async with session.connect() as mesh:
        return await collect_families(mesh.transport, mesh.subjects, process=process, timeout=session.timeout(1.0))
