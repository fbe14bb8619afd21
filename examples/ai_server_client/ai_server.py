"""Answers questions and streams the answers, each into a conversation of its own.

    python examples/ai_server_client/ai_server.py [--pause SECONDS]

The answers are those of the model `default` (`[models.default]` of an `agentmesh up`), which works offline. They are
stored as they are made: frontends may come before, in the middle or after, go away and come back.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator

from agentmesh import Mesh, connect
from agentmesh.agents.llm import LLMGateway
from agentmesh.agents.llm.client import LLMClient
from agentmesh.local import broker_here
from agentmesh.streams import Chunk, Config, Publisher

QUESTIONS = {
    "conv-001": "How do streams survive a page refresh?",
    "conv-002": "What is a queue group?",
    "conv-003": "What is 17 * 23?",
}


async def generate(llm: LLMClient, conversation_id: str, question: str, pause: float) -> AsyncIterator[Chunk]:
    """The question, the answer as it is made, and what it used."""
    yield Chunk(conversation_id=conversation_id, content=question, type="text", role="user")
    async for part in llm.stream(question):
        if part.type == "text":
            yield Chunk(conversation_id=conversation_id, content=part.content, type="text")
            await asyncio.sleep(pause)
        elif part.is_final:
            yield Chunk(conversation_id=conversation_id, type="usage", data=part.response().usage.model_dump())
    yield Chunk(conversation_id=conversation_id, content="", type="finish")


async def start_model(mesh: Mesh) -> LLMClient:
    """A client of the gateway that runs here, or of one of our own."""
    if not await mesh.agents("llm"):
        await mesh.spawn(LLMGateway)
    return LLMClient(mesh)


async def main(pause: float) -> None:
    async with broker_here() as url, connect(url) as mesh, Publisher(Config(servers=url)) as publisher:
        llm = await start_model(mesh)
        print(f"AI server started, conversations {', '.join(QUESTIONS)}", flush=True)

        async def answer(conversation_id: str, question: str) -> None:
            chunks = generate(llm, conversation_id, question, pause)
            await publisher.publish_stream(conversation_id, chunks)
            print(f"[{conversation_id}] answered: {question}", flush=True)

        await asyncio.gather(*(answer(*item) for item in QUESTIONS.items()))
        print("All answers are stored and can be replayed; Ctrl-C ends", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Streams answers into conversations.")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between tokens")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().pause))
