"""Stream an answer from a generator, in code with an event loop.

    python examples/async_streaming.py

The generator may yield chunks or plain text. When it ends without a terminal chunk the run is finished; when it raises,
readers get an `error` chunk.
"""

import asyncio
from collections.abc import AsyncIterator

from agentmesh.local import broker_here
from agentmesh.streams import Chunk, Config, Publisher, Subscriber


async def generate_ai_response(conversation_id: str) -> AsyncIterator[Chunk]:
    """Simulate AI generating a response."""
    words = ["Hello", "there!", "How", "can", "I", "help", "you?"]

    for word in words:
        yield Chunk(conversation_id=conversation_id, content=word + " ", type="text")
        await asyncio.sleep(0.05)

    yield Chunk(conversation_id=conversation_id, content="", type="finish")


async def read(config: Config, conversation_id: str) -> None:
    """Print each chunk when it comes. The reader may be there before the conversation is."""
    async with Subscriber(config) as subscriber:
        async for chunk in subscriber.subscribe(conversation_id, one_run=True):
            print(chunk.content, end="\n" if chunk.is_final else "", flush=True)


async def main() -> None:
    async with broker_here() as url:
        config = Config(servers=url)
        async with asyncio.TaskGroup() as group:
            group.create_task(read(config, "demo-123"))
            async with Publisher(config) as publisher:
                await publisher.publish_stream("demo-123", generate_ai_response("demo-123"))


asyncio.run(main())
