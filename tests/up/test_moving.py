"""Agents move between processes under load: no request fails, no task or durable event is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from agentmesh.errors import UsageError
from agentmesh.up import AgentPlan, Reloaded
from tests.harness import eventually
from tests.up.conftest import StartMesh
from tests.up.load import MODULE, Load

BUSY = AgentPlan("busy", "busyness:Busy", replicas=2)
OWN = AgentPlan("busy", "busyness:Busy", replicas=2, isolation="process")


@pytest.fixture
def book(project: Path, tmp_path: Path) -> Path:
    """Where the agents write what they did."""
    folder = tmp_path / "books"
    folder.mkdir()
    (project / "busyness.py").write_text(MODULE.replace("BOOK_FOLDER", str(folder)))
    return folder


@pytest.mark.parametrize(
    "agent", [pytest.param(BUSY, id="shared"), pytest.param(OWN, id="own processes", marks=pytest.mark.slow)]
)
async def test_c9_a_rolling_restart_brings_new_code_and_loses_nothing(
    start_mesh: StartMesh, project: Path, book: Path, agent: AgentPlan
) -> None:
    mesh = await start_mesh(agent, nodes=2)
    before = await mesh.pids()
    async with Load(await mesh.client(), book) as load:
        await load.more()
        (project / "busyness.py").write_text((project / "busyness.py").read_text().replace('"v1"', '"version 2"'))
        answer = await mesh.ask("rolling", name="busy", timeout=60)
        await load.more()

    assert answer["problem"] == ""
    assert len(answer["nodes"]) == 2
    after = await mesh.pids()
    assert not set(before.values()) & set(after.values())
    assert set(load.answers) == {"v1", "version 2"}
    assert load.answers[-1] == "version 2"
    counts = await load.settled()
    assert counts["repeated effects of one key"] == 0
    await eventually(_gone(before.values()))


async def test_a_rolling_restart_with_broken_code_stops_at_the_first_and_changes_nothing(
    start_mesh: StartMesh, project: Path, book: Path
) -> None:
    mesh = await start_mesh(BUSY, nodes=2)
    before = await mesh.pids()
    (project / "busyness.py").write_text("import nonsense_that_is_not_there")

    answer = await mesh.ask("rolling", name="busy", timeout=60)

    assert "nonsense_that_is_not_there" in answer["problem"]
    assert answer["nodes"] == []
    assert await mesh.pids() == before
    assert (await mesh.event(Reloaded)).problem


async def test_c9_a_drained_node_ends_when_its_agents_are_elsewhere_and_loses_nothing(
    start_mesh: StartMesh, book: Path
) -> None:
    mesh = await start_mesh(BUSY, nodes=2)
    before = await mesh.pids()
    async with Load(await mesh.client(), book) as load:
        await load.more()
        answer = await mesh.ask("drain", node="node-1", timeout=60)
        await load.more()

    assert answer == {"moved": {"busy.1": "node-2"}, "problem": ""}
    assert await mesh.pids() == {"node-2": before["node-2"]}
    assert sorted((info.replica, info.node) for info in await mesh.agents()) == [(1, "node-2"), (2, "node-2")]
    assert (await load.settled())["repeated effects of one key"] == 0
    await eventually(_gone([before["node-1"]]))


@pytest.mark.slow
async def test_the_last_node_is_replaced_when_it_is_drained(start_mesh: StartMesh, book: Path) -> None:
    mesh = await start_mesh(BUSY, nodes=1)
    before = await mesh.pids()

    answer = await mesh.ask("drain", node="node-1", timeout=60)

    assert answer["moved"] == {"busy.1": "node-1-r2", "busy.2": "node-1-r2"}
    assert set(before.values()).isdisjoint((await mesh.pids()).values())
    with pytest.raises(UsageError, match="no node 'node-1'"):
        await mesh.ask("drain", node="node-1")


@pytest.mark.slow
async def test_c9_scaling_up_and_down_under_load_loses_nothing(start_mesh: StartMesh, book: Path) -> None:
    mesh = await start_mesh(BUSY, nodes=2)
    async with Load(await mesh.client(), book) as load:
        for replicas in (5, 1, 3):
            assert (await mesh.ask("scale", agent="busy", replicas=replicas, timeout=60))["problem"] == ""
            await load.more(10)

    assert len(await mesh.agents()) == 3
    assert (await load.settled())["repeated effects of one key"] == 0


def _gone(pids: Iterable[int]) -> Callable[[], bool]:
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)
