"""A producer that can be killed: `python -m tests.streams.producer URL TENANT CHAT [RUN_ID EPOCH]`.

It says a word every 20 ms, for ever, and prints `speaking`.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from agentmesh import connect


async def main(url: str, tenant: str, chat: str, run_id: str = "", epoch: str = "1") -> None:
    mesh = await connect(url, tenant=tenant)
    async with mesh, mesh.streams.run(chat, run_id=run_id or None, epoch=int(epoch)) as run:
        for number in itertools.count():
            await run.send(f"{epoch}.{number}")
            await run.flush()
            if number == 3:
                print("speaking", flush=True)
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
