"""Publish, then read: what is published stays readable, and reading ends.

python examples/quick_start.py
"""

from agentmesh.local import broker_here
from agentmesh.streams import Chunk, Config, Publisher, Subscriber

with broker_here() as url:  # $NATS_URL, `agentmesh up`, or a broker of our own until the end of the block
    config = Config(servers=url)

    with Publisher(config) as pub:
        chunk = Chunk(conversation_id="chat-123", content="Hello!", type="text")
        pub.publish(chunk)
    # Nothing said that the answer is finished, so the end of the block did: readers get an `error` chunk, "aborted".

    with Subscriber(config) as sub:
        for chunk in sub.subscribe("chat-123", one_run=True):
            print(f"{chunk.offset} {chunk.type}: {chunk.content}")
