"""Read the parts of a review where they are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from agentmesh.agents.review.adapt import unreadable_finding
from agentmesh.agents.review.fingerprint import with_fingerprints
from agentmesh.agents.review.messages import Deduplicate, Listing, Merges, Parts, Rank, Ranking, ReviewFile, Walk
from agentmesh.agents.review.model import FileReview
from agentmesh.agents.review.packing import unpack
from agentmesh.client import Client
from agentmesh.errors import TaskError
from agentmesh.messages import Task

T = TypeVar("T")

_PARALLEL = 32


class Results:
    """The stored results of one review's parts.

    Args:
        mesh: The connection.
        review: Id of the review.
    """

    def __init__(self, mesh: Client, review: str) -> None:
        self._mesh = mesh
        self._parts = Parts(review)

    async def listing(self) -> Listing:
        """What is to be reviewed."""
        return unpack(await self._read(self._parts.listing, Walk))

    async def merges(self) -> Merges:
        """Which findings say the same."""
        return unpack(await self._read(self._parts.merges, Deduplicate))

    async def ranking(self) -> Ranking:
        """What to fix first."""
        return await self._read(self._parts.ranking, Rank)

    async def files(self, paths: Iterable[str]) -> list[FileReview]:
        """The reviews of those files, in their order; a file whose review failed has that as its finding."""
        turns = asyncio.Semaphore(_PARALLEL)

        async def read(path: str) -> FileReview:
            async with turns:
                try:
                    return unpack(await self._read(self._parts.file(path), ReviewFile))
                except TaskError as error:
                    return failed_review(path, str(error))

        return await asyncio.gather(*(read(path) for path in paths))

    async def _read(self, task_id: str, kind: type[Task[T]]) -> T:
        return await self._mesh.job(task_id, kind).result()


def failed_review(path: str, reason: str) -> FileReview:
    """The review of a file that no reviewer could finish."""
    return FileReview(path=path, findings=tuple(with_fingerprints([unreadable_finding(path, reason)], ())))
