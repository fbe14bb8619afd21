"""A node with the agent `helper` and the gateway `llm`: `python -m tests.llm_agent.node URL TENANT LEDGER`.

It prints `ready`; its model is a puppet, which writes a line into LEDGER for each call.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from agentmesh import connect
from agentmesh.agents.llm import LLMAgent, LLMGateway
from tests.llm_agent.puppet import Puppet


class Helper(LLMAgent):
    """Helps."""

    system_prompt = "You are the helper."
    tools = ("search", "add")
    approve = ("send_mail",)
    memory = True


async def main(url: str, tenant: str, ledger: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    model: Any = Puppet(Path(ledger))
    async with connect(url, tenant=tenant) as mesh:
        await mesh.spawn(LLMGateway, models={"default": model})
        await mesh.spawn(Helper)
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
