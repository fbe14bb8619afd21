"""Watch conversations as a frontend would: replay what is stored, then follow, all of them at the same time.

    python examples/ai_server_client/frontend_client.py conv-001
    python examples/ai_server_client/frontend_client.py conv-001 conv-002 conv-003
    python examples/ai_server_client/frontend_client.py interactive

With one conversation tokens are printed as they come, with several each line when it is complete. A conversation that
does not exist yet is waited for.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from agentmesh.errors import AgentMeshError, BrokerUnavailableError
from agentmesh.streams import AsyncSubscriber, Chunk, Subscriber


class Screen:
    """Prints the chunks of one conversation."""

    def __init__(self, conversation_id: str, *, alone: bool) -> None:
        self._name = conversation_id
        self._alone = alone
        self._line = ""
        self._count = 0

    def show(self, chunk: Chunk) -> None:
        self._count += 1
        if chunk.role == "user":
            print(f"[{self._name}] question: {chunk.content}", flush=True)
        elif chunk.type == "text":
            self._line += chunk.content
            if self._alone:
                print(chunk.content, end="", flush=True)
        elif chunk.type == "usage":
            self._end_line()
            print(f"[{self._name}] tokens: {chunk.data['total_tokens']}", flush=True)
        elif chunk.is_final:
            self._end_line()
            problem = f": {chunk.content}" if chunk.content else ""
            print(f"[{self._name}] {chunk.type}{problem} ({self._count} chunks)", flush=True)

    def _end_line(self) -> None:
        if self._line:
            print("" if self._alone else f"[{self._name}] {self._line}", flush=True)
        self._line = ""


async def watch(subscriber: AsyncSubscriber, conversation_id: str, from_offset: int, *, alone: bool) -> None:
    screen = Screen(conversation_id, alone=alone)
    async for chunk in subscriber.subscribe(conversation_id, from_offset=from_offset):
        screen.show(chunk)


async def typed(prompt: str) -> AsyncIterator[list[str]]:
    """Words of each line of standard input."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while True:
        print(prompt, end="", flush=True)
        line = await reader.readline()
        if not line:
            return
        yield line.decode(errors="replace").split()


async def interactive(subscriber: AsyncSubscriber) -> None:
    print("conversation [offset] watches one, from the chunk of that number; quit ends", flush=True)
    async for words in typed("> "):
        if words in (["quit"], ["exit"]):
            return
        if not words:
            continue
        try:
            offset = int(words[1]) if len(words) > 1 else 0
            await watch(subscriber, words[0], offset, alone=True)
        except (ValueError, AgentMeshError) as error:
            print(error, flush=True)


async def main(conversations: list[str], from_offset: int) -> None:
    async with Subscriber() as subscriber:
        if conversations == ["interactive"]:
            await interactive(subscriber)
            return
        print(f"Watching {', '.join(conversations)}; Ctrl-C ends", flush=True)
        async with asyncio.TaskGroup() as group:
            for conversation_id in conversations:
                group.create_task(watch(subscriber, conversation_id, from_offset, alone=len(conversations) == 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Watches conversations.")
    parser.add_argument("conversations", nargs="+", metavar="CONVERSATION", help="ids, or the word interactive")
    parser.add_argument("--from-offset", type=int, default=0, metavar="N", help="number of the first chunk to show")
    given = parser.parse_args()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(main(given.conversations, given.from_offset))
    except BrokerUnavailableError as error:
        sys.exit(f"{error}\nStart the server first: python examples/ai_server_client/ai_server.py")
