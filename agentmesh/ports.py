"""TCP ports on this machine: which are free, and who holds the others."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import weakref
from pathlib import Path
from typing import Any

# Below the range from which Linux (32768 up) and macOS (49152 up) take the local end of outgoing connections.
# A server that must come back on the same port would otherwise lose it to a client that is
# trying to reconnect: on loopback such a client can even end up connected to itself.
_FIRST, _LAST = 15_000, 32_000


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    probe, address = _socket(host, port)
    with probe:
        # As every server does; without it a port whose old connections linger in TIME_WAIT looks taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


class Reserved:
    """A port that `reserve` gives to nobody else, in any process, for as long as this object lives."""

    def __init__(self, port: int, holder: socket.socket) -> None:
        self.port = port
        if sys.platform == "linux":
            weakref.finalize(self, os.close, holder.detach())
        else:  # where it would keep our own server out as well: then the port is only likely to stay free
            holder.close()


def reserve(host: str = "127.0.0.1") -> Reserved:
    """A random port for a server, which may start, stop and start there again.

    Raises:
        OSError: No such address, or no port is free.
    """
    for port in random.sample(range(_FIRST, _LAST), 200):
        holder, address = _socket(host, port)
        try:
            holder.bind(address)  # fails where another process holds the port, listening or not
        except OSError:
            holder.close()
            continue
        # From now on a server that sets SO_REUSEADDR, as they all do, may bind and listen there too.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return Reserved(port, holder)
    raise OSError(f"200 random ports between {_FIRST} and {_LAST} are all taken on {host}")


def listener(port: int) -> str:
    """Who listens on `port`, such as "redis-server (pid 42)"; "another process" when it cannot be told.

    Only Linux tells, and only about processes of the same user unless asked by root.
    """
    inodes = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening_inodes(table, port)}
    if inodes:
        for process in Path("/proc").glob("[0-9]*"):
            if _has_open(process, inodes):
                with contextlib.suppress(OSError):
                    return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return "another process"


def _socket(host: str, port: int) -> tuple[socket.socket, Any]:
    """An unbound socket for that address, and the address in its form."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.socket(family, kind, protocol), address


def _listening_inodes(table: str, port: int) -> list[str]:
    """Socket inodes in state LISTEN (0A) on `port`, from /proc/net."""
    try:
        rows = Path("/proc/net", table).read_text().splitlines()[1:]
    except OSError:
        return []
    fields = (row.split() for row in rows)
    return [f[9] for f in fields if f[3] == "0A" and int(f[1].rpartition(":")[2], 16) == port]


def _has_open(process: Path, targets: set[str]) -> bool:
    try:
        return any(os.readlink(fd) in targets for fd in (process / "fd").iterdir())
    except OSError:  # it ended meanwhile, or belongs to somebody else
        return False
