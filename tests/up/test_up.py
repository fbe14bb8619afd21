"""`agentmesh up` with real processes: what starts, what survives which crash, what it says, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from agentmesh import runfile
from agentmesh.errors import (
    AlreadyRunningError,
    BrokerStartError,
    BrokerUnavailableError,
    ConfigError,
    NoRespondersError,
    NoSuchAgentError,
    RestartIntensityError,
)
from agentmesh.ids import now
from agentmesh.supervisor import RestartPolicy
from agentmesh.up import (
    AgentPlan,
    AgentState,
    BrokerPlan,
    BrokerReady,
    LogLine,
    MemoryPlan,
    Ready,
    Restarted,
    ServiceReady,
    Stopped,
    ToolsPlan,
    UpPlan,
    Warned,
    holder,
    running,
)
from agentmesh.up.plan import dump, load
from tests.harness import Server, alive, eventually
from tests.up.conftest import ADDER, GREETER, StartMesh

# ---------------------------------------------------------------- start


async def test_a_mesh_starts_its_services_and_agents_and_says_so(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(
        AgentPlan("greeter", "swarm:Greeter", replicas=2, kwargs={"greeting": "Hi"}),
        nodes=2,
        memory=MemoryPlan(),
        tools=ToolsPlan(targets=("agentmesh.tools.builtin",)),
    )

    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hi Ada"
    broker = await mesh.event(BrokerReady)
    assert broker.embedded
    assert {event.process for event in mesh.all(ServiceReady)} == {"memory", "tools-1", "node-1", "node-2"}
    state = await mesh.event(AgentState, name="greeter", node="node-2", state="ready")
    assert (state.replica, state.isolation, set(state.messages) >= {"Hi", "Where"}) == (2, "shared", True)
    ready = await mesh.event(Ready)
    assert (ready.agents, ready.failed, ready.url) == (1, 0, broker.url)


async def test_a_running_mesh_is_found_by_its_run_file(start_mesh: StartMesh, project: Path) -> None:
    mesh = await start_mesh(GREETER)
    folder = project / ".agentmesh"

    found = runfile.find(project)
    assert found is not None
    assert (found.url, found.pid, found.tenant) == (mesh.up.url, os.getpid(), "default")
    assert (folder / "up.json").stat().st_mode & 0o777 == 0o600
    assert holder(folder) == os.getpid()

    await mesh.stop()
    assert runfile.find(project) is None
    assert holder(folder) is None


async def test_a_second_mesh_in_the_same_folder_is_refused_and_names_the_first(start_mesh: StartMesh) -> None:
    await start_mesh(GREETER)

    with pytest.raises(AlreadyRunningError, match=rf"pid {os.getpid()}; stop it with: agentmesh down"):
        await start_mesh(GREETER)


async def test_the_run_file_of_a_killed_mesh_does_not_count(start_mesh: StartMesh, project: Path) -> None:
    folder = project / ".agentmesh"
    folder.mkdir()
    (folder / "up.lock").write_text("1")
    content = runfile.RunFile("nats://127.0.0.1:1", "default", "x", 1, now())
    runfile.write(folder, content)
    assert running(folder) is None

    mesh = await start_mesh(GREETER)

    found = running(folder)
    assert found is not None
    assert found.url == mesh.up.url


async def test_an_agent_that_cannot_be_imported_is_reported_and_the_others_run(
    start_mesh: StartMesh, project: Path
) -> None:
    (project / "broken.py").write_text("import swarm\n\ndef helper():\n    return missing_name\n\nhelper()\n")
    mesh = await start_mesh(
        GREETER,
        AgentPlan("broken", "broken:Agent"),
        AgentPlan("absent", "swarm:Absent"),
        AgentPlan("wrong", "swarm:Greeter", kwargs={"colour": "red"}),
        nodes=1,
    )

    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"
    ready = await mesh.event(Ready)
    assert (ready.agents, ready.failed) == (1, 3)
    broken = await mesh.event(Warned, source="broken")
    lines = broken.text.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('broken.py", line 6, in <module>')
    assert lines[-1] == "NameError: name 'missing_name' is not defined"
    assert "host.py" not in broken.text
    assert "Absent in swarm is not an Agent class" in (await mesh.event(Warned, source="absent")).text
    assert "unexpected keyword argument 'colour'" in (await mesh.event(Warned, source="wrong")).text
    states = {info.name: info.state for info in await mesh.agents()}
    assert states == {"greeter": "ready", "broken": "failed", "absent": "failed", "wrong": "failed"}


async def test_a_process_of_its_own_gets_its_own_environment(start_mesh: StartMesh) -> None:
    own = AgentPlan("env", "swarm:Env", isolation="process", env={"COLOUR": "red"})
    mesh = await start_mesh(own)

    assert await mesh.raw("env", "Prompt", text="COLOUR") == "red"


async def test_a_port_in_use_names_who_has_it(start_mesh: StartMesh, server: Server) -> None:
    with pytest.raises(BrokerStartError, match=rf"port {server.port} .* is taken by nats-server"):
        await start_mesh(GREETER, broker=BrokerPlan(port=server.port))


async def test_a_broker_that_is_not_there_is_a_clear_error(start_mesh: StartMesh, project: Path) -> None:
    with pytest.raises(BrokerUnavailableError):
        await start_mesh(GREETER, broker=BrokerPlan(url="nats://127.0.0.1:9"))
    assert holder(project / ".agentmesh") is None


async def test_a_mesh_on_a_broker_of_somebody_else_leaves_it_running(start_mesh: StartMesh, server: Server) -> None:
    mesh = await start_mesh(GREETER, broker=BrokerPlan(url=server.url))
    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"

    await mesh.stop()

    assert server.running


async def test_two_meshes_on_one_broker_share_the_work_and_keep_their_nodes_apart(
    start_mesh: StartMesh, server: Server
) -> None:
    broker = BrokerPlan(url=server.url)
    one = await start_mesh(GREETER, broker=broker, name="one")
    two = await start_mesh(GREETER, broker=broker, name="two", run_dir=Path(".two"))

    infos = await one.agents()
    assert len({info.node for info in infos}) == 2
    assert len({await one.raw("greeter", "Where") for _ in range(50)}) == 2
    await one.ask("scale", up="two", agent="greeter", replicas=0)
    assert [info.node for info in await two.agents()] == [node for node in await one.pids() if node.startswith("node")]


def shown(pid: int) -> bytes:
    """What anybody on the machine may see of a process, and what its owner may."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


async def test_credentials_reach_every_process_and_no_list_of_processes(start_mesh: StartMesh) -> None:
    async with Server(extra_config='authorization { user: "ann", password: "p@ss:word" }') as server:
        broker = BrokerPlan(url=server.url, user="ann", password="p@ss:word")
        mesh = await start_mesh(GREETER, broker=broker, memory=MemoryPlan(), login=("ann", "p@ss:word"))

        assert {event.service for event in mesh.all(ServiceReady)} == {"memory", "node"}
        assert "p@ss" not in (await mesh.event(BrokerReady)).url
        for pid in (await mesh.pids()).values():
            assert b"word" not in shown(pid)
        await mesh.cleanup()


async def test_a_tool_executor_that_cannot_start_is_reported_and_the_rest_runs(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(
        GREETER,
        tools=ToolsPlan(targets=("no_such_module",)),
        process_policy=RestartPolicy(max_restarts=1, backoff=0.01),
    )

    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"
    assert "no_such_module" in (await mesh.event(Warned, source="tools-1")).text
    await mesh.event(Warned, hint="fix it, then: agentmesh restart tools-1")


# ---------------------------------------------------------------- crashes


async def test_a_killed_node_is_started_again_with_its_agents(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER)
    before = await mesh.raw("greeter", "Where")

    os.kill(before, signal.SIGKILL)
    restarted = await mesh.event(Restarted, process="node-1")

    assert "SIGKILL" in restarted.reason
    await mesh.event(AgentState, name="greeter", state="restarting")
    assert await mesh.raw("greeter", "Where") != before


@pytest.mark.slow
async def test_a_task_of_a_killed_node_is_done_by_another(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(AgentPlan("adder", "swarm:Adder", replicas=2), nodes=2)
    client = await mesh.client()
    await client.tasks.ensure()
    job = client.job("t1")
    body = b'{"task_id":"t1","task_type":"Add","parameters":{"a":1,"b":2,"seconds":1.0}}'
    await client.transport.publish_durable(client.subjects.task_door(), body)
    line = await mesh.event(LogLine, text="adding 1")

    os.kill((await mesh.pids())[line.source], signal.SIGKILL)

    assert await job.result(timeout=25) == 3


async def test_a_broker_that_dies_comes_back_on_its_port_and_the_mesh_goes_on(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER)
    url = mesh.up.url
    assert mesh.up._broker is not None
    assert mesh.up._broker.pid is not None

    os.kill(mesh.up._broker.pid, signal.SIGKILL)
    await mesh.event(Restarted, process="broker")

    async def answers() -> bool:
        try:
            return bool(await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada")
        except (NoSuchAgentError, NoRespondersError):  # the node is still reconnecting
            return False

    await eventually(answers, timeout=10)
    assert mesh.up.url == url
    assert not mesh.all(Restarted, process="node-1")


async def test_c3_a_process_in_a_crash_loop_is_given_up_and_the_rest_runs_on(
    start_mesh: StartMesh, project: Path
) -> None:
    (project / "doomed.py").write_text(
        "import os, swarm\nclass Doomed(swarm.Greeter):\n  async def on_start(self): os._exit(9)"
    )
    policy = RestartPolicy(max_restarts=2, period=60.0, backoff=0.01)
    mesh = await start_mesh(GREETER, AgentPlan("doomed", "doomed:Doomed", isolation="process"), process_policy=policy)

    warning = await mesh.event(Warned, source="doomed-1", hint="fix it, then: agentmesh restart doomed-1")
    assert "exit code 9" in warning.text
    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"
    await mesh.event(AgentState, name="doomed", state="failed")

    (project / "doomed.py").write_text("import swarm\nclass Doomed(swarm.Greeter): pass")
    await mesh.ask("restart", name="doomed-1")
    assert await mesh.raw("doomed", "Hi", name="Ada") == "Hello Ada"


async def test_c3_an_agent_that_is_given_up_alone_in_its_process_gets_a_fresh_process(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(
        AgentPlan("greeter", "swarm:Greeter", isolation="process"),
        policy=RestartPolicy(max_restarts=1, backoff=0.01, period=60),
    )
    client = await mesh.client()
    before = await mesh.raw("greeter", "Where")
    stumble = b'{"message_type":"Stumble","content":{}}'
    for _ in range(2):
        await client.transport.publish(client.subjects.mailbox("greeter"), stumble)
        await asyncio.sleep(0.1)  # one failure after the other, or both would meet the same life

    restarted = await mesh.event(Restarted, process="greeter-1")

    assert "exit code 70" in restarted.reason
    assert await mesh.raw("greeter", "Where") != before


async def test_c3_an_agent_that_is_given_up_beside_others_stays_down_until_it_is_restarted(
    start_mesh: StartMesh,
) -> None:
    mesh = await start_mesh(GREETER, ADDER, policy=RestartPolicy(max_restarts=0))
    client = await mesh.client()
    before = (await mesh.pids())["node-1"]

    await client.transport.publish(client.subjects.mailbox("greeter"), b'{"message_type":"Stumble","content":{}}')
    failed = await mesh.event(AgentState, name="greeter", state="failed")

    assert "ValueError: stumbled" in failed.problem
    with pytest.raises(NoSuchAgentError):
        await mesh.raw("greeter", "Hi", name="Ada")
    await mesh.ask("restart", name="greeter")
    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"
    assert (await mesh.pids())["node-1"] == before


async def test_c3_a_broker_that_is_given_up_ends_the_mesh_with_its_reason(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER, process_policy=RestartPolicy(max_restarts=0))
    pids = await mesh.pids()
    assert mesh.up._broker is not None
    assert mesh.up._broker.pid is not None

    os.kill(mesh.up._broker.pid, signal.SIGKILL)

    with pytest.raises(RestartIntensityError, match="broker failed: nats-server ended with code -9"):
        await mesh.over()
    assert not [pid for pid in pids.values() if alive(pid)]


# ---------------------------------------------------------------- control


async def test_an_agent_can_be_scaled_up_and_down(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER, nodes=2)

    assert await mesh.ask("scale", agent="greeter", replicas=4) == {"problem": ""}
    ps = await mesh.ask("ps")
    assert sorted(info.replica for info in await mesh.agents()) == [1, 2, 3, 4]
    assert {process["name"]: process["agents"]["greeter"] for process in ps["processes"]} == {
        "node-1": [1, 3],
        "node-2": [2, 4],
    }

    await mesh.ask("scale", agent="greeter", replicas=1)
    assert [info.replica for info in await mesh.agents()] == [1]
    assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"

    await mesh.ask("scale", agent="greeter", replicas=0)
    with pytest.raises(NoSuchAgentError):
        await mesh.raw("greeter", "Hi", name="Ada")


async def test_a_scaled_agent_survives_the_restart_of_its_node(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER)
    await mesh.ask("scale", agent="greeter", replicas=3)

    os.kill((await mesh.pids())["node-1"], signal.SIGKILL)
    await mesh.event(Restarted, process="node-1")

    assert len(await mesh.agents()) == 3


async def test_agents_with_processes_of_their_own_are_scaled_as_processes(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(AgentPlan("greeter", "swarm:Greeter", isolation="process"))
    await mesh.ask("scale", agent="greeter", replicas=2)
    pids = await mesh.pids()
    assert set(pids) == {"greeter-1", "greeter-2"}

    await mesh.ask("scale", agent="greeter", replicas=1)

    assert set(await mesh.pids()) == {"greeter-1"}
    assert not alive(pids["greeter-2"])


async def test_an_agent_and_a_process_can_be_restarted_by_name(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER)
    before = await mesh.raw("greeter", "Where")

    assert await mesh.ask("restart", name="greeter") == {"problem": ""}
    assert await mesh.raw("greeter", "Where") == before
    assert [info.restarts for info in await mesh.agents()] == [1]

    await mesh.ask("restart", name="node-1")
    assert await mesh.raw("greeter", "Where") != before
    assert (await mesh.event(Restarted, process="node-1")).reason == "asked for"


async def test_a_broken_agent_can_be_restarted_once_it_is_mended(start_mesh: StartMesh, project: Path) -> None:
    mesh = await start_mesh(GREETER, AgentPlan("late", "late:Late"))
    (project / "late.py").write_text("import swarm\nclass Late(swarm.Greeter): pass")

    assert await mesh.ask("restart", name="late") == {"problem": ""}

    assert await mesh.raw("late", "Hi", name="Ada") == "Hello Ada"


async def test_control_requests_that_make_no_sense_get_typed_errors(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER)

    with pytest.raises(NoSuchAgentError, match="greeter"):
        await mesh.ask("scale", agent="greter", replicas=2)
    with pytest.raises(ConfigError, match="expected 0 to 1024"):
        await mesh.ask("scale", agent="greeter", replicas=-1)
    with pytest.raises(NoSuchAgentError, match="node-1"):
        await mesh.ask("restart", name="node-2")
    with pytest.raises(Exception, match="unknown operation 'explode'; known: ping, ps"):
        await mesh.ask("explode")
    with pytest.raises(Exception, match="replicas: Expected `int`, got `str`"):
        await mesh.ask("scale", agent="greeter", replicas="many")


async def test_logs_can_be_asked_for_by_process_and_from_where_one_was(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER)
    await mesh.raw("greeter", "Slow", seconds=0)
    await mesh.event(LogLine, text="slow begins", source="node-1")

    lines = (await mesh.ask("logs", source="node-1"))["lines"]
    assert lines[-1]["text"] == "slow begins"
    assert (await mesh.ask("logs", after=lines[-1]["number"]))["lines"] == []
    assert (await mesh.ask("logs", source="memory"))["lines"] == []
    assert "slow begins" in (mesh.plan.folder / "logs" / "node-1.log").read_text()


async def test_down_is_a_control_request_too(start_mesh: StartMesh, project: Path) -> None:
    mesh = await start_mesh(GREETER)

    assert (await mesh.ask("down"))["up"]["pid"] == os.getpid()

    await mesh.over()
    assert holder(project / ".agentmesh") is None


# ---------------------------------------------------------------- the end


async def test_b12_a_stop_finishes_what_is_in_flight_and_counts_it(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER)
    slow = asyncio.create_task(mesh.raw("greeter", "Slow", seconds=0.5))
    await mesh.event(LogLine, text="slow begins")

    mesh.up.stop("the test says so")
    assert await slow == "done"

    stopped = await mesh.event(Stopped)
    assert (stopped.drained, stopped.given_back, stopped.killed) == (1, 0, False)
    assert mesh.all(Stopped)


async def test_b12_a_task_that_takes_longer_than_the_grace_is_given_back(start_mesh: StartMesh, server: Server) -> None:
    broker = BrokerPlan(url=server.url)
    mesh = await start_mesh(ADDER, broker=broker, grace=0.5)
    client = await mesh.client()
    await client.tasks.ensure()
    body = b'{"task_id":"t1","agent_id":"adder","task_type":"Add","parameters":{"a":1,"b":2,"seconds":30}}'
    await client.transport.publish_durable(client.subjects.task_door(), body)
    await mesh.event(LogLine, text="adding 1")

    await mesh.stop()

    stopped = await mesh.event(Stopped)
    assert (stopped.drained, stopped.given_back, stopped.killed) == (0, 1, False)
    assert stopped.seconds < 0.5 + 2.0
    again = await start_mesh(ADDER, broker=broker, grace=0.5)
    await again.event(LogLine, text="adding 1", timeout=3)


async def test_a_mesh_whose_broker_is_gone_stops_all_the_same(start_mesh: StartMesh, server: Server) -> None:
    mesh = await start_mesh(GREETER, broker=BrokerPlan(url=server.url), memory=MemoryPlan())
    server.kill9()

    async with asyncio.timeout(5):
        await mesh.stop()

    assert not (await mesh.event(Stopped)).killed


async def test_a_stop_while_the_broker_is_coming_back_leaves_nothing_behind(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER)
    pids = list((await mesh.pids()).values())
    assert mesh.up._broker is not None
    assert mesh.up._broker.pid is not None
    os.kill(mesh.up._broker.pid, signal.SIGKILL)
    await mesh.event(Warned, source="broker")

    async with asyncio.timeout(8):
        await mesh.stop()

    assert mesh.up._broker.pid is None
    assert not [pid for pid in pids if alive(pid)]


def test_a_plan_survives_the_way_to_another_process(tmp_path: Path) -> None:
    plan = UpPlan(root=tmp_path, agents=(AgentPlan("a", "m:A", args=(1,), kwargs={"b": [2]}),), watch=(tmp_path,))
    assert load(dump(plan)) == plan
    with pytest.raises(ConfigError):
        load(b'{"tenant": 3}')


async def test_a4_a_broker_that_may_lose_what_was_accepted_is_said_at_the_start(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER, broker=BrokerPlan(port=0, sync_always=False))

    warning = await mesh.event(Warned, source="broker")

    assert "power failure" in warning.text
    assert "sync_interval: always" in warning.hint
