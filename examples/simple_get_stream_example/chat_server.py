"""Type lines here and watch them stream, word by word, to every client.

    python examples/simple_get_stream_example/chat_server.py [--pause SECONDS]

Each line is one run of the conversation, with an end of its own; clients that come later, or come back, see all of
them.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from agentmesh.local import broker_here
from agentmesh.streams import Chunk, Config, Publisher

CONVERSATION = "simple-chat"


async def typed() -> AsyncIterator[str]:
    """Lines of standard input, until its end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        if text := line.decode(errors="replace").strip():
            yield text


async def words(text: str, pause: float) -> AsyncIterator[Chunk]:
    for word in text.split():
        yield Chunk(conversation_id=CONVERSATION, content=word + " ", type="text")
        await asyncio.sleep(pause)
    yield Chunk(conversation_id=CONVERSATION, content="", type="finish")


async def main(pause: float) -> None:
    async with broker_here() as url, Publisher(Config(servers=url)) as publisher:
        print(f"Chat server started, conversation {CONVERSATION!r}")
        print("Type a message and press Enter; Ctrl-C ends", flush=True)
        async for text in typed():
            await publisher.publish_stream(CONVERSATION, words(text, pause))
            print(f"Sent: {text}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Streams what you type to all chat clients.")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between words")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().pause))
