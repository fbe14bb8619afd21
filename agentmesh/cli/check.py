"""`agentmesh check`: what about this project would not do what it says."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli.base import Commands, Session
from agentmesh.cli.findings import NOTE, OK, WARNING, WRONG, Finding, conclude
from agentmesh.errors import AgentMeshError, ConfigError

if TYPE_CHECKING:
    from agentmesh.agent import Agent
    from agentmesh.subjectlint import Misuse
    from agentmesh.transport import Transport

commands = Commands()

MOST_FILES = 2_000
"""Source files that are read; a project has fewer, a folder with everything in it more."""

_SKIPPED = frozenset({"node_modules", "site-packages", "build", "dist"})


@commands.command(
    "check",
    example="""agentmesh check
agentmesh check --strict --json
agentmesh check src/""",
    panel="Project",
)
def check(
    session: Session,
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders to read for subjects; unset: the project's.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on warnings too.")] = False,
) -> None:
    """Check this project: settings, agents, subjects in its code, and the broker if one runs.

    The settings are merged and shown with where each came from. Agents are imported, and must take messages of types.
    Code is read for queue groups where everybody should get a message, or none where one should, and for requests that
    nobody answers. A broker is asked for streams that answer requests themselves, and for its subscriptions.
    ✓ fine, ! works but look at it, ✗ does not work, · for your information. Exits with 1 if anything does not work.
    """
    findings = list(_settings(session))
    if not any(finding.state == WRONG for finding in findings):
        findings += _agents(session)
        findings += _code(session, paths or [])
        findings += session.run(_broker(session))
    conclude(session, findings, strict=strict)


# ---------------------------------------------------------------- settings


def _settings(session: Session) -> Iterator[Finding]:
    from agentmesh.cli.plan import make_plan

    try:
        settings = session.settings
        make_plan(settings)
    except ConfigError as error:
        yield Finding(WRONG, "settings", str(error), "change it, then look again: agentmesh check")
        return
    source = str(settings.file) if settings.file else "no mesh.toml here or above: defaults"
    yield Finding(OK, "settings", source + (f", profile {settings.profile}" if settings.profile else ""))
    for entry in settings.entries():
        if entry.origin != "default":
            yield Finding(NOTE, "setting", f"{entry.key} = {entry.value}  ({entry.origin})")


# ---------------------------------------------------------------- agents


def _agents(session: Session) -> Iterator[Finding]:
    settings = session.settings
    if str(settings.root) not in sys.path:
        sys.path.insert(0, str(settings.root))  # as in a node process
    if not settings.agents:
        yield Finding(NOTE, "agents", "the settings name none")
    for name, agent in settings.agents.items():
        yield from _agent(name, agent.target)
    for target in settings.tools.targets:
        try:
            importlib.import_module(target.partition(":")[0])
        except Exception as error:  # the edge to foreign code: importing it may raise anything
            yield Finding(WRONG, "tools", f"{target} cannot be imported: {type(error).__name__}: {error}")


def _agent(name: str, target: str) -> Iterator[Finding]:
    from agentmesh.host import load

    try:
        loaded = load(target)
    except Exception as error:  # the edge to foreign code: importing it may raise anything
        problem = str(error) if isinstance(error, AgentMeshError) else f"{type(error).__name__}: {error}"
        yield Finding(WRONG, "agent", f"{name}: {target} cannot be loaded: {problem}")
        return
    lacking = list(_untyped(name, loaded))
    yield from lacking
    if not lacking:
        yield Finding(OK, "agent", f"{name}: {', '.join(loaded._behaviour.handlers)}")


def _untyped(name: str, loaded: type[Agent]) -> Iterator[Finding]:
    handlers = loaded._behaviour.handlers
    if not handlers:
        says = f"{name} takes no messages: {loaded.__name__} has no handler"
        yield Finding(WARNING, "types", says, "mark a method with @handler, its first parameter annotated")
    for wire_name, entry in handlers.items():
        if entry.kind != "event" and entry.reply_type is Any:
            base = "Task" if entry.kind == "task" else "Request"
            says = f"{name}: {wire_name} promises Any, so no answer to it is checked"
            yield Finding(WARNING, "types", says, f"say what comes back: class {wire_name}({base}[str])")


# ---------------------------------------------------------------- code


def _code(session: Session, paths: Iterable[Path]) -> list[Finding]:
    from agentmesh.subjectlint import misuse, uses

    files = list(_files(session, paths))
    findings = []
    for file in files:
        for use in uses(_text(file)):
            problem = misuse(use)
            if problem is not None:
                findings.append(_misused(f"{_shown(file)}:{use.line}: ", problem))
    if files and not findings:
        findings.append(Finding(OK, "code", f"subjects in {len(files)} file{'s'[: len(files) != 1]}"))
    return findings


def _misused(where: str, problem: Misuse) -> Finding:
    return Finding(WARNING, "subject", where + problem.says, problem.fix)


def _files(session: Session, paths: Iterable[Path]) -> Iterator[Path]:
    """Python files of the project, or of the paths given."""
    chosen = list(paths) or ([session.settings.root] if session.settings.file else [])
    count = 0
    for path in chosen:
        if not path.exists():
            raise ConfigError("PATH", f"{path} does not exist", "check")
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            hidden = any(part.startswith(".") or part in _SKIPPED for part in file.relative_to(path).parts)
            if not hidden and not _in_environment(file, path):
                count += 1
                if count > MOST_FILES:
                    return
                yield file


def _in_environment(file: Path, root: Path) -> bool:
    """Whether it is a library in a virtual environment inside the project."""
    return any((folder / "pyvenv.cfg").exists() for folder in file.parents if folder != root and root in folder.parents)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _shown(file: Path) -> str:
    try:
        return str(file.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(file)


# ---------------------------------------------------------------- the broker


async def _broker(session: Session) -> list[Finding]:
    from agentmesh.transport import Transport

    try:
        async with await Transport.connect(session.transport_options()) as transport:
            return [
                *await _captured(transport),
                *await _running(session, transport),
                *await _subscribed(session),
            ]
    except AgentMeshError as error:
        if session.guessing:
            return [Finding(NOTE, "broker", "none runs here: what only it knows was not checked", "agentmesh up")]
        problem, _, fix = str(error).partition("; ")
        return [Finding(WRONG, "broker", problem, fix)]


async def _captured(transport: Transport) -> list[Finding]:
    """Streams that keep what is asked, and so answer requests themselves."""
    from agentmesh.brokercheck import overlaps

    found = [Finding(WRONG, one.what, one.says, one.fix) for one in overlaps(await transport.streams())]
    return found or [Finding(OK, "streams", "none captures a subject of requests")]


async def _running(session: Session, transport: Transport) -> list[Finding]:
    from agentmesh import registry

    findings = []
    infos = await registry.discover(transport, session.subjects)
    for name in sorted({info.name for info in infos}):
        replicas = [info for info in infos if info.name == name]
        if not any(info.messages for info in replicas):
            findings.append(Finding(WARNING, "types", f"{name} runs and takes no messages", "give it a handler"))
        if len({frozenset(message.name for message in info.messages) for info in replicas}) > 1:
            says = f"replicas of {name} take different messages: who gets one may not know it"
            findings.append(Finding(WARNING, "types", says, "restart those of the older code: agentmesh restart"))
    return findings


async def _subscribed(session: Session) -> list[Finding]:
    """Queue groups of the subscriptions that the broker has now, if its monitoring page is known."""
    monitor = session.settings.broker.monitor or (session.running.monitor if session.running else None)
    if monitor is None:
        return [
            Finding(NOTE, "groups", "the broker's monitoring page is not known: its subscriptions were not checked")
        ]
    try:
        page = await asyncio.to_thread(_page, f"{monitor.rstrip('/')}/connz?subs=detail&limit=1024")
    except (OSError, ValueError) as error:
        return [Finding(NOTE, "groups", f"the monitoring page {monitor} cannot be read: {error}")]
    findings = list(dict.fromkeys(_misused_groups(page)))
    return findings or [Finding(OK, "groups", "queue groups fit the subjects they are on")]


def _misused_groups(page: dict[str, Any]) -> Iterator[Finding]:
    from agentmesh.subjectlint import Use, misuse

    for connection in page.get("connections") or ():
        for entry in connection.get("subscriptions_list_detail") or ():
            # Without a group a subscription may well be a monitor: only code tells what it is meant for.
            if entry.get("qgroup"):
                problem = misuse(Use("subscribe", str(entry.get("subject", "")), str(entry["qgroup"])))
                if problem is not None:
                    yield _misused(f"{connection.get('name') or connection.get('cid')}: ", problem)


def _page(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise ValueError("expected an address such as http://127.0.0.1:8222")
    with urllib.request.urlopen(url, timeout=2.0) as page:
        document: Any = json.load(page)
    if not isinstance(document, dict):
        raise ValueError("it is no monitoring page")
    return document
