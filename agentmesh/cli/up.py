"""`agentmesh up` and `down`: run the project, here or in the background, and stop it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from agentmesh.cli import exits
from agentmesh.cli.base import Commands, Session
from agentmesh.errors import UsageError

if TYPE_CHECKING:
    from agentmesh.up import UpEvent, UpPlan
    from agentmesh.up.rundir import RunLock

LogFormatOption = Annotated[
    str, typer.Option("--log-format", metavar="text|json", help="Lines for people, or a JSON document each.")
]

commands = Commands()
PANEL = "Start"


@commands.command(
    "up",
    example="""agentmesh up
agentmesh up hello.agents:Greeter --replicas greeter=3
agentmesh up --reload --only greeter,counter
agentmesh up --detach --store memory --port 0""",
    panel=PANEL,
)
def up(
    session: Session,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODULE:CLASS]...", help="Agents to run instead of those in mesh.toml."),
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="A,B", help="Only these agents of mesh.toml.")] = None,
    replicas: Annotated[
        list[str] | None, typer.Option("--replicas", metavar="AGENT=N", help="Replicas of an agent; repeat it.")
    ] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Processes that agents share.")] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="DIR|memory", help="Where the embedded broker keeps its data.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Of the embedded broker; 0: any free one.")
    ] = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Where the HTTP gateway listens; port 0: any.")
    ] = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="Without the HTTP gateway.")] = False,
    reload: Annotated[bool, typer.Option("--reload", help="Restart agents whose sources change.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background; return when ready.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop with 1 if any agent cannot start.")] = False,
    log_format: LogFormatOption = "text",
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every setting with its value and origin; start nothing.")
    ] = False,
) -> None:
    """Run the agents, tools and memory of this project, with a broker of its own unless one is given.

    Ctrl-C stops in good order: what is being done is finished, the rest is given back. Ctrl-C again ends everything at
    once. With `--json` each event is one line.
    """
    _override(session, store, port, nodes)
    _override_http(session, http, no_http)
    if show_config:
        from agentmesh.cli.doctor import print_settings

        print_settings(session)
        return
    plan = replace(_plan(session, targets or [], only, replicas or [], reload), log_format=log_format_of(log_format))
    warn_of_nothing(session, plan)
    if detach:
        _run_detached(session, plan, strict)
    else:
        run_here(session, plan, strict)


def warn_of_nothing(session: Session, plan: UpPlan) -> None:
    """Say so if no agent will run."""
    if not plan.agents:
        session.out.note("no agents to run: name some as module:Class, or make a project: agentmesh init hello")


def log_format_of(text: str) -> Literal["text", "json"]:
    """What `--log-format` says.

    Raises:
        UsageError: It is none of the two.
    """
    if text not in ("text", "json"):
        raise UsageError(f"--log-format {text!r}: expected text or json")
    return "json" if text == "json" else "text"


def _override(session: Session, store: str | None, port: int | None, nodes: int | None) -> None:
    # What is typed is meant from here, what stands in the file from where the file is.
    session.override("broker.store", store if store in (None, "memory") else os.path.abspath(str(store)), "--store")
    session.override("broker.port", port, "--port")
    session.override("node.count", nodes, "--nodes")


def _override_http(session: Session, http: str | None, no_http: bool) -> None:
    if http is not None and no_http:
        raise UsageError("--http and --no-http exclude each other")
    session.override("http.enabled", False if no_http else True if http else None, "--no-http" if no_http else "--http")
    if http is not None:
        host, _, port = http.rpartition(":")
        if not port.isdigit():
            raise UsageError(f"--http {http!r}: expected HOST:PORT, such as 127.0.0.1:8000 or :8000")
        session.override("http.host", host or "127.0.0.1", "--http")
        session.override("http.port", int(port), "--http")


def _plan(session: Session, targets: Sequence[str], only: str | None, replicas: Sequence[str], reload: bool) -> UpPlan:
    from agentmesh.cli.plan import make_plan, scaled

    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    plan = scaled(make_plan(session.settings, targets, only=names, ready_made=True), replicas)
    level = "DEBUG" if session.options.verbose else "WARNING" if session.options.quiet else "INFO"
    return replace(plan, reload=reload, log_level=level)


def run_here(session: Session, plan: UpPlan, strict: bool, lock: RunLock | None = None) -> None:
    """Run a plan until it is told to stop, and show what happens. `lock`: of its folder, if it is held already.

    Raises:
        typer.Exit: It did not end well.
    """
    from agentmesh.cli.screen import Screen
    from agentmesh.up import Ready, Stopped, Up

    screen = Screen(session.out, plan)
    code = exits.OK

    def show(event: UpEvent) -> None:
        nonlocal code
        screen(event)
        if isinstance(event, Ready) and strict and event.failed:
            code = exits.FAILED
            running.stop(f"--strict: {event.failed} agents cannot start")
        elif isinstance(event, Stopped) and event.killed and code == exits.OK:
            code = exits.INTERRUPTED

    running = Up(plan, show, lock)
    screen.banner()
    session.run(running.run())
    if code:
        raise typer.Exit(code)


def _run_detached(session: Session, plan: UpPlan, strict: bool) -> None:
    from agentmesh.up import down, start_detached

    started = start_detached(plan, timeout=session.timeout(60.0))
    agents = session.run(_wanted(session, plan, started.url))
    failed = [name for name, agent in agents.items() if agent["wanted"] and not agent["ready"]]
    if strict and failed:
        down(plan.folder)
        session.out.error(f"stopped again, because of --strict: {', '.join(failed)} cannot start")
        raise typer.Exit(exits.FAILED)
    if session.out.json:
        about = {"pid": started.pid, "url": started.url, "http": started.http, "tenant": started.tenant}
        session.out.document({**about, "agents": agents})
        return
    rows = [
        (name, f"{a['ready']}/{a['wanted']}", a["isolation"], a["problem"].partition("\n")[0] or "ready")
        for name, a in agents.items()
    ]
    session.out.table(["AGENT", "REPLICAS", "ISOLATION", "STATE"], rows)
    where = started.url + (f" and {started.http}" if started.http else "")
    session.out.note(f"\n{started.name} runs with pid {started.pid} at {where}; stop it: agentmesh down")


async def _wanted(session: Session, plan: UpPlan, url: str) -> dict[str, dict[str, Any]]:
    """What became of each agent of a mesh that just started."""
    from agentmesh.subjects import Subjects
    from agentmesh.transport import Transport
    from agentmesh.up import ask_supervisor

    async with await Transport.connect(plan.transport(plan.broker.url or url, "cli")) as transport:
        answer = await ask_supervisor(transport, Subjects(plan.tenant), "ps")
    return {
        name: {
            "wanted": wanted["replicas"],
            "ready": sum(info["name"] == name and info.get("state", "ready") == "ready" for info in answer["agents"]),
            "isolation": wanted["isolation"],
            "problem": next((i["problem"] for i in answer["agents"] if i["name"] == name and i.get("problem")), ""),
        }
        for name, wanted in answer["wanted"].items()
    }


@commands.command("down", example="agentmesh down\nagentmesh down --force", panel=PANEL)
def down_(
    session: Session,
    force: Annotated[bool, typer.Option("--force", help="Kill everything at once.")] = False,
    volumes: Annotated[bool, typer.Option("--volumes", help="Also remove the embedded broker's data.")] = False,
) -> None:
    """Stop the mesh that runs in this folder, and wait until nothing of it is left.

    What is being done is finished first, for up to `--timeout` (30 s); then it is killed.
    """
    from agentmesh.up import down

    folder = _run_folder(session)
    done = down(folder, timeout=session.timeout(30.0), force=force)
    if volumes and done.stopped:
        _remove_store(session)
    if session.out.json:
        session.out.document(done)
    elif done.pid is None:
        session.out.note(f"nothing runs in {folder.parent}")
    else:
        how = "was killed" if done.killed else "stopped" if done.stopped else "still runs; try: agentmesh down --force"
        session.out.note(f"the mesh with pid {done.pid} {how}")
    if not done.stopped:
        raise typer.Exit(exits.FAILED)


def _run_folder(session: Session) -> Path:
    """The run directory of the mesh that runs here or above; else the project's."""
    from agentmesh.runfile import RUN_DIR
    from agentmesh.up import holder

    folders = [session.settings.root, Path.cwd(), *Path.cwd().parents]
    return next((folder / RUN_DIR for folder in folders if holder(folder / RUN_DIR) is not None), folders[0] / RUN_DIR)


def _remove_store(session: Session) -> None:
    import shutil

    from agentmesh.broker import running_broker

    store = session.settings.store
    if store is None or not store.is_dir():
        return
    if running_broker(store) is not None:
        raise UsageError(f"{store} is in use by another broker; nothing was removed")
    shutil.rmtree(store)
    session.out.note(f"removed {store}")
