"""Publish a folder of Markdown pages as a site, in steps that survive whatever happens.

python examples/workflow/publish.py PAGES SITE [--id ID] [--ask]

Kill it anywhere and run it again with the same id: it goes on where it was. A site that turns out to be broken is taken
back, and the one before is served again.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import os
import re
import shutil
import sys
import time
from pathlib import Path

from pydantic import BaseModel

import agentmesh
from agentmesh import Agent, Reject, Step, Task, TaskContext, handler
from agentmesh.errors import AgentMeshError

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


class Page(BaseModel):
    path: str
    title: str
    words: int


class Published(BaseModel):
    release: str
    pages: list[Page]
    left_out: list[str]


class Render(Task[Page], max_attempts=2):
    """One page, to HTML."""

    source: str
    target: str


class Publish(Task[Published], max_attempts=10):
    """All pages of a folder, as a release that is switched to at once."""

    pages: str
    site: str
    ask: bool = False
    """Wait for the signal `approved` before anybody sees it."""


class Renderer(Agent):
    """Renders pages."""

    concurrency = 4

    @handler
    async def render(self, task: Render) -> Page:
        return await asyncio.to_thread(render, Path(task.source), Path(task.target))


class Publisher(Agent):
    """Publishes sites: an ordinary handler, whose steps are decided once."""

    @handler
    async def publish(self, task: Publish, ctx: TaskContext) -> Published:
        site = Path(task.site)
        release = site / "releases" / ctx.task_id
        sources = await ctx.step("list pages", list_pages, Path(task.pages))
        items = [{"source": source, "target": str(release / f"{Path(source).stem}.html")} for source in sources]
        rendered = await ctx.map(Render, items, to="renderer", on_error="return")
        pages = [page for page in rendered if isinstance(page, Page)]
        left_out = [source for source, page in zip(sources, rendered, strict=True) if not isinstance(page, Page)]
        if task.ask and not await ctx.signal("approved", bool, timeout=86_400):
            raise Reject("it was not approved")
        before = await ctx.step("what is served now", served, site)  # not in "switch", which may run more than once
        async with ctx.saga("release") as saga:
            saga.undo_with("files", remove, release)
            await ctx.step("write index", write_index, release, pages)
            await saga.do("switch", switch, site, release, undo=lambda _: switch(site, before))
            await ctx.step("check links", check_links, site)
        return Published(release=release.name, pages=pages, left_out=left_out)


def list_pages(folder: Path) -> list[str]:
    return sorted(str(path.resolve()) for path in folder.glob("*.md"))


def render(source: Path, target: Path) -> Page:
    """Headings, paragraphs and links; enough for an example."""
    text = source.read_text(encoding="utf-8")
    title = next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), source.stem)
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        level = len(block) - len(block.lstrip("#"))
        tag, content = (f"h{level}", block.lstrip("# ")) if 1 <= level <= 6 else ("p", block)
        linked = LINK.sub(r'<a href="\2">\1</a>', html.escape(content)).replace('.md">', '.html">')
        parts.append(f"<{tag}>{linked}</{tag}>")
    write(target, title, "\n".join(parts))
    return Page(path=target.name, title=title, words=len(text.split()))


def write_index(release: Path, pages: list[Page]) -> None:
    entries = [f'<li><a href="{page.path}">{html.escape(page.title)}</a> ({page.words} words)</li>' for page in pages]
    write(release / "index.html", "Pages", "<ul>\n" + "\n".join(entries) + "\n</ul>")


def write(target: Path, title: str, body: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"<!doctype html>\n<title>{html.escape(title)}</title>\n{body}\n", encoding="utf-8")


def served(site: Path) -> Path | None:
    """The release people see."""
    current = site / "current"
    return current.resolve() if current.is_symlink() else None


def switch(site: Path, release: Path | None) -> None:
    """Have people see that release, or none."""
    current = site / "current"
    if release is None:
        current.unlink(missing_ok=True)
        return
    fresh = site / f".{release.name}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(release, site))
    fresh.replace(current)  # atomic: nobody sees a site without pages


def check_links(site: Path) -> int:
    """The number of links between pages; refuses a site with one that leads nowhere."""
    current = site / "current"
    links = 0
    for page in sorted(current.glob("*.html")):
        for target in re.findall(r'href="([^":]+)"', page.read_text(encoding="utf-8")):
            links += 1
            if not (current / target).exists():
                raise Reject(f"{page.name} links to {target}, which is not there")
    return links


def remove(release: Path) -> None:
    shutil.rmtree(release, ignore_errors=True)


async def publish(pages: Path, site: Path, task_id: str, ask: bool) -> None:
    """Start a broker and the agents, publish, and say what happens."""
    async with agentmesh.connect(store=site / ".store") as mesh:
        await mesh.spawn(Renderer)
        await mesh.spawn(Publisher)
        task = Publish(pages=str(pages), site=str(site), ask=ask)
        job = await mesh.submit(task, to="publisher", task_id=task_id)
        async for event in job:
            if not isinstance(event, Step):
                continue
            print(f"{event.name}: {event.state}", flush=True)
            if event.kind == "signal" and event.state == "running":
                answer = await asyncio.to_thread(input, f"publish {site / 'releases' / task_id}? [y/N] ")
                await job.signal(event.name, answer.strip().lower() == "y")
        result = await job.result()
    print(f"{len(result.pages)} pages are at {site / 'current' / 'index.html'}")
    for source in result.left_out:
        print(f"left out, it cannot be read: {source}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Publish a folder of Markdown pages.")
    parser.add_argument("pages", type=Path)
    parser.add_argument("site", type=Path)
    parser.add_argument("--id", default=None, help="of this release: run it again with the same id to go on")
    parser.add_argument("--ask", action="store_true", help="ask before anybody sees it")
    given = parser.parse_args()
    task_id = given.id or f"release-{int(time.time())}"
    print(f"release {task_id}")
    given.site.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(publish(given.pages.resolve(), given.site.resolve(), task_id, given.ask))
    except AgentMeshError as error:
        sys.exit(f"not published: {error}")


if __name__ == "__main__":
    main()
