"""A process with one replica of the gateway: URL of the broker, tenant, URL of a server of models, name."""

from __future__ import annotations

import asyncio
import sys

from agentmesh import connect
from agentmesh.agents.llm import LLMGateway


async def main(nats: str, tenant: str, models: str, name: str) -> None:
    model = {"backend": "openai", "base_url": models, "model": name, "api_key": "none"}
    llm = {"routes": {"default": {"models": ["a"], "backoff": 0.05, "total": "30s"}}, "doors": {"enabled": False}}
    async with connect(nats, tenant=tenant, name=name, own_thread=False) as mesh:
        await mesh.spawn(LLMGateway, {"a": model}, llm)
        print("ready", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
