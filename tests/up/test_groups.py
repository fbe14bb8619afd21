"""Groups: the strategies of OTP over agents, in one node, over several, and in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmesh.errors import ConfigError
from agentmesh.happenings import recent
from agentmesh.supervisor import RestartPolicy, Strategy
from agentmesh.up import AgentPlan, GroupPlan, UpPlan, Warned
from tests.harness import eventually
from tests.up.conftest import Mesh, StartMesh

STAGES = """
import os, pathlib
from agentmesh import Agent, Event, Finish, Request, handler

BOOK = pathlib.Path("BOOK_FILE")


class Where(Request[int]):
    pass


class Stumble(Event):
    pass


class Done(Event):
    pass


class Stage(Agent):
    quarantine_after = 0

    def write(self, word: str) -> None:
        with open(BOOK, "a") as file:
            file.write(f"{word} {self.name}\\n")

    async def on_start(self) -> None:
        self.write("start")
        if (BOOK.parent / f"broken-{self.name}").exists():
            raise RuntimeError(f"{self.name} is broken")

    async def on_stop(self) -> None:
        self.write("stop")

    @handler
    async def where(self, message: Where) -> int:
        return os.getpid()

    @handler
    async def stumble(self, event: Stumble) -> None:
        raise ValueError("stumbled")

    @handler
    async def done(self, event: Done) -> None:
        raise Finish("all done")
"""

FAST = RestartPolicy(backoff=0.01)
NAMES = ("a", "b", "c")
STUMBLE = b'{"message_type":"Stumble","message_id":"1","content":{}}'


class Book:
    """What the agents of a group wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def forget(self) -> None:
        self.path.write_text("")

    def has(self, *lines: str) -> Callable[[], bool]:
        return lambda: set(lines) <= set(self.lines)


@pytest.fixture
def book(project: Path) -> Book:
    path = project / "book"
    (project / "stages.py").write_text(STAGES.replace("BOOK_FILE", str(path)))
    return Book(path)


def stages(isolation: str = "shared", **changes: str) -> list[AgentPlan]:
    return [
        AgentPlan(name, "stages:Stage", isolation=isolation, restart=changes.get(name))  # type: ignore[arg-type]
        for name in NAMES
    ]


async def down(mesh: Mesh, state: str = "down") -> str:
    """Wait until the group is down; why."""

    async def problem() -> str:
        group = (await mesh.ask("ps"))["groups"][0]
        return str(group["problem"]) if group["state"] == state else ""

    return await eventually(problem, 15)


AGAIN = {"one_for_one": ["b"], "one_for_all": ["a", "b", "c"], "rest_for_one": ["b", "c"]}


@pytest.mark.parametrize(
    ("layout", "strategy"),
    [
        ("one node", "one_for_one"),
        pytest.param("two nodes", "rest_for_one", marks=pytest.mark.slow),
        ("own processes", "one_for_all"),
        pytest.param("one node", "rest_for_one", marks=pytest.mark.slow),
        pytest.param("one node", "one_for_all", marks=pytest.mark.slow),
        pytest.param("two nodes", "one_for_one", marks=pytest.mark.slow),
        pytest.param("two nodes", "one_for_all", marks=pytest.mark.slow),
        pytest.param("own processes", "one_for_one", marks=pytest.mark.slow),
        pytest.param("own processes", "rest_for_one", marks=pytest.mark.slow),
    ],
)
async def test_c8_siblings_of_a_failed_agent_restart_as_the_strategy_says(
    start_mesh: StartMesh, book: Book, strategy: Strategy, layout: str
) -> None:
    group = GroupPlan("line", NAMES, strategy, policy=FAST)
    own = layout == "own processes"
    mesh = await start_mesh(
        *stages("process" if own else "shared"), groups=(group,), nodes=1 if layout == "one node" else 2
    )
    assert book.lines == ["start a", "start b", "start c"]
    before = {name: await mesh.raw(name, "Where") for name in NAMES}
    assert len(set(before.values())) == {"one node": 1, "two nodes": 2, "own processes": 3}[layout]
    book.forget()

    client = await mesh.client()
    await client.transport.publish(client.subjects.mailbox("b"), STUMBLE)

    again = AGAIN[strategy]
    await eventually(book.has(*(f"start {name}" for name in again)), 15)
    stopped = [name for name in reversed(again) if name != "b"]
    stops = [line for line in book.lines if line.startswith("stop") and line != "stop b"]
    assert stops == [f"stop {name}" for name in stopped]
    assert [line for line in book.lines if line.startswith("start")] == [f"start {name}" for name in again]
    assert book.lines.index("start " + again[0]) > max([book.lines.index(line) for line in stops], default=-1)
    after = {name: await mesh.raw(name, "Where") for name in NAMES}
    if own:
        assert {name for name in NAMES if before[name] != after[name]} == set(again)
        await eventually(lambda: not any(os.path.exists(f"/proc/{before[name]}") for name in again))


@pytest.mark.parametrize("isolation", ["shared", pytest.param("process", marks=pytest.mark.slow)])
async def test_c8_the_death_of_a_process_restarts_the_siblings_in_others(
    start_mesh: StartMesh, book: Book, isolation: str
) -> None:
    group = GroupPlan("line", NAMES, "rest_for_one", policy=FAST)
    mesh = await start_mesh(*stages(isolation), groups=(group,), nodes=3)
    before = {name: await mesh.raw(name, "Where") for name in NAMES}
    assert len(set(before.values())) == 3
    book.forget()

    os.kill(before["b"], signal.SIGKILL)

    await eventually(book.has("stop c", "start b", "start c"), 20)
    assert book.lines == ["stop c", "start b", "start c"]
    assert await mesh.raw("a", "Where") == before["a"]
    assert await mesh.raw("b", "Where") != before["b"]
    client = await mesh.client()
    crashes = await recent(client.transport, client.subjects, kind="crash")
    assert [(crash.document["pid"], crash.document["reason"]) for crash in crashes] == [(before["b"], "SIGKILL")]


async def test_c3_a_group_that_fails_too_often_goes_down_and_can_be_started_again(
    start_mesh: StartMesh, book: Book, project: Path
) -> None:
    policy = RestartPolicy(max_restarts=2, period=30.0, backoff=0.01)
    mesh = await start_mesh(*stages(), groups=(GroupPlan("line", NAMES, "one_for_all", policy=policy),), nodes=2)
    book.forget()
    (project / "broken-b").write_text("")

    client = await mesh.client()
    await client.transport.publish(client.subjects.mailbox("c"), STUMBLE)

    problem = await down(mesh)
    assert "b failed again after 2 restarts" in problem
    assert await mesh.agents() == []
    assert (await mesh.event(Warned, source="line", hint=lambda hint: "agentmesh restart line" in hint)).text
    gave_up = await recent(client.transport, client.subjects, kind="gave-up", name="line")
    assert "b is broken" in gave_up[0].document["reason"]
    crashes = await recent(client.transport, client.subjects, kind="crash", name="b")
    assert {crash.document["reason"] for crash in crashes} == {"it could not start"}
    assert "raise RuntimeError" in crashes[0].document["traceback"]
    assert "b is broken" in (await mesh.ask("restart", name="line"))["problem"]

    (project / "broken-b").unlink()
    book.forget()
    assert (await mesh.ask("restart", name="line"))["problem"] == ""
    assert book.lines == ["start a", "start b", "start c"]


async def test_c4_a_group_stops_in_reverse_order(start_mesh: StartMesh, book: Book) -> None:
    mesh = await start_mesh(*stages(), groups=(GroupPlan("line", NAMES),), nodes=3)
    book.forget()

    await mesh.stop()

    assert book.lines == ["stop c", "stop b", "stop a"]


async def test_the_restart_type_decides_and_the_last_significant_agent_ends_the_group(
    start_mesh: StartMesh, book: Book
) -> None:
    agents = [
        AgentPlan("a", "stages:Stage"),
        AgentPlan("b", "stages:Stage", restart="transient", significant=True),
        AgentPlan("c", "stages:Stage", restart="temporary", significant=True, isolation="process"),
    ]
    mesh = await start_mesh(*agents, groups=(GroupPlan("line", NAMES, auto_shutdown="all_significant", policy=FAST),))
    client = await mesh.client()

    async def tell(agent: str, kind: str) -> None:
        body = b'{"message_type":"%s","message_id":"1","content":{}}' % kind.encode()
        await client.transport.publish(client.subjects.mailbox(agent), body)

    book.forget()
    await tell("a", "Done")
    await tell("b", "Stumble")
    await eventually(book.has("start a", "start b"), 10)
    await tell("c", "Stumble")

    async def without_c() -> bool:
        return {process["name"] for process in (await mesh.ask("ps"))["processes"]} == {"node-1"}

    await eventually(without_c, 10)
    assert "start c" not in book.lines
    await tell("b", "Done")

    assert "b ended: all done" in await down(mesh, "ended")
    assert [info.name for info in await mesh.agents() if info.state == "ready"] == []
    assert [event.name for event in await recent(client.transport, client.subjects, kind="group-ended")] == ["line"]
    assert (await mesh.ask("restart", name="line"))["problem"] == ""
    assert {info.name for info in await mesh.agents()} == set(NAMES)


@pytest.mark.slow
async def test_one_agent_of_a_group_can_be_scaled_and_restarted(start_mesh: StartMesh, book: Book) -> None:
    mesh = await start_mesh(*stages(), groups=(GroupPlan("line", NAMES, policy=FAST),), nodes=2)

    assert (await mesh.ask("scale", agent="b", replicas=3))["problem"] == ""
    book.forget()
    assert (await mesh.ask("restart", name="b"))["problem"] == ""

    assert sorted(book.lines) == ["start b"] * 3 + ["stop b"] * 3
    assert len([info for info in await mesh.agents() if info.name == "b"]) == 3


def test_a_group_that_makes_no_sense_is_refused() -> None:
    a = AgentPlan("a", "stages:Stage")
    with pytest.raises(ConfigError, match="no agent 'x'"):
        UpPlan(agents=(a,), groups=(GroupPlan("g", ("x",)),))
    with pytest.raises(ConfigError, match="is in group g already"):
        UpPlan(agents=(a,), groups=(GroupPlan("g", ("a",)), GroupPlan("h", ("a",))))
    with pytest.raises(ConfigError, match="an agent of that name"):
        UpPlan(agents=(a,), groups=(GroupPlan("a", ()),))
    significant = AgentPlan("a", "stages:Stage", significant=True)
    with pytest.raises(ConfigError, match="auto_shutdown"):
        UpPlan(agents=(significant,), groups=(GroupPlan("g", ("a",)),))
    with pytest.raises(ConfigError, match="transient"):
        UpPlan(agents=(significant,), groups=(GroupPlan("g", ("a",), auto_shutdown="any_significant"),))
