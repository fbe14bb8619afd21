"""What a task handler knows and can say: `async def review(self, task: Review, ctx: TaskContext) -> Report`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh.codec import encode_body
from agentmesh.errors import WorkflowError
from agentmesh.ids import now
from agentmesh.streams import StreamWriter
from agentmesh.subjects import Subjects
from agentmesh.tasks import fence
from agentmesh.tasks.fence import AttemptBody
from agentmesh.tasks.seat import Seat
from agentmesh.tasks.verbs import WorkflowVerbs
from agentmesh.transport import Transport

if TYPE_CHECKING:
    from agentmesh.tasks.client import TaskClient
    from agentmesh.tasks.workflow.flow import Workflow

PROGRESS, CHUNK = "progress", "chunk"
"""Types of the events a handler sends."""


@dataclass(frozen=True)
class Desk:
    """Where a task is worked on, as far as workflows need to know."""

    transport: Transport
    subjects: Subjects
    client: Callable[[], TaskClient]
    agent: str = ""
    node: str = ""
    ended: str = ""
    """How the task was decided, when this run only undoes what a saga did."""
    submitted_at: datetime | None = None


class TaskContext(WorkflowVerbs):
    """About the task at hand. Progress and chunks go to `ai.stream.T.<task_id>`, stored in order and replayable.

    With `step`, `run`, `map`, `gather`, `race`, `sleep`, `signal` and `saga` the handler becomes a workflow, which goes
    on where it was when it runs again.
    """

    __slots__ = (
        "_calls",
        "_desk",
        "_fence",
        "_me",
        "_stream",
        "_subjects",
        "_transport",
        "_workflow",
        "attempt",
        "deadline",
        "priority",
        "seat",
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
        seat: Seat | None = None,
        desk: Callable[[], Desk] | None = None,
        me: AttemptBody | None = None,
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._me = me
        self._fence = 0
        self._calls: dict[str, int] | None = None
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
        self.seat = seat or Seat()
        """The slot it takes; for the worker and the agent."""
        self._desk = desk
        self._workflow: Workflow | None = None

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative when it has passed; None without one."""
        return None if self.deadline is None else (self.deadline - now()).total_seconds()

    def key(self, step: str) -> str:
        """An idempotency key for one step: the same in every attempt of this task, in no other task.

        A task may be tried more than once, so give it to whatever has an effect outside.
        """
        return f"{self._subjects.tenant}/{self.task_id}/{step}"

    async def fence(self) -> int:
        """A number that is higher in every later attempt of this task, and the same within this one.

        Give it to a store that refuses lower ones than it has seen: then an attempt that was replaced, though its
        machine was frozen and knows nothing of it, writes nothing any more. A round trip or two, the first time.

        Raises:
            AttemptReplacedError: A later attempt has asked for its fence: this one is over, and its result void.
        """
        if not self._fence:
            me = self._me or AttemptBody(self.task_id, self.attempt, f"attempt {self.attempt}")
            self._fence = await fence.take(self._transport, self._subjects, me)
        return self._fence

    def step_key(self, tool: str, arguments: bytes) -> str:
        """The key of a tool call that did not get one: the same for the same call in every attempt.

        Calls with the same arguments are told apart by their number within the attempt.
        """
        self._calls = {} if self._calls is None else self._calls
        call = f"{tool}/{blake2b(arguments, digest_size=16).hexdigest()}"
        number = self._calls[call] = self._calls.get(call, 0) + 1
        return self.key(f"{call}/{number}")

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

    # ------------------------------------------------------------ workflows: for the worker

    @property
    def may_repeat(self) -> bool:
        """Whether the handler may have run before, also in a run that was given back and counts as no attempt."""
        return self.attempt > 1 or (self._me is not None and self._me.rank > 1)

    def is_final(self, error: BaseException) -> bool:
        """Whether another run would come to the same, because a decided step said so."""
        return isinstance(error, WorkflowError) or (self._workflow is not None and self._workflow.is_final(error))

    @property
    def sagas(self) -> int:
        """Sagas begun in this run."""
        return 0 if self._workflow is None else self._workflow.sagas

    @property
    def open_sagas(self) -> int:
        """Those of them that have come to no end."""
        return 0 if self._workflow is None else self._workflow.open_sagas

    async def flush_steps(self) -> None:
        """Wait a moment until what happened to the steps is stored for those who look."""
        if self._workflow is not None:
            await self._workflow.teller.flush()

    def _flow(self) -> Workflow:
        if self._workflow is None:
            from agentmesh.tasks.workflow.flow import Workflow

            self._workflow = Workflow(self, self._desk() if self._desk is not None else self._own_desk())
        return self._workflow

    def _own_desk(self) -> Desk:
        from agentmesh.tasks.client import TaskClient

        client = TaskClient(self._transport, self._subjects)
        return Desk(self._transport, self._subjects, lambda: client)

    def _writer(self) -> StreamWriter:
        if self._stream is None:
            self._stream = StreamWriter(self._transport, self._subjects, self.task_id, attempt=self.attempt)
        return self._stream
