"""NATS behind one object: the only package that imports nats.

    async with await Transport.connect(TransportOptions(url="nats://127.0.0.1:4222")) as transport:
        await transport.subscribe("news.*", print)
        await transport.publish("news.today", b"rain")

What it promises, beyond what the client library does:

* The connection comes back by itself, whatever ended it, with all subscriptions; one that only looks alive is found.
* A callback is a plain function, called in order; what it raises is logged and harms nobody.
* Subjects, headers and sizes are checked before the wire: a mistake would make the broker close the connection.
* A request to nobody, to a forbidden subject, or without an answer ends at once, at once, and at its deadline.
* A publish to a stalled broker ends, and can be cancelled. `close` takes a second at most.
* A durable publish is confirmed, and repeated with the same id until it is; or its fate is unknown, and it says so.
* A pull hands over what there is, owns what comes late, notices a restart and a deleted consumer.
* A user's header called `Status` is data; what the broker itself says has `ServerStatus` headers.

Where to look: `transport` the object itself, `connection` one connection that comes back, `dialing` making and ending
it, `client` the patched client, `watchdog`, `inbox` replies and deadlines, `publisher`, `pull`, `reading` direct gets,
`streams` specs, `services` discovery, `api` JetStream calls, `wire` messages and checks, `options`.
"""

from agentmesh.transport.connection import Subscription
from agentmesh.transport.inbox import Inbox
from agentmesh.transport.options import TransportOptions
from agentmesh.transport.publisher import PubAck
from agentmesh.transport.pull import Delivery, PullConsumer
from agentmesh.transport.reading import StoredMessage
from agentmesh.transport.services import Endpoint, Service, Services
from agentmesh.transport.streams import ConsumerInfo, ConsumerSpec, Copy, StreamInfo, StreamSpec
from agentmesh.transport.transport import Transport
from agentmesh.transport.wire import Message, ServerStatus, is_no_responders

__all__ = [
    "ConsumerInfo",
    "ConsumerSpec",
    "Copy",
    "Delivery",
    "Endpoint",
    "Inbox",
    "Message",
    "PubAck",
    "PullConsumer",
    "ServerStatus",
    "Service",
    "Services",
    "StoredMessage",
    "StreamInfo",
    "StreamSpec",
    "Subscription",
    "Transport",
    "TransportOptions",
    "is_no_responders",
]
