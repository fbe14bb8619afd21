"""A node with a replica of `teller`: `python -m tests.idempotency.node URL TENANT FILE [SECONDS]`; prints `ready`.

The handler appends a line to FILE whenever it begins, and takes SECONDS.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from agentmesh import Agent, Request, Retry, Task, connect, handler


class Pay(Request[str]):
    amount: int
    how: str = ""


class Transfer(Task[str]):
    amount: int


class Teller(Agent):
    concurrency = 10

    def __init__(self, path: str, seconds: float) -> None:
        self.path = path
        self.seconds = seconds
        self.tries = 0

    @handler
    async def pay(self, request: Pay) -> str:
        note(self.path)
        self.tries += 1
        await asyncio.sleep(self.seconds)
        match request.how:
            case "fail":
                raise ValueError("no money")
            case "later" if self.tries == 1:
                raise Retry(reason="nothing was done")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
        return f"paid {request.amount} by {os.getpid()}, try {self.tries}"

    @handler
    async def transfer(self, task: Transfer) -> str:
        note(self.path)
        await asyncio.sleep(self.seconds)
        return f"sent {task.amount}"


def note(path: str) -> None:
    """One line more in the file."""
    with Path(path).open("a") as file:
        file.write("begun\n")


def begun(path: Path) -> int:
    """Lines in the file."""
    return len(path.read_text().splitlines()) if path.exists() else 0


async def main(url: str, tenant: str, path: str, seconds: str = "0.3") -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with connect(url, tenant=tenant) as mesh:
        await mesh.spawn(Teller, path, float(seconds))
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
