"""What `agentmesh up` shows for each thing that happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.cli.output import Output
from agentmesh.cli.screen import Screen
from agentmesh.gateway.options import GatewayOptions, KeyOptions
from agentmesh.up import events
from agentmesh.up.plan import LLM_GATEWAY, AgentPlan, BrokerPlan, ToolsPlan, UpPlan

PLAN = UpPlan(
    name="hello",
    broker=BrokerPlan(store=Path(".agentmesh")),
    agents=(AgentPlan("greeter", "hello.agents:Greeter", 2), AgentPlan("broken", "hello.agents:Broken")),
    tools=ToolsPlan(("hello.tools",)),
)
START: list[events.UpEvent] = [
    events.BrokerReady(url="nats://127.0.0.1:4222", version="2.15.1", embedded=True, store=".agentmesh"),
    events.ServiceReady(service="tools", process="tools-1", pid=7),
    events.AgentState(name="greeter", replica=1, node="node-1", state="ready", messages=("Greet", "Prompt*")),
    events.AgentState(name="greeter", replica=2, node="node-2", state="ready", messages=("Greet", "Prompt*")),
    events.AgentState(name="broken", replica=1, node="node-1", state="failed", problem="ImportError: no\nmore"),
    events.Warned(source="broken", text="Traceback …\nImportError: no", hint="mend hello/agents.py"),
    events.Ready(url="nats://127.0.0.1:4222", seconds=0.93, agents=1, failed=1),
]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("FORCE_COLOR", "CI", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)


def shown(capsys: pytest.CaptureFixture[str], *happened: events.UpEvent, json: bool = False) -> str:
    screen = Screen(Output(json=json), PLAN)
    screen.banner()
    for event in [*START, *happened]:
        screen(event)
    return capsys.readouterr().out


@pytest.mark.usefixtures("plain")
def test_a_start_shows_what_is_up_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)

    assert text.startswith("agentmesh 0.")
    assert " · hello · tenant default · Python 3." in text
    assert "● broker     nats://127.0.0.1:4222    embedded 2.15.1, JetStream" in text
    assert "● storage    .agentmesh/              survives restarts" in text
    assert "● tools      tools-1                  hello.tools" in text
    words = [line.split() for line in text.splitlines()]
    assert ["greeter", "2/2", "shared", "ready", "Greet,", "Prompt*"] in words
    assert ["broken", "0/1", "shared", "failed", "ImportError:", "no"] in words
    assert 'ready in 0.9 s · try:  agentmesh ask greeter "hi"' in text
    assert "! broken:\n    Traceback …\n    ImportError: no\n  → mend hello/agents.py\n" in text


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("event", "line"),
    [
        (events.LogLine(source="greeter.1", text="hello"), "greeter.1    │ hello"),
        (
            events.AgentState(name="greeter", replica=1, node="n", state="restarting", problem="ValueError: x"),
            "~ greeter.1",
        ),
        (
            events.Restarted(process="node-1", reason="node-1 SIGKILL\nits last words", restarts=1),
            "~ node-1 ended (SIGKILL); started again (1)",
        ),
        (
            events.Reloaded(files=("hello/agents.py",), nodes=("node-1",), agents=("greeter",), seconds=0.41),
            "~ hello/agents.py changed → greeter restarted in 0.4 s",
        ),
        (
            events.Reloaded(files=("a.py",), nodes=(), agents=(), seconds=0.1, problem="SyntaxError: bad\n"),
            "~ a.py changed, the old code runs on:\nSyntaxError: bad\n",
        ),
        (
            events.Reloaded(files=(), nodes=("node-1-r2",), agents=("greeter",), seconds=0.41),
            "~ new processes were asked for → greeter restarted in 0.4 s",
        ),
        (
            events.Reloaded(files=(), nodes=("node-1-r2",), agents=("greeter",), seconds=0.1, problem="no"),
            "~ new processes were asked for, the old code runs on, except in node-1-r2:\nno\n",
        ),
        (
            events.Elected(active=False, supervisor="home (pid 7 on h)"),
            "~ standing by for the chores: home (pid 7 on h) does them",
        ),
        (events.Stopping(reason="Ctrl-C", grace=10.0), "stopping (Ctrl-C): up to 10 s"),
        (
            events.Stopped(drained=3, given_back=1, seconds=0.2),
            "stopped: finished 3, gave back 1 in 0.2 s. Data kept in",
        ),
        (events.Stopped(drained=0, given_back=0, seconds=0.2, killed=True), "by force"),
    ],
)
def test_each_thing_that_happens_is_one_line(
    capsys: pytest.CaptureFixture[str], event: events.UpEvent, line: str
) -> None:
    assert line in shown(capsys, event).partition("Ctrl-C to stop")[2]


def test_with_json_each_event_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in shown(capsys, json=True).splitlines()]

    assert [line["event"] for line in lines][:3] == ["broker_ready", "service_ready", "agent_state"]
    assert lines[-1]["event"] == "ready"
    assert (lines[-1]["seconds"], lines[-1]["failed"]) == (0.93, 1)


@pytest.mark.usefixtures("plain")
def test_being_the_only_supervisor_is_not_worth_a_line_and_taking_over_is(capsys: pytest.CaptureFixture[str]) -> None:
    active = events.Elected(active=True)

    assert "active" not in shown(capsys, active)
    assert "~ this supervisor is the active one now" in shown(capsys, events.Elected(active=False), active)


@pytest.mark.usefixtures("plain")
def test_an_agent_that_was_stopped_with_its_group_is_not_shown_as_starting(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = events.AgentState(name="broken", replica=1, node="node-1", state="stopped")
    screen = Screen(Output(), PLAN)
    for event in [*START[:-1], stopped, START[-1]]:
        screen(event)

    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["broken", "0/1", "shared", "stopped", "ImportError:", "no"] in words


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("http", "says"),
    [
        (GatewayOptions(), "no login on loopback"),
        (
            GatewayOptions(keys=(KeyOptions("a", "0" * 64),)),
            "with a token",
        ),
    ],
)
def test_a_start_shows_where_the_http_gateway_is_and_whether_it_needs_a_token(
    http: GatewayOptions, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen(Output(), replace(PLAN, http=http))
    screen(events.ServiceReady(service="gateway", process="gateway", pid=7, url="http://127.0.0.1:8000"))
    screen(events.LogLine(source="gateway", text="http ready: http://127.0.0.1:8000"))

    assert capsys.readouterr().out == f"  ● http       http://127.0.0.1:8000    {says}; see /ui and /docs\n"


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({}, "● model offline answers by rules; a real one: [models.default] in mesh.toml"),
        ({"default": {"backend": "offline"}}, "● model offline answers by rules; a real one"),
        ({"default": {"backend": "openai"}, "small": {}}, "● models default, small costs: agentmesh llm cost"),
    ],
)
def test_a_start_says_when_no_real_model_answers(
    models: dict[str, object], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen(Output(), replace(PLAN, agents=(AgentPlan("llm", LLM_GATEWAY, kwargs={"models": models}),)))
    screen(events.Ready(url="nats://127.0.0.1:4222", seconds=0.5, agents=1, failed=0))

    assert says in " ".join(capsys.readouterr().out.split())
