"""Read a conversation again, from any chunk.

    python examples/replay_from_offset.py [CONVERSATION [OFFSET]]

An offset is the number of a chunk in its conversation, from 0; finding it takes the same time in a long one. A reader
changes nothing: any number of them may replay the same.
"""

import sys

from agentmesh.local import broker_here
from agentmesh.streams import Chunk, Config, Publisher, Subscriber

conversation_id = sys.argv[1] if len(sys.argv) > 1 else "chat-123"
from_offset = int(sys.argv[2]) if len(sys.argv) > 2 else 0

with broker_here() as url:
    config = Config(servers=url)

    with Publisher(config) as pub:  # something to replay
        for word in ["Streams", "can", "be", "read", "again", "from", "any", "point"]:
            pub.publish(Chunk(conversation_id=conversation_id, content=word, type="text"))
        pub.publish(Chunk(conversation_id=conversation_id, content="", type="finish"))

    with Subscriber(config, group_id="replay-client") as sub:
        for chunk in sub.subscribe(conversation_id, from_offset=from_offset):
            print(f"Replayed: {chunk.content}")
            if chunk.type == "finish":
                break
