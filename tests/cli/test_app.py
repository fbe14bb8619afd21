"""Promises that hold for every command."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from agentmesh import ports
from agentmesh.cli import docs
from agentmesh.cli.app import COMMANDS, app
from agentmesh.cli.base import PANEL
from tests.cli.conftest import REPOSITORY, Cli, environment

ROOT = typer.main.get_command(app)
EVERY = [(name, command) for name, command, _ in docs.commands(ROOT, typer.Context(ROOT, info_name="agentmesh"))]
ISSUED = """
init up down ps ask tell publish submit map logs scale restart doctor demo bench version
task.ls task.get task.wait task.cancel task.show task.signal dead.ls dead.show dead.retry dead.drop
agents.ls agents.describe memory.get memory.ls memory.search
drain pause resume quarantine.ls quarantine.release events limits.ls chaos
schedule.ls schedule.add schedule.show schedule.pause schedule.resume schedule.rm
ledger.ls ledger.reconcile
stream.ls stream.info stream.tail stream.replay stream.cancel stream.purge
node metrics top keys.new proto.ls proto.export check chat
llm.ls llm.ops llm.cost llm.alerts llm.cache
"""


def test_every_promised_command_is_there_and_no_other() -> None:
    assert {name.removeprefix("agentmesh ").replace(" ", ".") for name, _ in EVERY} == set(ISSUED.split())


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_every_command_has_help_an_example_and_the_common_options(name: str, command: Any) -> None:
    assert len(inspect.cleandoc(command.help).splitlines()[0]) > 20
    assert f"{name}" in command.epilog
    options = {option for param in command.params for option in param.opts}
    assert {"--json", "--nats", "--tenant", "--config", "--timeout", "-v", "-q", "--no-color"} <= options
    undocumented = [param.name for param in command.params if not getattr(param, "help", None)]
    assert undocumented == []


def test_the_common_options_are_the_same_everywhere() -> None:
    def shared(command: Any) -> list[str]:
        return [param.name for param in command.params if getattr(param, "rich_help_panel", None) == PANEL]

    assert {tuple(shared(command)) for _, command in EVERY} == {tuple(shared(ROOT))}


@pytest.mark.parametrize("page", docs.pages())
def test_the_reference_in_docs_is_what_the_program_says(page: str) -> None:
    written = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")

    assert written == docs.pages()[page], "run: python -m agentmesh.cli.docs docs"


async def test_help_lists_every_command(alone: Cli) -> None:
    ran = await alone("--help")

    assert ran.code == 0
    assert [name for name in COMMANDS if f" {name} " not in ran.out] == []


async def test_help_waits_for_no_heavy_import() -> None:
    code = "import sys; from agentmesh.cli.app import COMMANDS, app, load; [load(name) for name in COMMANDS]"
    code += "; print([m for m in ('nats', 'pydantic', 'rich', 'msgspec') if m in sys.modules])"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=environment(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()

    assert out.decode().strip() == "[]"


async def test_a_mistyped_command_ends_with_2_and_names_the_one_that_was_meant(alone: Cli) -> None:
    ran = await alone("aks", "greeter")

    assert ran.code == 2
    assert "'ask'" in ran.err


async def test_options_may_stand_before_and_after_the_command(alone: Cli) -> None:
    assert (await alone("--json", "version")).json == (await alone("version", "--json")).json


async def test_version_prints_what_is_installed(alone: Cli) -> None:
    ran = await alone("version")

    assert ran.code == 0
    assert f"python       {sys.version.split()[0]}" in ran.lines
    assert (await alone("--version")).out.startswith("agentmesh ")


async def test_without_a_broker_a_command_ends_with_3_and_says_what_to_do(alone: Cli) -> None:
    nobody = ports.reserve()

    ran = await alone("ask", "greeter", "hi", "--nats", f"nats://127.0.0.1:{nobody.port}")

    assert (ran.code, ran.out) == (3, "")
    assert "agentmesh up" in ran.err


async def test_a_wrong_setting_ends_with_2_and_names_file_and_key(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text("[broker]\nprot = 1\n")

    ran = await alone("ps")

    assert ran.code == 2
    assert "mesh.toml: broker.prot: unknown key; did you mean 'port'?" in ran.err


async def test_a_wrong_timeout_ends_with_2(alone: Cli) -> None:
    ran = await alone("ask", "greeter", "hi", "--timeout", "soon")

    assert ran.code == 2
    assert "'soon'" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "greeter"),
        ("ask", "greeter", "text", "--data", "{}"),
        ("ask", "greeter", "--data", "[1]"),
        ("ask", "greeter", "--data", "{"),
        ("ask", "greeter", "@nowhere.txt"),
        ("ask", "gree.ter", "hi"),
        ("publish", "a b", "hi"),
        ("ps", "--nonsense"),
        ("init", "class"),
        ("init", "1a"),
        ("init", "x", "--name", "Not-A-Package"),
        ("bench", "--duration", "soon"),
        ("bench", "--pattern", "shout"),
        ("bench", "--assert", "p95"),
        ("bench", "--assert", "p95<soon"),
    ],
)
async def test_what_cannot_be_meant_ends_with_2_before_anything_is_done(alone: Cli, arguments: tuple[str, ...]) -> None:
    ran = await alone(*arguments)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err


async def test_a_usage_error_with_json_is_a_document_too(alone: Cli) -> None:
    ran = await alone("ask", "greeter", "--json")

    assert json.loads(ran.err)["error"]["type"] == "UsageError"


async def test_a_reader_that_goes_away_does_no_harm() -> None:
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m agentmesh.cli doctor --show-config | head -1",
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert out.startswith(b"SETTING")
    assert err == b""


async def test_a_terminal_that_is_not_utf8_gets_question_marks_and_no_traceback(alone: Cli) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    ran = await alone("doctor", env=plain)
    asked = await alone("ask", "greeter", "h\N{LATIN SMALL LETTER E WITH ACUTE}", env=plain)

    assert (ran.code, "Traceback" in ran.err) == (0, False)
    assert "? python" in ran.out
    assert asked.code == 2
    assert "LC_ALL=C.UTF-8" in asked.err


async def test_the_package_can_be_run_as_a_module(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "agentmesh", "version"),
        cwd=tmp_path,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()

    assert process.returncode == 0
    assert b"agentmesh" in out
