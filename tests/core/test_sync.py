"""Plain code: calls that block, on a thread and connection of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh import Agent, Budget, Event, Mesh, Prompt, Request, SyncMesh, Task, TaskContext, budget, handler
from agentmesh.broker import EmbeddedBroker
from agentmesh.errors import BudgetExceededError, NoSuchAgentError
from agentmesh.ids import new_id
from agentmesh.mesh import ConnectOptions


class Where(Request[str]): ...


class Count(Task[int]):
    text: str


class Patient(Task[str]): ...


class Kept(Event, durable=True): ...


class Echo(Agent):
    @handler
    async def wait(self, task: Patient, ctx: TaskContext) -> str:
        return await ctx.signal("go", str)

    @handler
    async def asked(self, request: Prompt) -> AsyncIterator[str]:
        for word in request.text.split():
            yield word

    @handler
    async def where(self, request: Where) -> str:
        return threading.current_thread().name


def test_a_script_without_asyncio_spawns_asks_and_streams(nats_server: EmbeddedBroker) -> None:
    with SyncMesh(ConnectOptions(url=nats_server.url, tenant=f"sync-{new_id()}")) as mesh:
        mesh.spawn(Echo)
        assert mesh.ask("echo", Prompt(text="a b")) == "ab"
        assert list(mesh.stream("echo", Prompt(text="a b c"))) == ["a", "b", "c"]
        assert [info.name for info in mesh.agents()] == ["echo"]
        (node,) = mesh.nodes()
        assert (node.state, len(node.agents)) == ("up", 1)
        assert mesh.limits.ls() == []
        assert [*mesh.llmops.operations(), *mesh.llmops.cost(), *mesh.llmops.alerts()] == []
        assert mesh.llmops.invalidate(everything=True)
        with pytest.raises(NoSuchAgentError):
            mesh.ask("nobody", Prompt(text="a"))


def test_leaving_a_stream_early_closes_it(nats_server: EmbeddedBroker) -> None:
    with SyncMesh(ConnectOptions(url=nats_server.url, tenant=f"sync-{new_id()}")) as mesh:
        mesh.spawn(Echo)
        chunks = mesh.stream("echo", Prompt(text="a b c"))
        assert next(iter(chunks)) == "a"
        assert mesh.ask("echo", Prompt(text="x y")) == "xy"


def test_a_workflow_is_signalled_and_looked_at_by_plain_code(nats_server: EmbeddedBroker) -> None:
    with SyncMesh(ConnectOptions(url=nats_server.url, tenant=f"sync-{new_id()}")) as mesh:
        mesh.spawn(Echo)
        job = mesh.submit(Patient(), to="echo")
        assert job.signal("go", "on")
        assert not job.signal("go", "again")
        assert job.result(10) == "on"
        assert [step.name for step in job.steps()] in ([], ["go"])  # it need not have waited
        mesh.tell("nobody", Kept(), message_id="once")


def test_keys_and_budgets_hold_for_plain_code_too(nats_server: EmbeddedBroker) -> None:
    with SyncMesh(ConnectOptions(url=nats_server.url, tenant=f"sync-{new_id()}")) as mesh:
        mesh.spawn(Echo)
        assert mesh.ask("echo", Prompt(text="a"), idempotency_key="k") == "a"
        mesh.stop("echo")
        assert mesh.ask("echo", Prompt(text="a"), idempotency_key="k") == "a"
        mesh.spawn(Echo)
        with budget(steps=1):
            assert mesh.ask("echo", Prompt(text="b")) == "b"
            with pytest.raises(BudgetExceededError):
                mesh.ask("echo", Prompt(text="b"))
        assert mesh.ask("echo", Prompt(text="c"), budget=Budget(depth=1)) == "c"


def test_tasks_are_delayed_scheduled_and_written_down_from_plain_code(
    nats_server: EmbeddedBroker, tmp_path: Path
) -> None:
    options = ConnectOptions(url=nats_server.url, tenant=f"sync-{new_id()}", ledger=tmp_path / "ledger.db")
    with SyncMesh(options) as mesh:
        job = mesh.submit(Count(text="a"), to="counter", delay=3600)
        schedule = mesh.schedule(Count(text="a"), every=3600, schedule_id="hourly")
        assert len(schedule.next_runs(3)) == 3
        schedule.pause()
        assert mesh.schedules.get("hourly").info.paused
        mesh.schedules.resume("hourly")
        assert [info.id for info in mesh.schedules.ls()] == [job.id, "hourly"]
        mesh.schedules.remove("hourly")
        assert job.cancel()
        assert mesh.schedules.ls() == []
    assert (tmp_path / "ledger.db").exists()


async def test_a_blocking_call_works_while_the_loop_of_the_caller_is_blocked(mesh: Mesh) -> None:
    mesh.sync.spawn(Echo)  # blocks this loop, as a cell of a notebook would
    assert mesh.sync.ask("echo", Where()) == "agentmesh"
    assert await mesh.ask("echo", Where()) == "agentmesh"


async def test_with_a_thread_of_its_own_an_agent_answers_while_this_loop_is_blocked(
    nats_server: EmbeddedBroker,
) -> None:
    from agentmesh import connect

    async with connect(nats_server.url, tenant=f"sync-{new_id()}", own_thread=True) as mesh:
        await mesh.spawn(Echo)
        assert mesh.sync.ask("echo", Prompt(text="a b")) == "ab"
        assert await mesh.ask("echo", Where()) == "agentmesh"


async def test_the_facade_refuses_to_block_its_own_thread(mesh: Mesh) -> None:
    facade = mesh.sync

    class Blocks(Agent):
        @handler
        async def where(self, request: Where) -> str:
            return facade.ask("blocks", Where())

    await asyncio.to_thread(facade.spawn, Blocks)
    from agentmesh.errors import RemoteError

    with pytest.raises(RemoteError, match=r"await self\.mesh"):
        await mesh.ask("blocks", Where())
