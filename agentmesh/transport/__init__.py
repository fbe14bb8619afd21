"""NATS behind one object; the only package that imports nats.

Source: transport contract of the project; everything else talks to the broker through these names.
"""

from agentmesh.transport.connection import Subscription
from agentmesh.transport.inbox import Inbox
from agentmesh.transport.options import TransportOptions
from agentmesh.transport.publisher import PubAck
from agentmesh.transport.pull import Delivery, PullConsumer
from agentmesh.transport.reading import StoredMessage
from agentmesh.transport.services import Endpoint, Service, Services
from agentmesh.transport.streams import ConsumerInfo, ConsumerSpec, StreamInfo, StreamSpec
from agentmesh.transport.transport import Transport
from agentmesh.transport.wire import Message, ServerStatus, is_no_responders

__all__ = [
    "ConsumerInfo",
    "ConsumerSpec",
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
