"""The swarm on real files, with the real tools and a real broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh import Job, Mesh, Progress
from agentmesh.agents.review.agents import CodeReview, FileReviewer
from agentmesh.agents.review.messages import Parts, Review, ReviewFile
from agentmesh.agents.review.model import FileReview, Report, Summary
from agentmesh.agents.review.swarm import AGENTS, executor, start_review, swarm
from agentmesh.broker import EmbeddedBroker
from agentmesh.errors import TaskCancelledError, TaskDeadError
from tests.harness.fixtures import SpawnProcess
from tests.review import golden

STANDARD_LIBRARY = Path(asyncio.__file__).parents[1]
BUGS = "import os\nimport pickle\n\n\ndef load(data, seen=[]):\n    return eval(data) or pickle.loads(data)\n"
LONG = "def f(n):\n" + "".join(f"    if n == {number}:\n        return {number}\n" for number in range(15))

NODE = """
import asyncio, sys
import agentmesh
from agentmesh.agents.review.swarm import AGENTS

async def main():
    async with agentmesh.connect(sys.argv[1], tenant=sys.argv[2], name=sys.argv[3], own_thread=False) as mesh:
        for agent in AGENTS:
            await mesh.spawn(agent)
        print("node ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with everything that can be wrong with a file."""
    root = tmp_path / "project"
    sources = {
        "clean.py": '"""Nothing to see."""\n',
        "pkg/__init__.py": "",
        "pkg/bugs.py": BUGS,
        "pkg/long.py": LONG,
        "broken.py": "def f(:\n    pass\n",
        "spaces in name ü.py": "x = undefined_name\n",
        "build/generated.py": "import os\n",
    }
    for name, text in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "latin.py").write_bytes(b'x = "\xe9"\n')
    return root


@pytest.fixture
async def running(mesh: Mesh, project: Path) -> AsyncIterator[Mesh]:
    """A mesh with a swarm that may read `project`."""
    async with swarm(mesh, project):
        yield mesh


async def _review(mesh: Mesh, project: Path) -> tuple[Summary, Report]:
    job = await start_review(mesh, project, output=project.parent / "out")
    summary = await job.result(60.0)
    return summary, Report.model_validate_json(_json(summary))


def _json(summary: Summary) -> str:
    return Path(summary.outputs["json"]).read_text(encoding="utf-8")


async def test_the_swarm_says_exactly_what_ruff_and_radon_say(running: Mesh, project: Path) -> None:
    summary, report = await _review(running, project)

    assert golden.differences(json.loads(_json(summary)), project) == []
    assert [review.path for review in report.files] == [
        "broken.py",
        "clean.py",
        "latin.py",
        "pkg/__init__.py",
        "pkg/bugs.py",
        "pkg/long.py",
        "spaces in name ü.py",
    ]
    assert summary == report.summary().model_copy(update={"outputs": summary.outputs})


async def test_a_file_that_cannot_be_parsed_or_decoded_is_a_finding(running: Mesh, project: Path) -> None:
    _, report = await _review(running, project)

    rules = {path: {f.rule for f in report.findings if f.path == path} for path in ("broken.py", "latin.py")}
    assert rules["broken.py"] == {"invalid-syntax"}
    assert "E902" in rules["latin.py"]
    assert "tool-failed" not in {finding.rule for finding in report.findings}


async def test_the_same_problem_is_reported_once_and_the_worst_comes_first(running: Mesh, project: Path) -> None:
    summary, report = await _review(running, project)

    (pickle,) = [finding for finding in report.findings if finding.rule == "S301" and finding.line == 6]
    assert [origin.tool for origin in pickle.also] == ["ast"]
    (complexity,) = [finding for finding in report.findings if finding.path == "pkg/long.py" and finding.rule == "C901"]
    assert (complexity.value, [origin.tool for origin in complexity.also]) == (16, ["radon"])
    assert summary.first[0].finding.path == "broken.py"
    assert "spaces in name ü.py" in {ranked.finding.path for ranked in summary.first[:4]}
    assert all(ranked.excerpt for ranked in summary.first if ranked.finding.path != "latin.py")


async def test_the_next_review_says_what_is_new_and_what_is_fixed(running: Mesh, project: Path) -> None:
    before, _ = await _review(running, project)
    bugs = project / "pkg" / "bugs.py"
    bugs.write_text("# moved down\n\n" + bugs.read_text().replace("import os\n", "") + "\n\ny = not_there\n")

    after, report = await _review(running, project)

    assert before.earlier_at is None
    assert after.earlier_at is not None
    assert report.history is not None
    assert [gone.rule for gone in report.history.fixed] == ["F401"]
    new = set(report.history.new)
    assert [finding.rule for finding in report.findings if finding.fingerprint in new] == ["F821"]


async def test_a_review_asked_for_twice_under_one_id_is_made_once(running: Mesh, project: Path) -> None:
    first = await (await start_review(running, project, task_id="nightly")).result(60.0)
    (project / "later.py").write_text("import os\n")

    second = await (await start_review(running, project, task_id="nightly")).result(60.0)

    assert second == first


async def test_progress_goes_from_nothing_to_all_files(running: Mesh, project: Path) -> None:
    job = await start_review(running, project)

    events = [event async for event in job if isinstance(event, Progress)]

    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert "7 of 7 files" in [event.text for event in events]


async def test_an_empty_directory_is_a_clean_project(running: Mesh, project: Path) -> None:
    empty = project / "empty"
    empty.mkdir()

    summary = await (await start_review(running, empty)).result(60.0)

    assert (summary.files, summary.findings, summary.outputs) == (0, 0, {})


async def test_a_directory_that_does_not_exist_is_refused_with_the_reason(running: Mesh, project: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await start_review(running, project / "missing")

    job = await running.submit(Review(root=str(project / "missing")), to="code-review")
    with pytest.raises(TaskDeadError, match=r"cannot review .*missing': No such file or directory"):
        await job.result(30.0)


async def test_a_file_outside_of_the_tools_root_is_a_finding_and_is_not_read(running: Mesh, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.py").write_text("password = 'hunter2'\n")

    summary = await (await start_review(running, outside)).result(60.0)

    assert [ranked.finding.rule for ranked in summary.first] == ["unreadable"]
    assert "hunter2" not in summary.model_dump_json()


async def test_cancelling_a_review_cancels_its_parts(mesh: Mesh, project: Path) -> None:
    # No tools are served and no reviewer runs, so the files wait in the queue.
    for agent in AGENTS:
        if agent is not FileReviewer:
            await mesh.spawn(agent)
    job = await start_review(mesh, project)
    part = await _handed_out(job, "clean.py", mesh)

    assert await job.cancel()

    with pytest.raises(TaskCancelledError):
        await job.result(10.0)
    with pytest.raises(TaskCancelledError):
        await part.result(10.0)


async def test_a_review_goes_on_when_the_coordinator_is_restarted(mesh: Mesh, project: Path) -> None:
    async with executor(mesh, project):
        for agent in AGENTS:
            if agent is not FileReviewer:
                await mesh.spawn(agent)
        job = await start_review(mesh, project)
        await _handed_out(job, "clean.py", mesh)

        await mesh.stop("code-review", grace=0.0)
        await mesh.spawn(FileReviewer)
        await mesh.spawn(CodeReview)

        assert (await job.result(60.0)).files == 7


async def _handed_out(job: Job[Summary], path: str, mesh: Mesh) -> Job[FileReview]:
    """The part of a review for one file, as soon as it waits in the queue."""
    part = mesh.job(Parts(job.id).file(path), ReviewFile)
    while part.id not in {status.task_id for status in await mesh.tasks.ls("waiting")}:  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # what waits is in the broker, which tells nobody
    return part


async def _review_with_kills(
    mesh: Mesh, broker: EmbeddedBroker, spawn_process: SpawnProcess, root: Path, out: Path, kills: int
) -> tuple[Summary, list[str]]:
    """Review `root` with four nodes, killing one after every few files; returns what differs from the tools."""
    tenant = mesh.subjects.tenant
    nodes = [await spawn_process(NODE, broker.url, tenant, f"node-{number}") for number in range(1, 5)]
    for node in nodes:
        await node.line_matching("node ready", timeout=30.0)
    exclude = ["test", "tests", "idle_test"]
    async with executor(mesh, root):
        job = await start_review(mesh, root, exclude=exclude, output=out)
        thresholds = [0.1 + 0.2 * number for number in range(kills)]
        async for event in job:
            if isinstance(event, Progress) and thresholds and event.fraction > thresholds[0]:
                thresholds.pop(0)
                nodes.pop().kill9()
        summary = await job.result(120.0)
    assert not thresholds, "the review was over before every kill"
    return summary, golden.differences(json.loads(_json(summary)), root, exclude)


async def test_b2_a_node_killed_in_the_middle_changes_nothing_in_the_findings(
    mesh: Mesh, nats_server: EmbeddedBroker, spawn_process: SpawnProcess, tmp_path: Path
) -> None:
    root = STANDARD_LIBRARY / "email"

    summary, differences = await _review_with_kills(mesh, nats_server, spawn_process, root, tmp_path / "out", kills=1)

    assert differences == []
    assert summary.files > 25


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, 1, 3])
async def test_the_standard_library_is_reviewed_to_the_finding_under_kills(
    mesh: Mesh, nats_server: EmbeddedBroker, spawn_process: SpawnProcess, tmp_path: Path, kills: int
) -> None:
    summary, differences = await _review_with_kills(
        mesh, nats_server, spawn_process, STANDARD_LIBRARY, tmp_path / "out", kills
    )

    assert differences == []
    assert summary.files > 600
    assert summary.findings > 5000
