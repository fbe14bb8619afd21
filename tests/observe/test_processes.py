"""What the processes of a real `agentmesh up` say about themselves."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import urllib.request

import pytest

from tests.cli.conftest import environment
from tests.observe.conftest import Running
from tests.observe.test_metrics import read, value

REQUIRED = {"ts", "level", "logger", "message", "tenant"}
WHILE_HANDLING = {"trace_id", "agent", "message_id", "queue_seconds"}


@pytest.mark.seed("A30")
async def test_every_line_of_every_process_is_a_document_that_says_what_it_is_about(running: Running) -> None:
    answer = await running.cli("ask", "shop", "--type", "Order", "--data", '{"item": "tea"}')
    assert "sold tea" in answer.out, answer
    await running.cli("ask", "shop", "--type", "Order", "--data", '{"item": "nothing"}')
    await running.cli("submit", "Pack", "--to", "shop", "--data", '{"item": "box"}', "--wait")

    said = running.wait_for(lambda record: record["message"] == "an order of tea")
    failed = running.wait_for(lambda record: "handler of Order failed" in record["message"])
    packed = running.wait_for(lambda record: record["message"] == "packing box")

    for record in running.records:
        assert record.keys() >= REQUIRED, record
    for record in (said, failed, packed):
        assert record.keys() >= WHILE_HANDLING, record
        assert (record["tenant"], record["agent"], record["process"]) == ("default", "shop", "node-1")
        assert len(record["trace_id"]) == 32
    assert failed["traceback"].endswith("ValueError: nothing was ordered")
    assert packed["task_id"] == packed["message_id"]

    logs = await running.cli("logs", "shop", "--json")
    kept = [json.loads(line) for line in logs.lines]
    assert said["message_id"] in {line.get("record", {}).get("message_id") for line in kept}


@pytest.mark.seed("A29", "B52")
async def test_every_process_has_figures_and_they_come_together(running: Running) -> None:
    await running.cli("tell", "clerk", "--type", "Hold", "--data", "{}")
    ran = await running.cli("metrics", "--timeout", "5")
    found = read(ran.out)

    processes = {sample.labels["process"] for sample in found["agentmesh_info"]}
    assert {"node-1", "tools-1", "memory", "up"} <= processes
    assert value(found["agentmesh_mailbox_capacity"], agent="shop", process="node-1") == 1024
    assert found["agentmesh_stream_messages"]

    alone = read((await running.cli("metrics", "--node", "node-1")).out)
    assert {sample.labels["process"] for samples in alone.values() for sample in samples} == {"node-1"}
    one = await running.cli("metrics", "agentmesh_in_flight", "--json")
    assert [family["name"] for family in one.json] == ["agentmesh_in_flight"]
    nobody = await running.cli("metrics", "--node", "nobody")
    assert nobody.code == 2
    assert "no process 'nobody' answers" in nobody.err


@pytest.mark.seed("A29")
def test_the_gateway_shows_them_all(running: Running) -> None:
    ready = running.wait_for(lambda record: record.get("service") == "gateway")
    with urllib.request.urlopen(f"{ready['url']}/metrics", timeout=30) as answer:
        found = read(answer.read().decode())
    assert value(found["agentmesh_mailbox_capacity"], agent="shop") == 1024
    assert "gateway" in {sample.labels["process"] for sample in found["agentmesh_info"]}


@pytest.mark.seed("B52")
async def test_top_shows_agents_queues_streams_and_processes_once_as_text_or_data(running: Running) -> None:
    await running.cli("submit", "Pack", "--to", "nobody", "--data", '{"item": "box"}')
    await running.cli("ask", "shop", "--type", "Order", "--data", '{"item": "tea"}')

    text = await running.cli("top", "--once", "--plain", "--interval", "0.2", "--timeout", "5")

    assert text.code == 0, text.err
    for wanted in ("AGENT", "TASK QUEUE", "STREAM", "PROCESS", "shop", "1 ready", "nobody normal", "node-1"):
        assert wanted in text.out, text.out
    document = (await running.cli("top", "--once", "--json", "--interval", "0.2", "--timeout", "5")).json
    (shop,) = [agent for agent in document["agents"] if agent["agent"] == "shop"]
    assert shop["handled"] >= 1
    assert shop["p95"].endswith(" ms")
    (queue,) = [queue for queue in document["queues"] if queue["queue"] == "nobody normal"]
    assert (queue["tasks"], queue["lag"], queue["unsettled"]) == (1, 1, 0)
    assert {"TASKS", "RESULTS"} <= {stream["stream"] for stream in document["streams"]}
    assert {process["broker"] for process in document["processes"]} == {"connected"}


@pytest.mark.seed("B52")
def test_top_is_a_screen_in_a_terminal_and_q_ends_it(running: Running) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "agentmesh.cli", "top", "--interval", "0.2"]
    environ = {**environment(), "TERM": "xterm", "COLUMNS": "120", "LINES": "60"}
    process = subprocess.Popen(
        command, cwd=running.folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    shown = b""
    while b"q: end" not in shown and select.select([ours], [], [], 60)[0]:
        shown += os.read(ours, 65536)
    os.write(ours, b"q")
    while select.select([ours], [], [], 60)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # its end of the terminal is closed
            break
    os.close(ours)
    assert process.wait(60) == 0
    assert b"AGENT" in shown
    assert b"shop" in shown
