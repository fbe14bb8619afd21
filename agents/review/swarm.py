"""Start a review swarm in this process, and ask one for a review."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from agentmesh.agent import Agent, default_name
from agentmesh.agents.review.agents import CodeReview, Deduplicator, FileReviewer, Ranker, Reporter, Walker
from agentmesh.agents.review.messages import Review
from agentmesh.agents.review.model import Summary
from agentmesh.client import Client
from agentmesh.mesh import Mesh
from agentmesh.tasks import Job, Progress
from agentmesh.tools.builtin import python_metrics, radon_complexity, read_file, ruff_check
from agentmesh.tools.executor import ToolExecutor

AGENTS: tuple[type[Agent], ...] = (Walker, FileReviewer, Deduplicator, Ranker, Reporter, CodeReview)
TOOLS = (read_file, ruff_check, radon_complexity, python_metrics)


def executor(mesh: Client, root: Path, *, workers: int | None = None) -> ToolExecutor:
    """A tool executor with what a review needs, for `async with`.

    Args:
        mesh: Where it joins.
        root: The directory that its tools may read, and nothing else.
        workers: Tool processes that run at the same time; None: one for each CPU.
    """
    tools = [tool.configure(root=root) for tool in TOOLS]
    return ToolExecutor(mesh.transport, mesh.subjects, tools, concurrency=workers)


@asynccontextmanager
async def swarm(mesh: Mesh, root: Path, *, workers: int | None = None) -> AsyncIterator[None]:
    """The agents and tools of a review in this process, for as long as the block runs.

    Args:
        mesh: Where they join.
        root: The directory that the tools may read.
        workers: As in `executor`.
    """
    async with executor(mesh, root, workers=workers):
        for agent in AGENTS:
            await mesh.spawn(agent)
        yield
        for agent in AGENTS:
            await mesh.stop(default_name(agent))


async def start_review(
    mesh: Client,
    root: Path,
    *,
    exclude: Iterable[str] = (),
    output: Path | None = None,
    task_id: str | None = None,
) -> Job[Summary]:
    """Submit a review to the swarm that runs on `mesh`.

    Args:
        mesh: The connection.
        root: What to review.
        exclude: More names of directories to leave out.
        output: Directory for the report; None writes no files.
        task_id: An id of your own.

    Raises:
        FileNotFoundError: There is no such directory here.
    """
    return await mesh.submit(review_task(root, exclude, output), to="code-review", task_id=task_id)


def review_task(root: Path, exclude: Iterable[str] = (), output: Path | None = None) -> Review:
    """The task, with the paths made absolute: the agents run elsewhere. See `start_review`."""
    return Review(
        root=str(root.resolve(strict=True)),
        exclude=tuple(exclude),
        output=str(output.resolve()) if output else "",
    )


async def follow(job: Job[Summary], on_progress: Callable[[Progress], None]) -> Summary:
    """Wait for a review, telling how far it is; giving up the wait cancels nothing.

    Raises:
        TaskError: The review did not complete.
    """
    async for event in job:
        if isinstance(event, Progress):
            on_progress(event)
    return await job.result()
