"""Log lines for programs: one JSON document each, which says what it is about.

| field | what |
| --- | --- |
| `ts`, `level`, `logger`, `message` | always; `ts` is UTC, RFC 3339 |
| `tenant` | whose process it is, or whose request is served |
| `trace_id`, `agent`, `message_id`, `queue_seconds`; `task_id` | while a handler runs, and what it starts |
| `traceback` | of an error |
| `span` | on lines of `agentmesh.trace`, with `tracing = "log"` |
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from agentmesh.context import current
from agentmesh.trace import outside

_about: ContextVar[dict[str, Any] | None] = ContextVar("agentmesh_log", default=None)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Have every line that is logged inside say this, too: for doors, which serve requests outside of handlers."""
    before = _about.set({**(_about.get() or {}), **fields})
    try:
        yield
    finally:
        _about.reset(before)


class JsonFormatter(logging.Formatter):
    """See the module.

    Args:
        tenant: Of the process; empty if it serves several.
    """

    def __init__(self, tenant: str = "") -> None:
        super().__init__()
        self._tenant = tenant

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._tenant:
            fields["tenant"] = self._tenant
        here = current()
        if here is not None:
            fields |= {"trace_id": here.trace_id, "agent": here.agent, "message_id": here.message_id}
            fields["queue_seconds"] = round(here.queued, 6)
            if here.task_id:
                fields["task_id"] = here.task_id
        elif (trace := outside()) is not None:
            fields["trace_id"] = trace.trace_id
        fields |= _about.get() or {}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        span = getattr(record, "span", None)
        if span is not None:
            fields["span"] = span
        return json.dumps(fields, ensure_ascii=False, default=str)
