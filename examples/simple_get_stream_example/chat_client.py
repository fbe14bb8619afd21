"""Watch the chat: what was said before you came, then every word as it comes.

    python examples/simple_get_stream_example/chat_client.py [NAME]

Start as many as you like; each is a reader of its own and gets everything.
"""

import asyncio
import contextlib
import sys

from agentmesh.errors import BrokerUnavailableError
from agentmesh.streams import Subscriber

CONVERSATION = "simple-chat"


async def main(name: str) -> None:
    async with Subscriber() as subscriber:
        print(f"{name} joined {CONVERSATION!r}; Ctrl-C leaves", flush=True)
        at_start = True
        async for chunk in subscriber.subscribe(CONVERSATION, follow=True):
            if at_start:
                print(f"[{name}] ", end="")
            print("\n" if chunk.is_final else chunk.content, end="", flush=True)
            at_start = chunk.is_final


if __name__ == "__main__":
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "Client-1"))
    except BrokerUnavailableError as error:
        sys.exit(f"{error}\nStart the server first: python examples/simple_get_stream_example/chat_server.py")
