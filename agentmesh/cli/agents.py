"""`agentmesh ps`, `agents`, `scale`, `restart` and `logs`: who is there, and what it does."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli import exits
from agentmesh.cli.base import Commands, Session
from agentmesh.cli.output import age

if TYPE_CHECKING:
    from agentmesh.lease import Holder
    from agentmesh.registry import AgentInfo, MessageInfo

commands = Commands()
PANEL = "Watch and steer"

ROLLING_TIMEOUT = 600.0
"""Seconds a rolling restart or a drain may take, unless told otherwise: each process gets its grace."""

_STATES = {
    "ready": "green",
    "starting": "yellow",
    "restarting": "yellow",
    "stopping": "yellow",
    "paused": "yellow",
    "failed": "red",
}


@commands.command(
    "ps",
    example="""agentmesh ps
agentmesh ps --nodes
agentmesh ps --json | jq '.[].state'""",
    panel=PANEL,
)
def ps(
    session: Session,
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", help="Only this agent.", show_default=False)] = None,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="The processes that host agents, and the supervisors, instead.")
    ] = False,
) -> None:
    """List the replicas of agents that run now: state, process, queue and counts.

    With `--nodes`: which processes host agents, on which hosts, when they were last heard of, and which supervisor
    does the chores of the tenant.
    """
    if nodes:
        _show_nodes(session)
        return
    infos = session.run(_agents(session, agent or "", brief=True))
    if agent and not infos:
        raise _unknown(agent, session.run(_agents(session, "", brief=True)))
    if session.out.json:
        session.out.document(infos)
        return
    hosts = len({info.host for info in infos}) > 1
    rows = [
        (
            info.name,
            info.replica,
            info.state,
            info.node,
            *([info.host] if hosts else []),
            info.pid or None,
            info.mailbox,
            info.in_flight,
            info.handled,
            info.failed,
            info.restarts,
            age(info.started_at),
        )
        for info in infos
    ]
    columns = ["AGENT", "REPLICA", "STATE", "NODE", *(["HOST"] if hosts else []), "PID"]
    columns += ["QUEUED", "BUSY", "DONE", "FAILED", "RESTARTS", "UP"]
    session.out.table(columns, rows, empty=_nobody(session))
    for info in infos:
        if info.problem or info.remark:
            session.out.warning(f"{info.name}: {info.problem or info.remark}")


def _show_nodes(session: Session) -> None:
    supervisors, nodes, leases = session.run(_hosts(session))
    out = session.out
    if out.json:
        out.document({"supervisors": supervisors, "nodes": nodes, "leases": leases})
        return
    rows = [
        (
            node["node"],
            out.style(node["state"], {"up": "green", "down": "red"}.get(node["state"], "yellow")),
            node["host"],
            node["pid"],
            ", ".join(node["agents"]) or None,
            node["replicas"],
            f"{age(_time(node['seen_at']))} ago",
            age(_time(node["started_at"])),
        )
        for node in nodes
    ]
    columns = ["NODE", "STATE", "HOST", "PID", "AGENTS", "REPLICAS", "SEEN", "UP"]
    out.table(columns, rows, empty=_nobody(session))
    for up in supervisors:
        what = "does the chores" if up["active"] else "stands by"
        out.note(f"supervisor {up['name']} (pid {up['pid']} on {up['host']}) {what}")
        for group in up.get("groups", ()):
            why = f": {group['problem'].rstrip().rpartition(chr(10))[2]}" if group["problem"] else ""
            out.note(f"  group {group['name']} ({', '.join(group['agents'])}) is {group['state']}{why}")
    memory = leases.get("memory")
    if memory is not None:
        out.note(f"memory is served by pid {memory.pid} on {memory.host} from {memory.about.partition(':')[2]}")
    for node in nodes:
        if node["reason"] and node["state"] != "left":  # who left did so on purpose
            out.warning(f"{node['node']}: {node['reason']}")


async def _hosts(session: Session) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Holder]]:
    """The supervisors, the nodes as one of them sees them (else as we do), and who has which lease."""
    from agentmesh.lease import holders
    from agentmesh.presence import node_monitor
    from agentmesh.up import ask_supervisor, outline, supervisors

    async with session.connect() as mesh:
        transport, subjects = mesh.transport, mesh.subjects
        found = await supervisors(transport, subjects)
        if found:
            nodes = (await ask_supervisor(transport, subjects, "nodes", up=found[0]["id"]))["nodes"]
        else:
            nodes = [outline(node) for node in (await node_monitor(transport, subjects)).nodes()]
        return found, nodes, await holders(transport, subjects)


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None


agents = commands.group("agents", help="Who can be asked for what.", panel=PANEL)


@agents.command("ls", example="agentmesh agents ls")
def agents_ls(session: Session) -> None:
    """List agents with the messages they take."""
    infos = session.run(_agents(session, "", brief=False))
    by_name: dict[str, list[AgentInfo]] = {}
    for info in infos:
        by_name.setdefault(info.name, []).append(info)
    if session.out.json:
        session.out.document([_summary(replicas) for replicas in by_name.values()])
        return
    rows = [
        (
            name,
            f"{sum(info.state == 'ready' for info in replicas)}/{len(replicas)}",
            ", ".join(_called(message) for message in replicas[0].messages) or "-",
            _first_line(replicas[0].description),
        )
        for name, replicas in by_name.items()
    ]
    session.out.table(["AGENT", "READY", "MESSAGES", "WHAT IT DOES"], rows, empty=_nobody(session))


@agents.command("describe", example="agentmesh agents describe greeter")
def agents_describe(
    session: Session,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Name of the agent.", show_default=False)],
) -> None:
    """Show what an agent does, the messages it takes with their fields, and its replicas.

    With `--json` the messages come with their JSON Schemas.
    """
    infos = session.run(_agents(session, "", brief=False))
    replicas = [info for info in infos if info.name == agent]
    if not replicas:
        raise _unknown(agent, infos)
    out = session.out
    if out.json:
        out.document({**_summary(replicas), "replicas": replicas})
        return
    out.answer(f"{out.style(agent, 'bold')}  {replicas[0].description}".rstrip())
    out.answer("")
    rows = [(_called(m), m.kind, _fields(m.schema), _type(m.reply_schema)) for m in replicas[0].messages]
    out.table(["MESSAGE", "KIND", "FIELDS", "GIVES"], rows)
    out.answer("")
    out.table(
        ["REPLICA", "STATE", "NODE", "PID", "HOST", "UP"],
        [(i.replica, i.state, i.node, i.pid or None, i.host or None, age(i.started_at)) for i in replicas],
    )


# ---------------------------------------------------------------- steering a running mesh


@commands.command("scale", example="agentmesh scale greeter=3\nagentmesh scale greeter=3 counter=0", panel=PANEL)
def scale(
    session: Session,
    counts: Annotated[list[str], typer.Argument(metavar="AGENT=COUNT...", help="How many.", show_default=False)],
) -> None:
    """Change how many replicas of agents run. Those that go finish what they are doing first."""
    from agentmesh.cli.plan import count

    wanted = [count(text) for text in counts]
    for name, _ in wanted:
        session.check("agent", name)
    requests = [{"op": "scale", "agent": name, "replicas": number} for name, number in wanted]
    _steer(session, requests, [f"{name} has {number} replica{'s' * (number != 1)}" for name, number in wanted])


@commands.command(
    "restart",
    example="""agentmesh restart greeter
agentmesh restart node-1
agentmesh restart --rolling greeter
agentmesh restart --rolling --all""",
    panel=PANEL,
)
def restart(
    session: Session,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Agents, groups, or processes as ps calls them.", show_default=False),
    ] = None,
    rolling: Annotated[
        bool, typer.Option("--rolling", help="Replace their processes one after the other: new code, nothing lost.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="With --rolling: every process of agents.")] = False,
) -> None:
    """Restart agents, one replica after the other, or whole processes or groups. Messages that wait stay.

    With `--rolling` each process is replaced by one that imports the code afresh: the next one's turn comes when it is
    ready and the old one has finished what it had. Other agents of a shared process move with it.
    """
    from agentmesh.errors import UsageError

    if everything and not rolling:
        raise UsageError("--all needs --rolling: agentmesh restart --rolling --all")
    if bool(names) == everything:
        raise UsageError("name what to restart: agents, groups or processes" + (", or say --all" if rolling else ""))
    if rolling:
        requests = [{"op": "rolling", "name": name} for name in names or [""]]
        done = [f"{name or 'everything'} runs in fresh processes" for name in names or [""]]
        _steer(session, requests, done, timeout=ROLLING_TIMEOUT)
    else:
        requests = [{"op": "restart", "name": name} for name in names or []]
        _steer(session, requests, [f"{name} was restarted" for name in names or []])


@commands.command("drain", example="agentmesh drain node-1", panel=PANEL)
def drain(
    session: Session,
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="Nodes, as ps calls them.", show_default=False)],
) -> None:
    """Take nodes away: their agents start on others first, then they finish what they have and end.

    The last node that agents share is replaced by a new one.
    """
    requests = [{"op": "drain", "node": node} for node in nodes]
    _steer(
        session, requests, [f"{node} has ended; its agents run elsewhere" for node in nodes], timeout=ROLLING_TIMEOUT
    )


def _steer(session: Session, requests: list[dict[str, Any]], done: list[str], timeout: float | None = None) -> None:
    """Ask the running mesh for some changes, one after the other."""
    answers = session.run(_supervisor(session, requests, timeout))
    if session.out.json:
        session.out.document(answers)
    for answer, text in zip(answers, done, strict=True):
        if answer["problem"]:
            session.out.error(answer["problem"])
        else:
            session.out.note(text)
        if answer.get("elsewhere"):
            session.out.note(f"  and {answer['elsewhere']} more on nodes of other supervisors, or that joined")
    if any(answer["problem"] for answer in answers):
        raise typer.Exit(exits.FAILED)


async def _supervisor(session: Session, requests: list[dict[str, Any]], timeout: float | None) -> list[dict[str, Any]]:
    from agentmesh.up import ask_supervisor

    async with session.connect() as mesh:
        timeout = session.timeout(timeout)
        pid = session.running.pid if session.running else 0
        return [
            await ask_supervisor(mesh.transport, mesh.subjects, timeout=timeout, pid=pid, **request)
            for request in requests
        ]


# ---------------------------------------------------------------- parts


async def _agents(session: Session, name: str, *, brief: bool) -> list[AgentInfo]:
    from agentmesh.registry import discover

    async with session.connect() as mesh:
        return await discover(mesh.transport, mesh.subjects, name=name, brief=brief)


def _unknown(agent: str, infos: list[AgentInfo]) -> Exception:
    from agentmesh.errors import NoSuchAgentError
    from agentmesh.registry import near_misses

    return NoSuchAgentError(agent, near_misses(agent, [info.name for info in infos]))


def _nobody(session: Session) -> str:
    return f"no agents run in tenant {session.tenant}; start some: agentmesh up"


def _summary(replicas: list[AgentInfo]) -> dict[str, Any]:
    return {
        "name": replicas[0].name,
        "description": replicas[0].description,
        "ready": sum(info.state == "ready" for info in replicas),
        "total": len(replicas),
        "messages": replicas[0].messages,
    }


def _called(message: MessageInfo) -> str:
    """A stream is marked with a star, an event of a topic with the topic."""
    star = "*" if message.kind == "stream" else ""
    return f"{message.name}{star}" + (f" ({message.topic})" if message.topic else "")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    fields = schema.get("properties", {}).items()
    return ", ".join(f"{name}: {_type(kind)}{'' if name in required else '?'}" for name, kind in fields) or "-"


def _type(schema: dict[str, Any] | None) -> str:
    """A JSON Schema in a word."""
    if schema is None:
        return "-"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(_type(option) for option in schema["anyOf"])
    kind = str(schema.get("title") if schema.get("type") == "object" else schema.get("type", "any"))
    return f"{kind}[{_type(schema['items'])}]" if "items" in schema else kind
