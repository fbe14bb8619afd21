"""The HTTP gateway on the command line: where it is said to be, tokens, and a Ctrl-C while somebody waits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from agentmesh.gateway.keys import digest
from tests.cli.conftest import Cli, run, start
from tests.cli.test_up import Running

AGENTS = """
import asyncio
from agentmesh import Agent, Prompt, handler


class Sleeper(Agent):
    concurrency = 3

    @handler
    async def prompt(self, message: Prompt) -> str:
        print("asleep", flush=True)
        await asyncio.sleep(600)
        return "awake"
"""


async def test_ctrl_c_ends_a_mesh_with_open_requests_within_its_grace(tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text(AGENTS)
    (tmp_path / "mesh.toml").write_text('[node]\ngrace = "1s"\n[http]\ntoken = "${SECRET}"\ntimeout = "10m"\n')
    env = {"AGENTMESH_HTTP_ENABLED": "true", "SECRET": "am_a-secret-of-this-test"}
    options = ("--port", "0", "--store", "memory", "--http", "127.0.0.1:0")
    mesh = Running(await start("up", "sleepy:Sleeper", *options, cwd=tmp_path, env=env))
    try:
        line = await mesh.line(lambda line: "● http" in line)
        await mesh.line(lambda line: line.startswith("ready in "))
        url = line.split()[2]
        assert "with a token" in line
        doctor = (await run("doctor", "--json", cwd=tmp_path, env={"SECRET": env["SECRET"]})).json
        (found,) = [finding["says"] for finding in doctor if finding["what"] == "http"]
        assert found.startswith(url)

        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
            assert (await http.get("/api/v1/agents")).status_code == 401
            http.headers["Authorization"] = "Bearer am_a-secret-of-this-test"
            asks = [asyncio.create_task(http.post("/api/v1/agents/sleeper/ask", json={"text": ""})) for _ in range(3)]
            for _ in asks:
                await mesh.line(lambda line: line.endswith("asleep"))
            stopped = await mesh.stop()
            ended = await asyncio.gather(*asks)
    finally:
        await run("down", "--force", cwd=tmp_path)

    assert (stopped.code, stopped.err) == (0, "")
    assert "stopped: " in stopped.out
    assert {one.json()["error"]["code"] for one in ended} == {"UNAVAILABLE"}
    assert "Traceback" not in stopped.out
    assert "am_a-secret" not in "\n".join(mesh.lines) + stopped.out


async def test_off_loopback_a_token_is_needed(alone: Cli) -> None:
    env = {"AGENTMESH_HTTP_ENABLED": "true"}
    refused = await alone("up", "--port", "0", "--http", "0.0.0.0:0", env=env)

    assert refused.code == 2
    assert "agentmesh keys new" in refused.err
    assert (await alone("up", "--http", "nowhere", env=env)).code == 2
    assert (await alone("up", "--http", "127.0.0.1:0", "--no-http", env=env)).code == 2


async def test_a_new_key_is_printed_with_what_goes_into_the_settings(alone: Cli, tmp_path: Path) -> None:
    told = await alone("keys", "new", "--name", "mobile", "--tenant", "acme")
    token = told.lines[0]

    assert token.startswith("am_")
    assert f'[http.keys.mobile]\ntoken = "sha256:{digest(token)}"\ntenant = "acme"' in told.out + told.err
    data = (await alone("keys", "new", "--json")).json
    assert data["digest"] == f"sha256:{digest(data['token'])}"
    assert data["token"] != token


async def test_tokens_do_not_belong_in_a_file_and_are_never_shown(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text('[http]\ntoken = "am_in-plain-sight-0123"\n')
    assert "secrets do not belong in a file" in (await alone("up", "--show-config")).err
    (tmp_path / "mesh.toml").write_text(f'[http.keys.a]\ntoken = "sha256:{digest("x")}"\n')
    shown = await alone("up", "--show-config", env={"AGENTMESH_HTTP_TOKEN": "am_in-plain-sight-0123"})

    assert shown.code == 0, shown.err
    assert "in-plain-sight" not in shown.out
    assert digest("x") not in shown.out


@pytest.mark.parametrize(
    ("variables", "host", "port"),
    [
        ({"PORT": "9000"}, "127.0.0.1", 9000),
        ({"HOST": "::1", "PORT": "1"}, "::1", 1),
        ({"HOST": "my-laptop"}, "127.0.0.1", None),
        ({"PORT": "9000", "AGENTMESH_HTTP_PORT": "9001"}, "127.0.0.1", 9001),
    ],
)
def test_host_and_port_of_the_environment_count(variables: dict[str, str], host: str, port: int | None) -> None:
    from agentmesh.config import load

    http = load(environ=variables, directory=Path("/")).http

    assert (http.host, http.port) == (host, port)
