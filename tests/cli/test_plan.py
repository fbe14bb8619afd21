"""From settings and the command line to what `agentmesh up` is to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentmesh import config
from agentmesh.cli.plan import make_plan, scaled
from agentmesh.config import Settings
from agentmesh.errors import UsageError
from agentmesh.gateway.keys import digest
from agentmesh.up.plan import UpPlan, default_nodes, dump, load

FILE = """
name = "hello"
tenant = "acme"
[broker]
store = "data"
port = 0
creds = "me.creds"
[node]
grace = "3s"
[defaults]
concurrency = 4
mailbox = { size = 10 }
restart = { max = 1, window = "9s" }
[agents.greeter]
class = "hello.agents:Greeter"
replicas = 2
args = { greeting = "Hi" }
[agents.solo]
class = "hello.agents:Solo"
isolation = "process"
env = { MODE = "x" }
concurrency = 1
mailbox = { overflow = "block" }
[tools]
targets = ["hello.tools"]
executors = 2
[memory]
path = "records.db"
"""


def settings(folder: Path, text: str = FILE) -> Settings:
    (folder / "mesh.toml").write_text(text)
    return config.load(directory=folder, environ={})


def plan(folder: Path, *targets: str, **kwargs: Any) -> UpPlan:
    return make_plan(settings(folder), targets, **kwargs)


def test_everything_in_the_file_is_in_the_plan(tmp_path: Path) -> None:
    made = plan(tmp_path)

    assert (made.name, made.tenant, made.root, made.grace) == ("hello", "acme", tmp_path, 3.0)
    assert (made.broker.embedded, made.broker.store, made.broker.port) == (True, tmp_path / "data", 0)
    assert made.broker.creds == str(tmp_path / "me.creds")
    assert (made.policy.max_restarts, made.policy.period) == (1, 9.0)
    assert (made.tools.targets, made.tools.executors) == (("hello.tools",), 2)
    assert made.memory.path == tmp_path / "records.db"
    greeter, solo = made.agents
    assert (greeter.replicas, greeter.kwargs, greeter.concurrency, greeter.mailbox_size) == (
        2,
        {"greeting": "Hi"},
        4,
        10,
    )
    assert (solo.isolation, solo.env, solo.concurrency, solo.overflow) == ("process", {"MODE": "x"}, 1, "block")


def test_without_settings_classes_decide_and_nodes_follow_the_machine(tmp_path: Path) -> None:
    made = make_plan(settings(tmp_path, '[agents.a]\nclass = "m:A"\n'))

    assert made.nodes == default_nodes()
    assert (made.agents[0].concurrency, made.agents[0].mailbox_size, made.agents[0].overflow) == (None, None, None)


def test_a_plan_survives_the_way_to_another_process(tmp_path: Path) -> None:
    assert load(dump(plan(tmp_path))) == plan(tmp_path)


def test_targets_replace_the_agents_of_the_file_and_are_named_after_their_class(tmp_path: Path) -> None:
    made = plan(tmp_path, "hello.agents:CodeReviewer")

    assert [(agent.name, agent.target) for agent in made.agents] == [("code-reviewer", "hello.agents:CodeReviewer")]


def test_a_target_that_the_file_describes_runs_as_described(tmp_path: Path) -> None:
    (greeter,) = plan(tmp_path, "hello.agents:Greeter").agents

    assert (greeter.name, greeter.replicas) == ("greeter", 2)


def test_only_leaves_the_other_agents_out(tmp_path: Path) -> None:
    assert [agent.name for agent in plan(tmp_path, only=["solo"]).agents] == ["solo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"only": ["solp"]}, "did you mean solo"), ({"targets": ["hello"]}, "expected module:Class")],
)
def test_what_does_not_exist_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(settings(tmp_path), **arguments)


def test_replicas_are_changed_from_the_command_line(tmp_path: Path) -> None:
    changed = scaled(plan(tmp_path), ["greeter=3", "solo=0"])

    assert [agent.replicas for agent in changed.agents] == [3, 0]


@pytest.mark.parametrize("text", ["greeter", "greeter=", "=3", "greeter=x", "greeter=-1"])
def test_a_wrong_replica_count_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="AGENT=COUNT"):
        scaled(plan(tmp_path), [text])


def test_replicas_of_an_agent_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean greeter"):
        scaled(plan(tmp_path), ["greter=2"])


HTTP = """
[http]
host = "0.0.0.0"
port = 0
token = "${TOKEN}"
rate = 5
max_body = "1KB"
timeout = "1m"
cors = ["https://app.example"]
[http.keys.mobile]
token = "sha256:%s"
tenant = "acme"
streams = 3
[http.routes."POST /chat"]
timeout = "2m"
"""


def test_the_http_gateway_is_as_the_settings_say_and_keeps_no_token(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text(HTTP % ("0" * 64))
    made = make_plan(config.load(directory=tmp_path, environ={"TOKEN": "am_sixteen-and-more"}))
    http = made.http

    assert http is not None
    assert (http.host, http.port, http.max_body, http.timeout) == ("0.0.0.0", 0, 1024, 60.0)
    assert (http.cors, http.routes) == (("https://app.example",), {"POST /chat": 120.0})
    own, mobile = http.keys
    assert (own.name, own.tenant, own.rate, own.digest) == ("token", "", 5.0, digest("am_sixteen-and-more"))
    assert (mobile.name, mobile.tenant, mobile.streams, mobile.digest) == ("mobile", "acme", 3, "0" * 64)
    assert b"am_sixteen" not in dump(made)
    assert load(dump(made)) == made
    off = settings(tmp_path, "[http]\nenabled = false\n")
    assert make_plan(off).http is None
