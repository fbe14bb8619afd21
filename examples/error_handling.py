"""What readers see when a producer fails: an `error` chunk, and never a stream that just stops.

python examples/error_handling.py
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from agentmesh.local import broker_here
from agentmesh.streams import Chunk, Config, Publisher, Subscriber


async def answer() -> AsyncIterator[str]:
    yield "Processing..."
    raise RuntimeError("Something went wrong!")


async def by_itself(config: Config) -> None:
    """The exception becomes an error chunk, and goes on to whoever called; its traceback is in the log only."""
    async with Publisher(config) as pub:
        with contextlib.suppress(RuntimeError):
            await pub.publish_stream("chat-by-itself", answer())


def by_hand(config: Config) -> None:
    """The same, written out."""
    with Publisher(config) as pub:
        try:
            pub.publish(Chunk(conversation_id="chat-by-hand", content="Processing...", type="text"))
            raise RuntimeError("Something went wrong!")
        except RuntimeError as error:
            pub.publish(Chunk(conversation_id="chat-by-hand", content=str(error), type="error"))


def show(config: Config, conversation_id: str) -> None:
    print(conversation_id)
    with Subscriber(config) as sub:
        for chunk in sub.subscribe(conversation_id, one_run=True):
            print(f"  {chunk.type}: {chunk.content}")


with broker_here() as url:
    config = Config(servers=url)
    asyncio.run(by_itself(config))
    by_hand(config)
    show(config, "chat-by-itself")
    show(config, "chat-by-hand")
