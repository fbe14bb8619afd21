"""A node with agents to chat with: `python -m tests.chat.node URL TENANT [relay] [counter]`; prints `ready`."""

from __future__ import annotations

import asyncio
import sys

from agentmesh import connect
from agentmesh.agents.chat import Conversations
from tests.chat.agents import Counter


async def main(url: str, tenant: str, *wanted: str) -> None:
    """Until it is killed."""
    async with connect(url, tenant=tenant, own_thread=False) as mesh:
        if "relay" in wanted:
            await mesh.spawn(Conversations)
        if "counter" in wanted:
            await mesh.spawn(Counter)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
