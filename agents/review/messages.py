"""What the agents of a review say to each other.

A review is one task; its parts are tasks as well, with ids made from the id of the whole (`Parts`). Results are not
copied from agent to agent: a stage gets the id of the review and reads the results of the stages before it where they
are stored. So messages stay small, every part survives the death of whoever asked for it, and asking again for a part
that is done costs nothing.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import ClassVar

from pydantic import BaseModel

from agentmesh.agents.review.model import FileReview, Finding, Merge, RankedFinding, Summary
from agentmesh.agents.review.packing import Packable
from agentmesh.messages import Task


class Listing(Packable):
    """What is to be reviewed, decided once for the whole review."""

    heavy: ClassVar[frozenset[str]] = frozenset({"paths", "problems"})

    root: str
    project: str
    started_at: datetime
    paths: tuple[str, ...] = ()
    problems: tuple[Finding, ...] = ()


class Merges(Packable):
    """Which findings say the same."""

    heavy: ClassVar[frozenset[str]] = frozenset({"merges"})

    merges: tuple[Merge, ...] = ()


class Ranking(BaseModel):
    """What to fix first."""

    first: tuple[RankedFinding, ...] = ()


class Review(Task[Summary], time_limit=7200.0, max_attempts=20):
    """Review the Python files under a directory."""

    root: str
    """Absolute path of a directory, or of one file, as the nodes see it."""
    exclude: tuple[str, ...] = ()
    """More names of directories to leave out."""
    output: str = ""
    """Absolute path of the directory for the report; empty writes no files."""


class Walk(Task[Listing], priority="high"):
    """List the files to review."""

    root: str
    exclude: tuple[str, ...] = ()


class ReviewFile(Task[FileReview], time_limit=240.0, max_attempts=12):
    """Run every check on one file."""

    root: str
    path: str


class Deduplicate(Task[Merges], priority="high", time_limit=600.0):
    """Find out which findings of a review say the same."""

    review: str


class Rank(Task[Ranking], priority="high", time_limit=600.0):
    """Choose what to fix first."""

    review: str


class WriteReport(Task[Summary], priority="high", time_limit=600.0):
    """Compare with the review before, and write the report."""

    review: str
    output: str = ""


class Parts:
    """Ids of the tasks that one review consists of."""

    def __init__(self, review: str) -> None:
        self.listing = f"{review}-list"
        self.merges = f"{review}-merge"
        self.ranking = f"{review}-rank"
        self.report = f"{review}-report"
        self._review = review

    def file(self, path: str) -> str:
        """Of the task that reviews one file."""
        return f"{self._review}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
