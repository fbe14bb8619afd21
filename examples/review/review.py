"""Review a directory of Python code with a swarm in this process.

python examples/review/review.py PATH [--output DIR] [--exclude NAME]... [--workers N]
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import agentmesh
from agentmesh.agents.review.swarm import follow, start_review, swarm
from agentmesh.agents.review.table import render_table


async def review(root: Path, output: Path, exclude: list[str], workers: int | None) -> None:
    """Start a broker and a swarm, review, and print what to fix first."""
    console = Console()
    columns = (TextColumn("reviewing"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # With a store, the next run can say what is new and what is fixed.
    async with agentmesh.connect(store=output / ".store") as mesh, swarm(mesh, root, workers=workers):
        job = await start_review(mesh, root, exclude=exclude, output=output)
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("", total=1.0)
            summary = await follow(job, lambda at: progress.update(bar, completed=at.fraction, description=at.text))
    console.print(render_table(summary))
    console.print(f"report: {summary.outputs['html']}", soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Review a directory of Python code.")
    parser.add_argument("path", type=Path, nargs="?", default=Path())
    parser.add_argument("--output", type=Path, default=Path("review"), help="for the report (default: %(default)s)")
    parser.add_argument("--exclude", action="append", default=[], metavar="NAME", help="a directory to leave out")
    parser.add_argument("--workers", type=int, help="tool processes (default: one for each CPU)")
    given = parser.parse_args()
    asyncio.run(review(given.path, given.output, given.exclude, given.workers))


if __name__ == "__main__":
    main()
