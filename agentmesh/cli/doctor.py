"""`agentmesh doctor`: what would keep agentmesh from working here, and how to put it right."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from agentmesh.cli.base import DEFAULT_URL, Commands, Session
from agentmesh.cli.findings import NOTE, OK, WARNING, WRONG, Finding, conclude
from agentmesh.errors import AgentMeshError, BrokerError, ConfigError, MissingExtraError

if TYPE_CHECKING:
    from agentmesh.transport import Transport

commands = Commands()

_EXTRAS = {
    "uvloop": ("fast", "a faster event loop"),
    "ruff": ("review", "agentmesh demo"),
    "radon": ("review", "agentmesh demo"),
    "watchfiles": ("reload", "agentmesh up --reload"),
}

LOW_SPACE = 1 << 30
"""Bytes of free disk below which a warning is due."""


@commands.command(
    "doctor",
    example="""agentmesh doctor
agentmesh doctor --strict --json
agentmesh doctor --show-config""",
    panel="Project",
)
def doctor(
    session: Session,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on warnings too.")] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every setting with its value and origin instead.")
    ] = False,
) -> None:
    """Check this machine, the settings and the broker; each problem comes with its fix.

    ✓ fine, ! works but look at it, ✗ does not work, · for your information. Exits with 1 if anything does not work.
    """
    if show_config:
        print_settings(session)
        return
    findings = [finding for look in _LOOKS for finding in look(session)]
    findings += (
        session.run(_broker(session)) if not any(f.what == "settings" and f.state == WRONG for f in findings) else []
    )
    conclude(session, findings, strict=strict)


def print_settings(session: Session) -> None:
    """Every setting with its value and where it came from."""
    entries = list(session.settings.entries())
    if session.out.json:
        session.out.document({e.key: {"value": e.value, "origin": e.origin} for e in entries})
    else:
        session.out.table(["SETTING", "VALUE", "FROM"], [(e.key, e.value, e.origin) for e in entries])


# ---------------------------------------------------------------- this machine


def _python(session: Session) -> Iterator[Finding]:
    yield Finding(OK, "python", f"{sys.version.split()[0]} at {sys.executable}")


def _packages(session: Session) -> Iterator[Finding]:
    names = ("nats-py", "pydantic", "msgspec", "typer")
    yield Finding(OK, "packages", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    for name, (extra, purpose) in _EXTRAS.items():
        try:
            yield Finding(OK, "extra", f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing = MissingExtraError(name, extra)
            yield Finding(NOTE, "extra", f"{name} is not installed: {purpose}", str(missing).partition("; ")[2])


def _server(session: Session) -> Iterator[Finding]:
    from agentmesh.broker import check_version, find_server, server_version

    try:
        path = find_server()
        version = server_version(path)
        check_version(version)
    except BrokerError as error:
        # Without one of our own, agentmesh still works with a broker that runs elsewhere.
        problem, _, fix = str(error).partition("; ")
        yield Finding(WARNING, "nats-server", problem, fix or "or use a running broker: --nats URL")
    else:
        yield Finding(OK, "nats-server", f"{version} at {path}")


def _terminal(session: Session) -> Iterator[Finding]:
    encoding = (sys.stdout.encoding or "").lower()
    size = shutil.get_terminal_size()
    kind = f"{size.columns} x {size.lines}" if sys.stdout.isatty() else "not a terminal: plain output"
    if encoding.replace("-", "") == "utf8":
        yield Finding(OK, "terminal", f"{kind}, UTF-8")
    else:
        yield Finding(WARNING, "terminal", f"{kind}, {encoding or 'unknown encoding'}", "export PYTHONUTF8=1")


# ---------------------------------------------------------------- settings and files


def _settings(session: Session) -> Iterator[Finding]:
    from agentmesh import config

    try:
        settings = session.settings
    except ConfigError as error:
        yield Finding(WRONG, "settings", str(error), "change it, then look again: agentmesh doctor --show-config")
        return
    source = f"{settings.file}" if settings.file else "no mesh.toml here or above: defaults"
    yield Finding(OK, "settings", source + (f", profile {settings.profile}" if settings.profile else ""))
    for variable, meant in config.unknown_variables():
        fix = f"did you mean {meant}?" if meant else f"unset {variable}"
        yield Finding(WARNING, "environment", f"${variable} is no setting and has no effect", fix)


def _store(session: Session) -> Iterator[Finding]:
    from agentmesh.broker import running_broker

    try:
        settings = session.settings
    except ConfigError:
        return
    store = settings.store
    if not settings.broker.embedded:
        return
    if store is None:
        yield Finding(NOTE, "store", "memory: everything is gone when the mesh stops")
        return
    parent = next(folder for folder in (store, *store.parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=parent):  # asking for permissions would not notice a full or read-only disk
            pass
    except OSError as error:
        problem = f"{parent} is not writable: {error.strerror}"
        yield Finding(WRONG, "store", problem, "make it so, or choose another directory: --store DIR")
        return
    user = running_broker(store)
    used = f", in use by the broker with pid {user.pid}" if user else ""
    yield Finding(OK, "store", f"{store}, {_size(_used(store))}{used}")
    free = shutil.disk_usage(parent).free
    if free < LOW_SPACE:
        yield Finding(WARNING, "disk", f"only {_size(free)} free at {parent}", "make room, or choose --store DIR")


def _run_file(session: Session) -> Iterator[Finding]:
    from agentmesh import runfile

    found = next(
        (
            (folder / runfile.RUN_DIR / runfile.NAME, content)
            for folder in (Path.cwd(), *Path.cwd().parents)
            if (content := runfile.read(folder / runfile.RUN_DIR))
        ),
        None,
    )
    if found is None:
        return
    path, content = found
    if content.alive():
        yield Finding(OK, "up", f"{content.name} runs with pid {content.pid} at {content.url}, tenant {content.tenant}")
        if content.http:
            yield _gateway(content.http)
    else:
        yield Finding(WARNING, "up", f"{path} is of a process that has died ({content.pid})", f"rm {path}")


def _gateway(url: str) -> Finding:
    """Whether the HTTP gateway of a running mesh answers, and is ready."""
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy: it is here
    try:
        with opener.open(f"{url}/ready", timeout=3.0):
            return Finding(OK, "http", f"{url} is ready")
    except urllib.error.HTTPError as error:
        return Finding(WARNING, "http", f"{url}/ready says {error.code}", f"curl {url}/ready")
    except OSError as error:
        return Finding(WRONG, "http", f"{url} does not answer: {error}", "agentmesh restart gateway")


def _port(session: Session) -> Iterator[Finding]:
    from agentmesh import ports

    try:
        broker = session.settings.broker
    except ConfigError:
        return
    port = 4222 if broker.port is None else broker.port
    if not broker.embedded or port == 0 or session.running:
        return
    if ports.is_free(broker.host, port):
        yield Finding(OK, "port", f"{port} is free")
    elif broker.port is None:
        yield Finding(NOTE, "port", f"{port} is taken by {ports.listener(port)}: agentmesh up will take another one")
    else:
        yield Finding(WRONG, "port", f"{port} is taken by {ports.listener(port)}", "stop it, or choose: --port 0")


_LOOKS: tuple[Callable[[Session], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _server,
    _terminal,
    _settings,
    _store,
    _run_file,
    _port,
)


# ---------------------------------------------------------------- the broker


async def _broker(session: Session) -> list[Finding]:
    from agentmesh.transport import Transport

    options = session.transport_options()
    try:
        async with await Transport.connect(options) as transport:
            return [
                Finding(OK, "broker", f"nats-server {transport.server_version} at {transport.url}"),
                _payload(session, transport),
                await _jetstream(transport),
                *await _promises(session, transport),
                *await _supervisors(session, transport),
            ]
    except AgentMeshError as error:
        if session.guessing:
            return [Finding(NOTE, "broker", f"none runs at {DEFAULT_URL}", "agentmesh up starts one")]
        problem, _, fix = str(error).partition("; ")
        way = await asyncio.to_thread(_way_to, options.servers[0], session.settings.origin("broker.url"))
        return [Finding(WRONG, "broker", problem, way or fix or "start it, or say where it is: --nats URL")]


def _way_to(url: str, origin: str) -> str:
    """What to do about a broker that cannot be reached; empty if something takes connections there."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 4222
    source = f"{host}:{port} (from {origin})"
    try:
        with socket.create_connection((host, port), timeout=2.0):
            return ""
    except ConnectionRefusedError:
        elsewhere = "unset NATS_URL and run: agentmesh up" if origin == "$NATS_URL" else "say where it is: --nats URL"
        return f"nothing listens on {source}; start a broker there: nats-server -js -p {port}; or {elsewhere}"
    except socket.gaierror:
        return f"the name {host!r} cannot be resolved; is it right? (from {origin})"
    except OSError:
        return f"nothing answers at {source}: a firewall, or the wrong host; try: nc -vz {host} {port}"


def _payload(session: Session, transport: Transport) -> Finding:
    limit = transport.max_payload
    if limit < 64 * 1024:
        return Finding(WARNING, "payload", f"messages up to {_size(limit)}", "raise max_payload in the broker")
    return Finding(OK, "payload", f"messages up to {_size(limit)}")


async def _supervisors(session: Session, transport: Transport) -> list[Finding]:
    """Who does the chores of the tenant, and whose memory it uses."""
    from agentmesh.lease import holders
    from agentmesh.up import supervisors

    try:
        found = await supervisors(transport, session.subjects)
        leases = await holders(transport, session.subjects)
    except AgentMeshError:
        return []
    findings = []
    active = leases.get("supervisor")
    if active is not None:
        standing_by = sum(not up["active"] for up in found)
        who = f"{active.about} (pid {active.pid} on {active.host}) does the chores, {standing_by} stand by"
        findings.append(Finding(OK, "supervisor", who))
    elif found:
        findings.append(Finding(WARNING, "supervisor", "none does the chores", "look again in some seconds"))
    if "memory" in leases:
        memory = leases["memory"]
        file = memory.about.partition(":")[2]
        findings.append(Finding(OK, "memory", f"served by pid {memory.pid} on {memory.host} from {file}"))
    return findings


async def _jetstream(transport: Transport) -> Finding:
    try:
        reply = await transport.request("$JS.API.INFO", b"", timeout=2.0)
        answer = json.loads(reply.data)
    except (AgentMeshError, ValueError):
        return Finding(
            WRONG, "jetstream", "does not answer: tasks and streams cannot work", "start nats-server with -js"
        )
    if "error" in answer:
        problem = answer["error"].get("description", "refused")
        return Finding(WRONG, "jetstream", str(problem), "enable JetStream for this account")
    used, limit = answer.get("storage", 0), answer.get("limits", {}).get("max_storage", -1)
    of = f" of {_size(limit)}" if limit > 0 else ""
    return Finding(OK, "jetstream", f"{answer.get('streams', 0)} streams, {_size(used)}{of}")


async def _promises(session: Session, transport: Transport) -> list[Finding]:
    """What about the broker would break one of the promises of docs/guarantees.md."""
    from agentmesh import brokercheck

    monitor = session.settings.broker.monitor or (session.running.monitor if session.running else None)
    try:
        found = await brokercheck.weaknesses(transport, monitor=monitor)
    except AgentMeshError:
        return []  # JetStream does not answer, which is a finding already
    findings = [Finding(WARNING, weakness.what, weakness.says, weakness.fix) for weakness in found]
    if not any(weakness.what == "durability" for weakness in found):
        findings.append(Finding(OK, "durability", "every accepted write is on disk (sync_interval: always)"))
    if all(weakness.what in ("durability", "clock") for weakness in found):
        findings.append(Finding(OK, "promises", "streams, copies and limits are as they should be"))
    return findings


def _used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _size(number: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TB"
