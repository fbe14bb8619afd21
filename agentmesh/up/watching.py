"""Which source files change: told by the system if watchfiles is installed, else looked up twice a second."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

POLL_PERIOD = 0.5
"""Seconds between looks."""

_SKIPPED = {"__pycache__", "node_modules", "site-packages"}


Stamps = dict[str, tuple[int, int]]
"""Time of change (nanoseconds) and size of each file, by absolute path."""


async def changes(folders: Sequence[str], since: Stamps) -> AsyncIterator[set[str]]:
    """Absolute paths of Python files in `folders` that were changed, made or removed, as they happen.

    Args:
        folders: Where to look.
        since: `stamps` of the moment from which on no change may be missed.
    """
    try:
        from watchfiles import PythonFilter, awatch
    except ImportError:
        async for files in polled(folders, since):
            yield files
        return
    begun = False
    period = int(POLL_PERIOD * 1000)
    async for batch in awatch(*folders, watch_filter=PythonFilter(), rust_timeout=period, yield_on_timeout=True):
        files = _visible((path for _, path in batch), folders)
        if not begun:  # only now does the system tell of changes; what happened before is in the files
            begun = True
            files |= _differences(since, await asyncio.to_thread(stamps, folders))
        if files:
            yield files


async def polled(folders: Sequence[str], since: Stamps, period: float = POLL_PERIOD) -> AsyncIterator[set[str]]:
    """Like `changes`, by looking at the times of all files every `period` seconds."""
    before = since
    while True:
        await asyncio.sleep(period)
        after = await asyncio.to_thread(stamps, folders)
        if changed := _differences(before, after):
            yield changed
        before = after


def _differences(before: Stamps, after: Stamps) -> set[str]:
    return {path for path, _ in before.items() ^ after.items()}


def stamps(folders: Iterable[str]) -> Stamps:
    """How the Python files in `folders` are now."""
    found: Stamps = {}
    for path in _sources(folders):
        try:
            status = path.stat()
        except OSError:  # removed since it was listed
            continue
        found[str(path.resolve())] = (status.st_mtime_ns, status.st_size)
    return found


def _sources(folders: Iterable[str]) -> Iterator[Path]:
    for top in folders:
        for folder, inside, files in os.walk(top):
            inside[:] = [name for name in inside if not name.startswith(".") and name not in _SKIPPED]
            yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _visible(paths: Iterable[str], folders: Sequence[str]) -> set[str]:
    return {os.path.realpath(path) for path in paths if not _hidden(path, folders)}


def _hidden(path: str, folders: Iterable[str]) -> bool:
    """Whether it lies in a folder that `_sources` would not look into."""
    for top in folders:
        if path.startswith(f"{top}{os.sep}"):
            parts = Path(path).relative_to(top).parts[:-1]
            return any(part.startswith(".") or part in _SKIPPED for part in parts)
    return False
