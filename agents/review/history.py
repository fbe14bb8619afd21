"""Compare a review with the one before it: what is new, what is fixed, what stayed.

A `Snapshot` is what is remembered of a run. It is kept small (no messages, no source) and is cut into pages, because a
record of the memory service has to fit into one message of the broker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from agentmesh.agents.review.model import Finding, FixedFinding, History

PAGE_SIZE = 1000
"""Findings in one page: about 120 KB with paths of usual length, of the 256 KiB a record may have."""


class SnapshotPage(BaseModel):
    """A part of what is remembered of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    created_at: datetime
    page: int
    pages: int
    findings: tuple[FixedFinding, ...]


def snapshot(findings: Iterable[Finding], created_at: datetime, page_size: int = PAGE_SIZE) -> list[SnapshotPage]:
    """What to remember of a run; at least one page, also when nothing was found."""
    kept = [FixedFinding(fingerprint=f.fingerprint, rule=f.rule, path=f.path, line=f.line) for f in findings]
    cuts = range(0, max(len(kept), 1), page_size)
    return [
        SnapshotPage(created_at=created_at, page=number, pages=len(cuts), findings=tuple(kept[cut : cut + page_size]))
        for number, cut in enumerate(cuts, start=1)
    ]


def is_complete(pages: Sequence[SnapshotPage]) -> bool:
    """Whether these are all pages of one run; half a snapshot would show half of the findings as fixed."""
    numbers = sorted(page.page for page in pages)
    return bool(pages) and len({page.created_at for page in pages}) == 1 and numbers == [*range(1, pages[0].pages + 1)]


def compare(earlier: Sequence[SnapshotPage], findings: Iterable[Finding]) -> History | None:
    """This run against the remembered one; None if there is none, or not all of it."""
    if not is_complete(earlier):
        return None
    before = {entry.fingerprint: entry for page in earlier for entry in page.findings}
    now = [finding.fingerprint for finding in findings]
    current = set(now)
    fixed = [entry for fingerprint, entry in before.items() if fingerprint not in current]
    return History(
        earlier_at=earlier[0].created_at,
        new=tuple(fingerprint for fingerprint in now if fingerprint not in before),
        fixed=tuple(sorted(fixed, key=lambda entry: (entry.path, entry.line, entry.rule))),
        unchanged=len(current & before.keys()),
    )
