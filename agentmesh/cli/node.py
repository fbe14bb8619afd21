"""`agentmesh node`: host agents for a mesh that runs elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli.base import Commands, Session
from agentmesh.cli.up import LogFormatOption, log_format_of, run_here
from agentmesh.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from agentmesh.up import UpPlan

commands = Commands()

NODES = Path(".agentmesh", "nodes")
"""Where nodes keep their locks and logs."""


@commands.command(
    "node",
    example="""agentmesh node --nats nats://mesh.example:4222
agentmesh node hello.agents:Greeter --replicas 2 --nats nats://mesh.example:4222
agentmesh node --only greeter --replicas greeter=4 --nodes 2""",
    panel="Start",
)
def node(
    session: Session,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODULE:CLASS]...", help="Agents to host instead of those in mesh.toml."),
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="A,B", help="Only these agents of mesh.toml.")] = None,
    replicas: Annotated[
        list[str] | None,
        typer.Option("--replicas", metavar="N|AGENT=N", help="Replicas of every agent, or of one; repeat it."),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Processes that agents share.")] = 1,
    reload: Annotated[bool, typer.Option("--reload", help="Restart agents whose sources change.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop with 1 if any agent cannot start.")] = False,
    log_format: LogFormatOption = "text",
) -> None:
    """Join a running mesh, usually from another machine, and host agents for it.

    Starts no broker, memory or tools, and does no chores. Its agents share the work with those of the same name
    elsewhere. It outlives restarts of the broker; Ctrl-C finishes what is being done, and Ctrl-C again ends everything
    at once.
    """
    from agentmesh.up.rundir import first_free

    form = log_format_of(log_format)
    plan = _plan(session, targets or [], only, replicas or [])
    if not plan.agents:
        raise UsageError("no agents to host: name some as module:Class, or run it in a project with a mesh.toml")
    lock = first_free((plan.root / NODES).absolute())  # several may run from one project
    level = "DEBUG" if session.options.verbose else "WARNING" if session.options.quiet else "INFO"
    plan = replace(plan, run_dir=lock.folder, nodes=nodes, reload=reload, log_level=level, log_format=form)
    run_here(session, plan, strict, lock)


def _plan(session: Session, targets: list[str], only: str | None, replicas: list[str]) -> UpPlan:
    from agentmesh.cli.plan import make_plan, scaled
    from agentmesh.up import MemoryPlan, ToolsPlan

    if session.settings.broker.embedded:
        if session.running is None:
            raise ConfigError("broker.url", "a node joins a mesh that runs; say where its broker is: --nats URL")
        session.override("broker.url", session.running.url, "agentmesh up")
        session.override("tenant", session.tenant, "agentmesh up")
        del session.settings
    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    plan = make_plan(session.settings, targets, only=names)
    everyone = [int(number) for number in replicas if number.isdigit()]
    if everyone:
        plan = replace(plan, agents=tuple(replace(agent, replicas=everyone[-1]) for agent in plan.agents))
    plan = scaled(plan, [count for count in replicas if not count.isdigit()])
    return replace(
        plan,
        joined=True,
        memory=MemoryPlan(enabled=False),
        tools=ToolsPlan(),
        http=None,
    )
