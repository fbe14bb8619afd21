"""D8: credentials that expire or are revoked are asked for anew; where there are none, it is said why, and it ends."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from agentmesh.errors import ConnectionClosedError
from agentmesh.node import NO_LOGIN, NodeAgent
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server
from tests.harness.fixtures import SpawnProcess
from tests.harness.logins import Operator
from tests.transport.tools import Received, States
from tests.up.test_node import said, spec, started

ACCOUNTS = """
accounts {
  A { jetstream: enabled, users = [ { user: worker, password: one } ] }
  B { users = [ { user: other, password: two } ] }
}
"""


async def test_d8_a_credential_that_expired_is_read_again_and_subscriptions_live(tmp_path: Path) -> None:
    pytest.importorskip("nkeys")
    operator, creds = Operator(), tmp_path / "user.creds"
    operator.write_credentials(creds, 3)
    async with Server(extra_config=operator.config()) as server:
        options = TransportOptions(url=server.url, creds=str(creds))
        async with await Transport.connect(options) as transport:
            received, states = Received(), States(transport)
            await transport.subscribe("mailbox", received)
            operator.write_credentials(creds, 600)

            await states.reach("reconnecting")
            began = time.monotonic()
            await states.reach("connected")

            assert time.monotonic() - began < 5
            await transport.publish("mailbox", b"still there")
            await received.body(b"still there")


async def test_d8_a_login_that_stays_refused_closes_the_connection_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("nkeys")
    operator, creds = Operator(), tmp_path / "user.creds"
    operator.write_credentials(creds, 2)
    async with Server(extra_config=operator.config()) as server:
        options = TransportOptions(url=server.url, creds=str(creds), login_patience=1.0)
        async with await Transport.connect(options) as transport:
            await States(transport).reach("closed")

            with pytest.raises(ConnectionClosedError, match=r"refused the login for 1 s: .* has expired"):
                await transport.publish_durable("anything", b"")
    assert [record.levelno for record in caplog.records if "closed for good" in record.message] == [logging.ERROR]


@pytest.mark.parametrize("what", ["account deleted", "password rotated"])
async def test_d8_a_node_that_is_not_let_in_any_more_ends_and_says_why(
    spawn_process: SpawnProcess, project: Path, what: str
) -> None:
    async with Server(extra_config=ACCOUNTS) as server:
        given = spec(server.url, project, NodeAgent("greeter", "swarm:Greeter", replicas=[1]))
        given.transport |= {"user": "worker", "password": "one", "login_patience": 1.0}
        node = await started(spawn_process, given)
        await said(node, "ready")
        config = server.store / "nats.conf"
        text = config.read_text()
        (line,) = (line for line in text.splitlines() if "user: worker" in line)
        config.write_text(text.replace(line, "" if what == "account deleted" else line.replace("one", "changed")))

        server.reload()

        assert await node.wait(10) == NO_LOGIN
        assert "node n1 ends: the broker refused the login for 1 s" in node.output
