"""A disk that can lose its power and can be full: ext4 in a file, on a loop device. Needs root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

FILLER = "filler"
"""File that takes the room on a full disk."""


def why_not() -> str:
    """Why there can be no such disk here; empty when there can."""
    if os.geteuid() != 0:
        return "needs root, for loop devices"
    if not Path("/dev/loop-control").exists():
        return "needs loop devices, and there is no /dev/loop-control"
    missing = [program for program in ("mkfs.ext4", "mount", "umount") if shutil.which(program) is None]
    return f"needs {', '.join(missing)}" if missing else ""


class Disk:
    """See the module. What the kernel had not written yet when the power failed is gone."""

    def __init__(self, size_mb: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="agentmesh-disk-"))
        self._image = self._folder / "image"
        self.path = self._folder / "disk"
        """Where it is mounted."""
        self.path.mkdir()
        with open(self._image, "wb") as image:
            image.truncate(size_mb << 20)
        _do("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()

    def cut_power(self) -> None:
        """Keep what is on the medium now, forget what is only in memory, and mount it again.

        Nobody may use the disk meanwhile. The copy is what the medium holds in this moment: the file system still has
        dirty pages that never reached it, and its journal is replayed by the mount, as after a real power failure.
        """
        survived = self._folder / "survived"
        _do("cp", "--sparse=always", str(self._image), str(survived))
        _do("umount", str(self.path))  # writes the rest, into the image that is thrown away
        os.replace(survived, self._image)
        self._mount()

    def fill(self) -> None:
        """Leave no room."""
        filler = os.open(self.path / FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while os.write(filler, bytes(size)):
                        pass
        finally:
            os.close(filler)

    def make_room(self) -> None:
        """Take away what `fill` wrote."""
        (self.path / FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount and remove it."""
        subprocess.run(["umount", str(self.path)], check=False, capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _mount(self) -> None:
        _do("mount", "-o", "loop", str(self._image), str(self.path))


@contextlib.asynccontextmanager
async def disks(count: int, size_mb: int) -> AsyncIterator[list[Disk]]:
    """So many disks, gone afterwards."""
    made: list[Disk] = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            disk = await asyncio.to_thread(Disk, size_mb)
            stack.push_async_callback(asyncio.to_thread, disk.close)
            made.append(disk)
        yield made


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
