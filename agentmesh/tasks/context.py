"""What a task handler knows and can say: `async def review(self, task: Review, ctx: TaskContext) -> Report`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from agentmesh.codec import encode_body
from agentmesh.ids import now
from agentmesh.streams import StreamWriter
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport

PROGRESS, CHUNK = "progress", "chunk"
"""Types of the events a handler sends."""


class TaskContext:
    """About the task at hand. Progress and chunks go to `ai.stream.T.<task_id>`, stored in order and replayable."""

    __slots__ = (
        "_stream",
        "_subjects",
        "_transport",
        "attempt",
        "deadline",
        "priority",
        "sender",
        "task_id",
        "trace_id",
    )

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        task_id: str,
        *,
        attempt: int = 1,
        deadline: datetime | None = None,
        priority: str = "normal",
        sender: str = "",
        trace_id: str = "",
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._stream: StreamWriter | None = None
        self.task_id = task_id
        self.attempt = attempt
        """Which attempt this is, from 1."""
        self.deadline = deadline
        """When the result is of no use any more (UTC), None without one."""
        self.priority = priority
        self.sender = sender
        """Who submitted it; empty if unknown."""
        self.trace_id = trace_id

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative when it has passed; None without one."""
        return None if self.deadline is None else (self.deadline - now()).total_seconds()

    def key(self, step: str) -> str:
        """An idempotency key for one step: the same in every attempt of this task, in no other task.

        A task may be tried more than once, so give it to whatever has an effect outside.
        """
        return f"{self._subjects.tenant}/{self.task_id}/{step}"

    async def progress(self, fraction: float, text: str = "") -> None:
        """Tell how far it is.

        Args:
            fraction: 0.0 to 1.0.
            text: What is being done.
        """
        await self._writer().append(PROGRESS, {"fraction": fraction, "text": text})

    async def chunk(self, data: Any) -> None:
        """Send a part of the result before it is complete: text, or anything that can be written as JSON.

        Waits while the broker is slower than the chunks come.

        Raises:
            InvalidMessageError: `data` cannot be written as JSON.
            PayloadTooLargeError: It is too large for one message.
            BrokerError: An earlier chunk could not be stored.
        """
        content = encode_body(data) if not isinstance(data, str) else msgspec.json.encode(data)
        await self._writer().append(CHUNK, msgspec.Raw(content))

    async def flush(self) -> None:
        """Wait until all of it is stored. Done for you when the handler returns."""
        if self._stream is not None:
            await self._stream.flush()

    def _writer(self) -> StreamWriter:
        if self._stream is None:
            self._stream = StreamWriter(self._transport, self._subjects, self.task_id, attempt=self.attempt)
        return self._stream
