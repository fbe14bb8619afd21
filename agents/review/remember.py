"""What is remembered from review to review, in the memory service.

One record per project says which review was the last one, and which one it was compared with; the findings are in
pages beside it. The record is written after the pages, so a reader never sees half a review. A report that is written
again after a crash finds its own review as the last one, and is compared with the one before that.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from pydantic import BaseModel

from agentmesh.agents.review.history import SnapshotPage, snapshot
from agentmesh.agents.review.model import Finding
from agentmesh.memory import Memory


class _Known(BaseModel):
    """A review that is remembered."""

    review: str
    pages: int


class _Project(BaseModel):
    root: str
    last: _Known
    before: _Known | None = None


class ReviewMemory:
    """The earlier reviews of one project.

    Args:
        memory: Where to keep them.
        root: The reviewed directory; it identifies the project.
    """

    def __init__(self, memory: Memory, root: str) -> None:
        self._memory = memory
        self._root = root
        self._key = f"project/{hashlib.sha256(root.encode()).hexdigest()[:16]}"

    async def earlier(self, review: str) -> list[SnapshotPage]:
        """The pages of the review to compare with; empty for the first one."""
        project = await self._project()
        known = None if project is None else project.before if project.last.review == review else project.last
        if known is None:
            return []
        pages = [await self._memory.get(self._page(known.review, number)) for number in range(1, known.pages + 1)]
        return [page.read_as(SnapshotPage) for page in pages if page is not None]

    async def remember(self, review: str, findings: list[Finding], created_at: datetime) -> None:
        """Keep this review as the last one; only the one before it stays too."""
        project = await self._project()
        if project is not None and project.last.review == review:
            return
        pages = snapshot(findings, created_at)
        for page in pages:
            await self._memory.put(self._page(review, page.page), page)
        before = project.last if project else None
        known = _Known(review=review, pages=len(pages))
        await self._memory.put(self._key, _Project(root=self._root, last=known, before=before))
        if project is not None and project.before is not None:
            await self._forget(project.before)

    async def _project(self) -> _Project | None:
        record = await self._memory.get(self._key)
        return record.read_as(_Project) if record is not None else None

    async def _forget(self, known: _Known) -> None:
        for number in range(1, known.pages + 1):
            await self._memory.delete(self._page(known.review, number))

    def _page(self, review: str, number: int) -> str:
        return f"{self._key}/{review}/{number}"
