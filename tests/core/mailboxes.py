"""An agent process that can be killed: `python -m tests.core.mailboxes URL TENANT FILE [REPLICA]`.

It hosts one replica of `ledger-keeper`, which appends each durable event's number and its pid to the file.
"""

from __future__ import annotations

import asyncio
import os
import sys

from agentmesh import Agent, CellOptions, Event, connect, handler


class Entry(Event, durable=True):
    n: int


class LedgerKeeper(Agent):
    """Keeps book, in order."""

    def __init__(self, path: str) -> None:
        self.path = path

    @handler
    async def entry(self, event: Entry) -> None:
        with open(self.path, "a") as file:  # noqa: ASYNC230  (a line, at once)
            file.write(f"{event.n} {os.getpid()}\n")


async def main(url: str, tenant: str, path: str, replica: str = "1") -> None:
    async with connect(url, tenant=tenant, own_thread=False) as mesh:
        await mesh.spawn(LedgerKeeper, path, options=CellOptions(replica=int(replica)))
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
