"""A named reader that can be killed: `python -m tests.streams.reader URL TENANT CHAT GROUP COUNT`.

It prints each content it has handled, and dies without a word while it handles the one with number COUNT.
"""

from __future__ import annotations

import os
import sys

from agentmesh.streams import Config, Subscriber


def main(url: str, tenant: str, chat: str, group: str, count: str) -> None:
    with Subscriber(Config(servers=url, tenant=tenant), group_id=group) as subscriber:
        for number, chunk in enumerate(subscriber.subscribe(chat)):
            if number == int(count):
                os.kill(os.getpid(), 9)
            print("handled", chunk.content, flush=True)
            if chunk.type == "finish":
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
