"""Tools: how they are declared (`declare`), what goes over the wire (`wire`), how they are called (`client`)."""

from agentmesh.tooling.client import ToolClient
from agentmesh.tooling.declare import Isolation, Limits, Setting, Tool, encode_arguments, tool
from agentmesh.tooling.wire import (
    CALL_TIMEOUT,
    CANCEL,
    LIST,
    QUEUE_TIME,
    REPLY_GRACE,
    SCHEMA_VERSION,
    ToolInfo,
    ToolListing,
    ToolReply,
    ToolRequest,
    permits,
)

__all__ = [
    "CALL_TIMEOUT",
    "CANCEL",
    "LIST",
    "QUEUE_TIME",
    "REPLY_GRACE",
    "SCHEMA_VERSION",
    "Isolation",
    "Limits",
    "Setting",
    "Tool",
    "ToolClient",
    "ToolInfo",
    "ToolListing",
    "ToolReply",
    "ToolRequest",
    "encode_arguments",
    "permits",
    "tool",
]
