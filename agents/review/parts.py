"""Run the parts of a review as durable tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from agentmesh.client import Client
from agentmesh.errors import Reject, TaskError
from agentmesh.messages import Task
from agentmesh.tasks import Job

T = TypeVar("T")

IN_FLIGHT = 64
"""Files handed out at the same time: enough for dozens of workers, and far below what a queue takes."""


class PartRunner:
    """Hands out parts and waits for them; asking again for a part, by its id, finds the one that exists.

    Args:
        mesh: The connection.
    """

    def __init__(self, mesh: Client) -> None:
        self._mesh = mesh
        self._open: dict[str, Job[Any]] = {}

    async def run(self, task: Task[T], to: str, task_id: str) -> T:
        """Do one part.

        Raises:
            TaskError: It was decided otherwise than completed.
        """
        job = await self._mesh.submit(task, to=to, task_id=task_id)
        self._open[task_id] = job
        try:
            result = await job.result()
        except TaskError:
            del self._open[task_id]
            raise
        del self._open[task_id]
        return result

    async def stage(self, task: Task[T], to: str, task_id: str) -> T:
        """Do a part without which there is no review.

        Raises:
            Reject: It failed for good; so does the review, with the same reason.
        """
        try:
            return await self.run(task, to, task_id)
        except TaskError as error:
            raise Reject(f"{to}: {error}") from error

    async def all(self, tasks: Iterable[tuple[str, Task[Any]]], to: str, done: Callable[[], Awaitable[None]]) -> None:
        """Do many parts, `IN_FLIGHT` at a time; one that fails is left for its reader to notice.

        Args:
            tasks: Ids and tasks.
            to: Who does them.
            done: Called after each.
        """
        waiting = iter(tasks)

        async def work() -> None:
            for task_id, task in waiting:
                # Its slot says why it failed, and whoever reads the part will see it there.
                with contextlib.suppress(TaskError):
                    await self.run(task, to, task_id)
                await done()

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work())

    async def cancel(self) -> None:
        """Cancel what is under way."""
        await asyncio.gather(*(job.cancel() for job in self._open.values()))
