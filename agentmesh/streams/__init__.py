"""Replayable streams: what is appended is stored, seen live, and can be read again from any point.

    async with mesh.streams.run("chat-1") as run:           # one producer's turn
        async for token in model:
            await run.send(token)
        await run.finish()

    async for chunk in mesh.streams.read("chat-1", from_offset=0): ...

A stream is one subject, `ai.stream.T.<id>`, in one JetStream stream: a conversation, or what a task tells (its id is
the task's). Its messages are documents, see `Chunk`; several that came faster than they could be stored share one, as a
JSON array. Every one has a dense number, its `offset`, because the broker stores a message only right behind the one
that its writer knew as the last.

| module    | what                                                                     |
| --------- | ------------------------------------------------------------------------ |
| `streams` | the conversations of a tenant: produce, read, cancel, list, purge         |
| `chunk`   | the documents, and their bytes                                           |
| `run`     | one producer's turn: batches, fences, last words                         |
| `tail`    | appending by compare-and-set                                             |
| `post`    | prompts for producers                                                    |
| `reader`  | one reader of a conversation                                             |
| `reading` | finding an offset; what chunks mean together                             |
| `care`    | runs that nobody ends any more                                           |
| `follow`  | stored messages, then live ones, without gap                             |
| `config`, `publisher`, `subscriber`, `positions` | for programs without a mesh       |
| `events`  | the events of tasks: their writer and reader                             |
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentmesh.streams.care import Patience
from agentmesh.streams.chunk import KINDS, MAX_CHUNK, TERMINAL, Chunk
from agentmesh.streams.events import MAX_EVENT, StreamEvent, StreamReader, StreamWriter, decode_events, encode_event
from agentmesh.streams.follow import STREAM
from agentmesh.streams.run import Run
from agentmesh.streams.streams import Streams, StreamState

if TYPE_CHECKING:
    from agentmesh.streams.config import Config
    from agentmesh.streams.publisher import AsyncPublisher, Publisher
    from agentmesh.streams.subscriber import AsyncSubscriber, Subscriber

_LATER = {
    "AsyncPublisher": "publisher",
    "AsyncSubscriber": "subscriber",
    "Config": "config",
    "Publisher": "publisher",
    "Subscriber": "subscriber",
}
"""For programs without a mesh: imported when they are first used."""

__all__ = [
    "KINDS",
    "MAX_CHUNK",
    "MAX_EVENT",
    "STREAM",
    "TERMINAL",
    "AsyncPublisher",
    "AsyncSubscriber",
    "Chunk",
    "Config",
    "Patience",
    "Publisher",
    "Run",
    "StreamEvent",
    "StreamReader",
    "StreamState",
    "StreamWriter",
    "Streams",
    "Subscriber",
    "decode_events",
    "encode_event",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"agentmesh.streams.{_LATER[name]}"), name)
    return value
