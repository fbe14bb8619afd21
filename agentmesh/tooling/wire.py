"""What goes over the wire between callers of tools and executors; plain JSON for any client."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

import msgspec

SCHEMA_VERSION = "1.0"
CALL_TIMEOUT = 60.0
"""Seconds a call by name waits unless told otherwise; a call by `Tool` waits for its time limit and `QUEUE_TIME`."""
QUEUE_TIME = 30.0
"""Seconds a call may wait for a free place in an executor, on top of the tool's time limit."""
REPLY_GRACE = 0.3
"""Seconds the caller waits beyond its deadline for the executor to say that it ended the tool."""

CANCEL = "tool-cancel"
"""Control subject: the caller has gone; the body is `{"call_id": …}`."""
LIST = "tool-list"
"""Control subject: every executor answers with a `ToolListing`."""


class ToolInfo(msgspec.Struct, frozen=True):
    """What an executor says about a tool it serves."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    """JSON Schema of the arguments."""
    returns: dict[str, Any] = {}
    isolation: str = ""
    timeout: float = 0.0
    """Seconds after which a call is ended."""
    effect: bool = False
    once: bool = False
    """A call from a task handler is remembered, and not run again by the next attempt."""


class ToolListing(msgspec.Struct):
    """An executor's answer to `tool-list`."""

    executor_id: str
    tools: list[ToolInfo]


class ToolRequest(msgspec.Struct, omit_defaults=True):
    """A call: the body on `ai.agent.tools.T.<tool>` and on the door `ai.agent.tools.T`."""

    tool: str = ""
    call_id: str = ""
    """Chosen by the caller, to cancel by; left out by a foreign client, the executor makes one."""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    deadline: datetime | None = None
    """When the caller stops waiting; the tool is ended then."""
    source_agent_id: str = ""
    schema_version: str = ""
    key: str = ""
    """An idempotency key: the tool is run at most once for it, and its outcome kept for a day."""
    step: str = ""
    """A key in case the tool was declared with `once` and the caller gave none."""
    task_id: str = ""
    """The task whose handler calls."""
    fence: int = 0
    """Of the attempt that calls; a call of an attempt that was replaced is refused."""
    trace_id: str = ""
    traceparent: str = ""
    """When somebody traces: W3C trace context, see `trace`."""
    tracestate: str = ""
    baggage: str = ""
    allow: list[str] | None = None
    """The only tools this caller may use, as patterns such as `read_*`; see `ToolClient.only`. None: any."""


def permits(patterns: Iterable[str], tool: str) -> bool:
    """Whether a list of names and patterns has room for a tool."""
    return any(fnmatchcase(tool, pattern) for pattern in patterns)


class ToolReply(msgspec.Struct, omit_defaults=True):
    """The answer: a result, or an error in the form of `error_to_wire`."""

    call_id: str
    error: dict[str, Any] | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    schema_version: str = ""
