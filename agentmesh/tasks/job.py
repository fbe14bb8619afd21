"""`Job`: the handle on a submitted task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from agentmesh import codec
from agentmesh.errors import (
    DeadlineExceededError,
    TaskCancelledError,
    TaskDeadError,
    TaskExpiredError,
    TaskFailedError,
    error_from_wire,
)
from agentmesh.messages import Task
from agentmesh.streams import StreamEvent, StreamReader
from agentmesh.tasks.context import CHUNK, PROGRESS
from agentmesh.tasks.watch import Watch
from agentmesh.tasks.wire import ResultBody
from agentmesh.tasks.workflow.view import Step, step_of

if TYPE_CHECKING:
    from agentmesh.tasks.client import TaskClient
    from agentmesh.tasks.status import TaskStatus

R = TypeVar("R")


@dataclass(frozen=True)
class Progress:
    """How far a task is."""

    fraction: float
    """0.0 to 1.0."""
    text: str = ""


@dataclass(frozen=True)
class Chunk:
    """A part of the result, sent before it was complete."""

    data: Any
    """As plain data: what came as JSON."""


@dataclass(frozen=True)
class Restarted:
    """The task is tried anew: forget the chunks so far, this attempt begins from the start."""

    attempt: int


JobEvent = Progress | Chunk | Restarted | Step


class Job(Generic[R]):
    """A submitted task. Its id is all that is needed: `mesh.job(id, Type)` gives the same in any process.

    async for event in job: ...       # Progress, Chunk and Step, from the first one on, until the task is decided
    report = await job.result()
    """

    def __init__(self, client: TaskClient, watch: Watch, task_type: type[Task[R]] | None, sequence: int = 0) -> None:
        self.id = watch.task_id
        self._client = client
        self._watch = watch
        self._task_type = task_type
        self._sequence = sequence

    def __repr__(self) -> str:
        state = self._watch.body.status if self._watch.body is not None else "undecided"
        return f"Job({self.id!r}, {state})"

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the result.

        Giving up the wait, by timeout or by cancelling, changes nothing about the task.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            TaskFailedError: Decided `failed`: over its time limit, or a result that cannot be stored.
            BudgetExceededError, CallDepthError: Decided `failed`, because its call tree used up what it was given.
            TaskDeadError: Given up, see its dead letter.
            TaskCancelledError: Cancelled.
            TaskExpiredError: Not done by its deadline.
            DeadlineExceededError: Undecided after `timeout` seconds.
            InvalidMessageError: The result does not fit the type this job was made with.
        """
        body = self._watch.body
        if body is None:
            try:
                async with asyncio.timeout(timeout):
                    body = await self._client.results.wait(self._watch)
            except TimeoutError as error:
                raise DeadlineExceededError(f"result of task {self.id}", timeout or 0.0) from error
        return self.value(body)

    @property
    def is_decided(self) -> bool:
        """Whether the decision is known here already."""
        return self._watch.body is not None

    async def outcome(self) -> ResultBody:
        """Wait for the decision, whatever it is."""
        return self._watch.body or await self._client.results.wait(self._watch)

    async def cancel(self) -> bool:
        """Cancel it, waiting or running. False: it was decided otherwise before; `result` tells how."""
        return await self._client.cancel(self.id)

    async def status(self) -> TaskStatus:
        """Where it stands now."""
        return await self._client.get(self.id, sequence=self._sequence)

    async def __aiter__(self) -> AsyncGenerator[JobEvent, None]:
        """Progress and chunks from the first one on; ends when the task is decided, however that was.

        Any number of readers, in any process, at any time: everything is stored before the result is.
        """
        client, watch = self._client, self._watch
        await client.ensure()
        reader = StreamReader(client.transport, client.subjects, self.id)
        end = asyncio.get_running_loop().create_task(client.results.wait(watch), name=f"end of {self.id}")
        end.add_done_callback(lambda _: reader.finish())
        try:
            attempts = _Attempts()
            async with aclosing(reader.events()) as events:
                async for event in events:
                    for told in attempts.read(event):
                        yield told
        finally:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)
        if not end.cancelled() and (problem := end.exception()) is not None:
            raise problem

    async def signal(self, name: str, value: Any = None) -> bool:
        """Give the workflow a signal, see `TaskClient.signal`."""
        return await self._client.signal(self.id, name, value)

    async def steps(self) -> list[Step]:
        """What its steps have come to, if it is a workflow."""
        return await self._client.steps(self.id)

    def value(self, body: ResultBody) -> R:
        """The result in a decision; raises what `result` raises."""
        if body.status == "completed":
            kind = Any if self._task_type is None else self._task_type.result_type()
            value: R = codec.decode_body(kind, body.result)
            return value
        if body.status == "cancelled":
            raise TaskCancelledError(self.id, body.reason)
        if body.status == "expired":
            raise TaskExpiredError(self.id, body.reason)
        if body.status == "dead":
            raise TaskDeadError(self.id, body.reason)
        failure = TaskFailedError(self.id, body.reason or body.status)
        if body.error is None:
            raise failure
        raise error_from_wire(body.error, self.id) from failure


class _Attempts:
    """Keeps the output of attempts apart: once a new one has spoken, what an old one still says is dropped.

    An old one may still be at it: its machine was frozen, or its handler takes its time to notice.
    """

    def __init__(self) -> None:
        self._current = ""
        self._replaced: set[str] = set()

    def read(self, event: StreamEvent) -> list[JobEvent]:
        if (step := step_of(event)) is not None:
            return [step]
        told = _event(event)
        if told is None or event.writer in self._replaced:
            return []
        if event.writer == self._current or not self._current:
            self._current = event.writer
            return [told]
        self._replaced.add(self._current)
        self._current = event.writer
        return [Restarted(event.attempt), told]


class _Progress(msgspec.Struct):
    fraction: float = 0.0
    text: str = ""


_read_progress = msgspec.json.Decoder(_Progress).decode


def _event(event: StreamEvent) -> Progress | Chunk | None:
    """What a stream's event tells the reader of a job; None for entries of the task's history."""
    if event.type == CHUNK:
        return Chunk(event.value())
    if event.type == PROGRESS:
        try:
            progress = _read_progress(event.content)
        except msgspec.MsgspecError:
            return None
        return Progress(progress.fraction, progress.text)
    return None
