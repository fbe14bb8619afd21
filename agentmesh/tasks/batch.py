"""`Batch`: one task per item, bounded in flight, with progress and a policy for failures."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from agentmesh.errors import AgentMeshError, BatchFailedError, BrokerError, DefinitionError, QueueFullError
from agentmesh.ids import new_id
from agentmesh.messages import Task
from agentmesh.tasks.job import Job

if TYPE_CHECKING:
    from agentmesh.tasks.client import TaskClient

R = TypeVar("R")

log = logging.getLogger("agentmesh.tasks")

CANCEL_TIMEOUT = 5.0
"""Seconds for cancelling what is under way when a batch ends early."""


@dataclass(frozen=True)
class Finished(Generic[R]):
    """One finished item of a batch."""

    index: int
    item: Any
    result: R | None
    error: AgentMeshError | None = None


class Batch(Generic[R]):
    """Await it for the results in the order of the items, or iterate over it for each as it finishes; do one, once.

        reports = await mesh.map(ReviewFile, paths)
        async for finished in (batch := mesh.map(ReviewFile, paths, on_error="return")):
            print(f"{batch.done}/{batch.total}", finished.item, finished.result)

    A full queue is waited for. Cancelling the batch, or leaving the iteration, cancels the tasks under way; those not
    submitted yet never are.

    Args:
        client: Submits.
        task_type: The task.
        items: Tasks, dicts of fields, or values of its only required field.
        to: The agent; None lets the dispatcher find one.
        limit: Tasks under way at the same time.
        on_error: `raise` cancels the rest and raises `BatchFailedError` with the results so far; `return` puts the
            error in the place of the result.
        priority: `high`, `normal` or `low`; None takes the task's own.
        source: Who submits.
    """

    def __init__(
        self,
        client: TaskClient,
        task_type: type[Task[R]],
        items: Iterable[Any],
        *,
        to: str | None = None,
        limit: int = 64,
        on_error: Literal["raise", "return"] = "raise",
        priority: str | None = None,
        source: str = "",
    ) -> None:
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit}")
        self.items = list(items)
        self.done = 0
        """Items finished, well or not."""
        self.failed = 0
        """Items that did not complete."""
        self.waiting = 0
        """Items that are being submitted, or wait for room in the queue."""
        self.on_full: Callable[[QueueFullError], None] | None = None
        """Called with each refusal of a full queue, which is waited out; must not block."""
        self._tasks = [as_task(task_type, item) for item in self.items]
        self._client = client
        self._to = to
        self._limit = limit
        self._on_error = on_error
        self._priority = priority
        self._source = source
        self._under_way: dict[int, str] = {}
        self._results: list[Any] = [None] * len(self.items)

    def __repr__(self) -> str:
        return f"Batch({self.done}/{self.total} done, {self.failed} failed)"

    @property
    def total(self) -> int:
        return len(self.items)

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._collect().__await__()

    async def _collect(self) -> list[R]:
        async for _ in self:
            pass
        return self._results

    async def __aiter__(self) -> AsyncGenerator[Finished[R], None]:
        """Each item as it finishes.

        Raises:
            BatchFailedError: An item did not complete, and `on_error` is `raise`.
        """
        finished: deque[Finished[R]] = deque()
        changed = asyncio.Event()
        todo = iter(range(self.total))
        runners = [
            asyncio.get_running_loop().create_task(self._run(todo, finished, changed), name="batch")
            for _ in range(min(self._limit, self.total))
        ]
        complete = False
        try:
            while self.done < self.total:
                await changed.wait()
                changed.clear()
                while finished:
                    entry = finished.popleft()
                    self._count(entry)
                    yield entry
                self._raise_broken(runners)
            complete = True
        finally:
            for runner in runners:
                runner.cancel()
            await asyncio.gather(*runners, return_exceptions=True)
            if not complete:
                await asyncio.shield(self._cancel_rest())

    async def _run(self, todo: Iterator[int], finished: deque[Finished[R]], changed: asyncio.Event) -> None:
        """One of `limit` runners: takes the next item, waits for its result, and so on."""
        try:
            for index in todo:
                finished.append(await self._one(index))
                changed.set()
        finally:
            changed.set()

    async def _one(self, index: int) -> Finished[R]:
        item = self.items[index]
        task_id = self._under_way[index] = new_id()
        try:
            job = await self._submit(self._tasks[index], task_id)
            result = await job.result()
        except AgentMeshError as error:
            finished: Finished[R] = Finished(index, item, None, error)
        else:
            finished = Finished(index, item, result)
        del self._under_way[index]
        return finished

    async def _submit(self, task: Task[R], task_id: str) -> Job[R]:
        """Submit; when the queue is full, wait for room: the others who use it go on, so do we."""
        self.waiting += 1
        try:
            return await self._client.submit(
                task,
                to=self._to,
                task_id=task_id,
                priority=self._priority,
                source=self._source,
                patience=math.inf,
                on_full=self._full,
            )
        finally:
            self.waiting -= 1

    def _full(self, refusal: QueueFullError) -> None:
        if self.on_full is not None:
            self.on_full(refusal)

    def _count(self, entry: Finished[R]) -> None:
        self.done += 1
        self._results[entry.index] = entry.result
        if entry.error is not None:
            self.failed += 1
            self._results[entry.index] = entry.error if self._on_error == "return" else None
            if self._on_error == "raise":
                raise BatchFailedError(self.failed, self.total, str(entry.error), self._results) from entry.error

    def _raise_broken(self, runners: list[asyncio.Task[None]]) -> None:
        for runner in runners:
            if runner.done() and not runner.cancelled() and (error := runner.exception()) is not None:
                raise error

    async def _cancel_rest(self) -> None:
        """Cancel what is under way; what cannot be reached in time goes on without us."""
        task_ids = list(self._under_way.values())
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT):
                await asyncio.gather(*(self._client.cancel(task_id) for task_id in task_ids))
        except (TimeoutError, BrokerError) as error:
            log.warning("%d tasks of a batch could not be cancelled: %s", len(task_ids), error)


def as_task(task_type: type[Task[R]], item: Any) -> Task[R]:
    """The task for an item: itself, or made of its fields, or of the value of its only required field."""
    if isinstance(item, Task):
        return item
    if isinstance(item, dict):
        return task_type.model_validate(item)
    required = [name for name, field in task_type.model_fields.items() if field.is_required()]
    if len(required) != 1:
        raise DefinitionError(
            task_type.__name__,
            f"map() got {type(item).__name__}, but the task has {len(required)} required fields; "
            "give tasks or dicts of fields",
        )
    return task_type.model_validate({required[0]: item})
