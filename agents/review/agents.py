"""The agents of a code review.

    CodeReview ── Walk ──────────> Walker         which files?
               ── ReviewFile ──n─> FileReviewer   ruff, radon and metrics as sandboxed tools
               ── Deduplicate ───> Deduplicator   which findings say the same?
               ── Rank ──────────> Ranker         what to fix first?
               ── WriteReport ───> Reporter       against the review before; HTML, SARIF, JSON

Every arrow is a durable task whose id follows from the id of the review. So when a node dies, another one goes on where
it was: what is done is not done again, whoever asked for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agentmesh.agent import Agent, handler
from agentmesh.agents.review.adapt import RUFF_RULES
from agentmesh.agents.review.assemble import assemble
from agentmesh.agents.review.dedupe import apply_merges, find_merges
from agentmesh.agents.review.history import compare
from agentmesh.agents.review.messages import (
    Deduplicate,
    Listing,
    Merges,
    Parts,
    Rank,
    Ranking,
    Review,
    ReviewFile,
    Walk,
    WriteReport,
)
from agentmesh.agents.review.model import FileReview, Finding, History, Report, Summary, ToolName
from agentmesh.agents.review.output import write_report
from agentmesh.agents.review.packing import pack, unpack
from agentmesh.agents.review.parts import PartRunner
from agentmesh.agents.review.rank import rank
from agentmesh.agents.review.remember import ReviewMemory
from agentmesh.agents.review.results import Results
from agentmesh.agents.review.walk import walk
from agentmesh.errors import (
    AgentMeshError,
    MissingExtraError,
    Reject,
    Retry,
    StoreError,
    ToolArgumentsError,
    ToolFailedError,
    ToolLimitError,
    ToolTimeoutError,
)
from agentmesh.ids import now
from agentmesh.tasks import TaskContext

log = logging.getLogger("agentmesh.agents.review")

PROGRESS_PERIOD = 0.1
"""Seconds between two reports of progress."""
TOOL_ATTEMPTS = 2
"""Attempts of a file after which a failing tool is part of the result: it may only have been killed the first time."""


class CodeReview(Agent):
    """Reviews Python code: hands the parts of a review to the other agents and puts them in order."""

    concurrency = 8

    @handler
    async def review(self, task: Review, ctx: TaskContext) -> Summary:
        """From a directory to a report."""
        parts, runner = Parts(ctx.task_id), PartRunner(self.mesh)
        try:
            await ctx.progress(0.0, "looking for files")
            walked = await runner.stage(Walk(root=task.root, exclude=task.exclude), "walker", parts.listing)
            await self._review_files(unpack(walked), parts, runner, ctx)
            await ctx.progress(0.95, "merging what several tools found")
            await runner.stage(Deduplicate(review=ctx.task_id), "deduplicator", parts.merges)
            await ctx.progress(0.97, "ranking")
            await runner.stage(Rank(review=ctx.task_id), "ranker", parts.ranking)
            await ctx.progress(0.98, "writing the report")
            return await runner.stage(WriteReport(review=ctx.task_id, output=task.output), "reporter", parts.report)
        except asyncio.CancelledError:
            # Stopped, another node goes on with the same parts; only a decision from outside ends them too.
            if (await self.mesh.job(ctx.task_id).status()).is_decided:
                await runner.cancel()
            raise

    async def _review_files(self, listing: Listing, parts: Parts, runner: PartRunner, ctx: TaskContext) -> None:
        total, done, told = len(listing.paths), 0, 0.0

        async def one_done() -> None:
            nonlocal done, told
            done += 1
            if done == total or time.monotonic() - told > PROGRESS_PERIOD:
                told = time.monotonic()
                await ctx.progress(0.02 + 0.92 * done / total, f"{done:,} of {total:,} files")

        files = ((parts.file(path), ReviewFile(root=listing.root, path=path)) for path in listing.paths)
        await runner.all(files, "file-reviewer", one_done)


class Walker(Agent):
    """Finds the Python files under a directory."""

    concurrency = 4

    @handler
    async def walk(self, task: Walk) -> Listing:
        """The files, in an order that is always the same."""
        started_at = now()
        try:
            found = await asyncio.to_thread(walk, Path(task.root), task.exclude)
        except OSError as error:
            raise Reject(f"cannot review {task.root!r}: {error.strerror or error}") from error
        return pack(
            Listing(
                root=str(found.root),
                project=found.root.name or str(found.root),
                started_at=started_at,
                paths=found.paths,
                problems=found.problems,
            )
        )


class FileReviewer(Agent):
    """Runs ruff, radon and syntax-tree metrics on one file after the other."""

    concurrency = 4
    prefetch = 8

    @handler
    async def review(self, task: ReviewFile, ctx: TaskContext) -> FileReview:
        """Everything the tools say about a file; what they cannot read or parse is a finding."""
        path = str(Path(task.root) / task.path)
        failures: dict[ToolName, str] = {}
        missing: set[ToolName] = set()

        async def run(role: ToolName, tool: str, **arguments: Any) -> Any:
            try:
                return await self.tools.call(tool, path=path, **arguments)
            except MissingExtraError:
                missing.add(role)
                return None
            except (ToolArgumentsError, ToolFailedError, ToolTimeoutError, ToolLimitError) as error:
                if _may_pass_next_time(error) and ctx.attempt < TOOL_ATTEMPTS:
                    raise Retry(reason=str(error)) from error
                failures[role] = str(error)
                return None

        source, ruff, radon, metrics = await asyncio.gather(
            run("walk", "read_file"),
            run("ruff", "ruff_check", select=",".join(RUFF_RULES)),
            run("radon", "radon_complexity"),
            run("ast", "python_metrics"),
        )
        if "walk" in failures:  # the others fail for the same reason
            failures = {"walk": failures["walk"]}
        said = {"ruff": ruff or (), "radon": radon or (), "metrics": metrics, "failures": failures, "missing": missing}
        return pack(assemble(task.path, source, **said))


class Deduplicator(Agent):
    """Finds out which findings of different tools are about the same problem."""

    @handler
    async def deduplicate(self, task: Deduplicate) -> Merges:
        """Which findings belong together."""
        _, _, findings = await _load(Results(self.mesh, task.review))
        return pack(Merges(merges=tuple(await asyncio.to_thread(find_merges, findings))))


class Ranker(Agent):
    """Chooses what to fix first, and says why."""

    @handler
    async def rank(self, task: Rank) -> Ranking:
        """The first ten."""
        results = Results(self.mesh, task.review)
        _, reviews, findings = await _load(results)
        merged = apply_merges(findings, (await results.merges()).merges)
        return Ranking(first=tuple(await asyncio.to_thread(rank, merged, reviews)))


class Reporter(Agent):
    """Compares with the review before, and writes HTML, SARIF and JSON."""

    @handler
    async def report(self, task: WriteReport) -> Summary:
        """The report, on disk and in short."""
        results = Results(self.mesh, task.review)
        listing, reviews, findings = await _load(results)
        merged = apply_merges(findings, (await results.merges()).merges)
        created_at = now()
        missing = tuple(sorted({tool for review in reviews for tool in review.missing}))
        # Without a tool its findings would look fixed, and new again the next time.
        history = None if missing else await self._history(task.review, listing, merged)
        report = Report(
            project=listing.project,
            created_at=created_at,
            duration=(created_at - listing.started_at).total_seconds(),
            tools=_versions(),
            files=tuple(reviews),
            findings=tuple(merged),
            first=(await results.ranking()).first,
            history=history,
            missing=missing,
        )
        outputs: dict[str, str] = {}
        if task.output:
            try:
                written = await asyncio.to_thread(write_report, report, Path(task.output))
            except OSError as error:
                raise Reject(f"cannot write the report to {task.output}: {error.strerror or error}") from error
            outputs = {kind: str(path) for kind, path in written.items()}
        return report.summary().model_copy(update={"outputs": outputs})

    async def _history(self, review: str, listing: Listing, findings: list[Finding]) -> History | None:
        """What changed since the review before; None for the first one, or when nobody remembers."""
        known = ReviewMemory(self.memory, listing.root)
        try:
            history = compare(await known.earlier(review), findings)
            await known.remember(review, findings, listing.started_at)
        except StoreError as error:
            log.warning("reviewed without a comparison: %s", error)
            return None
        return history


def _may_pass_next_time(error: AgentMeshError) -> bool:
    """Whether the tool may have been unlucky, rather than the file be what it is."""
    if isinstance(error, ToolFailedError):
        return error.error_type != "UnicodeDecodeError"
    return isinstance(error, ToolTimeoutError)


async def _load(results: Results) -> tuple[Listing, list[FileReview], list[Finding]]:
    listing = await results.listing()
    reviews = await results.files(listing.paths)
    findings = [*listing.problems, *(finding for review in reviews for finding in review.findings)]
    return listing, reviews, findings


def _versions() -> dict[str, str]:
    names = {"agentmesh": "agentmesh-nats", "ruff": "ruff", "radon": "radon"}
    found = {}
    for name, distribution in names.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue  # runs elsewhere, where the tools are
    return found
