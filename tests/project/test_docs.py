"""What the pages say is true: their programs run, their commands exist, their links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from agentmesh import AgentRef, Mesh
from agentmesh import config as settings
from agentmesh.broker import EmbeddedBroker
from agentmesh.cli.app import app
from agentmesh.tasks.ledger import Ledger
from agentmesh.tools.executor import ToolExecutor

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
COMMANDS: Any = typer.main.get_command(app)

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`(agentmesh [a-z][^`]*)`")


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [text for name, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


# ---------------------------------------------------------------- programs


def _compiled(code: str, name: str) -> Any:
    return compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


async def run_block(code: str, name: str, names: dict[str, Any]) -> None:
    """Run a block as a notebook cell would, in `names`."""
    outcome = eval(_compiled(code, name), names)
    if inspect.isawaitable(outcome):
        await outcome


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_python_block_compiles(page: Path) -> None:
    for number, code in enumerate(blocks(page, "python"), 1):
        _compiled(code, f"{_id(page)}, block {number}")


async def run_python(*arguments: str, cwd: Path) -> str:
    """Run an interpreter without the broker of somebody else; returns what it printed."""
    import asyncio

    environment = {name: value for name, value in os.environ.items() if name != "NATS_URL"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


async def test_the_program_of_the_readme_runs(tmp_path: Path) -> None:
    (program,) = blocks(ROOT / "README.md", "python")
    (tmp_path / "program.py").write_text(program)

    assert await run_python("-W", "error", "program.py", cwd=tmp_path) == "Hello, Ada!\n6\n"


Spawn = Callable[..., Awaitable[AgentRef]]


async def test_the_page_about_agents_runs(mesh: Mesh, spawn: Spawn) -> None:
    declared, said = blocks(ROOT / "docs/agents.md", "python")
    names: dict[str, Any] = {"__name__": "__main__", "mesh": mesh}

    await run_block(declared, "agents.md", names)
    await spawn(names["Writer"])
    await run_block(said, "agents.md", names)

    assert names["summary"].endswith(": …")


async def test_the_page_about_tasks_runs(mesh: Mesh, spawn: Spawn) -> None:
    declared, submitted = blocks(ROOT / "docs/tasks.md", "python")
    charged: list[str] = []
    names: dict[str, Any] = {"__name__": "__main__", "mesh": mesh, "charge": charged.append}

    await run_block(declared, "tasks.md", names)
    await spawn(names["Transcriber"])
    await run_block(submitted, "tasks.md", names)

    assert names["text"] == "all the words"
    assert names["texts"] == ["all the words"] * 2
    assert len(charged) == 4


async def test_the_page_about_schedules_runs(mesh: Mesh, spawn: Spawn) -> None:
    declared, delayed, repeating = blocks(ROOT / "docs/schedules.md", "python")
    names: dict[str, Any] = {"__name__": "__main__", "mesh": mesh}

    await run_block(declared, "schedules.md", names)
    await spawn(names["Writer"])
    for code in (delayed, repeating):
        await run_block(code, "schedules.md", names)

    assert names["text"] == "news of today"
    assert await mesh.schedules.ls() == []


async def test_the_page_about_llm_agents_runs(mesh: Mesh, spawn: Spawn) -> None:
    from agentmesh.agents.llm import LLMGateway

    declared, asked = blocks(ROOT / "docs/llm-agent.md", "python")
    names: dict[str, Any] = {"__name__": "__main__", "mesh": mesh, "print": lambda *_: None}

    await run_block(declared, "llm-agent.md", names)
    await spawn(LLMGateway)
    await spawn(names["Helper"])
    async with ToolExecutor(mesh.transport, mesh.subjects, [names["search"], names["send_mail"]]):
        await run_block(asked, "llm-agent.md", names)

    assert names["answer"] == "Everybody has 30 days of holidays a year."
    assert names["part"].type == "finish"


async def test_the_page_about_language_models_runs(mesh: Mesh, spawn: Spawn) -> None:
    from agentmesh.agents.llm import LLMGateway
    from agentmesh.config import ModelSettings

    used, voided, looked, backend = blocks(ROOT / "docs/llm.md", "python")
    printed: list[str] = []
    names: dict[str, Any] = {
        "__name__": "__main__",
        "print": lambda *words, **_: printed.append(" ".join(map(str, words))),
    }
    await run_block(backend, "llm.md", names)
    shouting = names["Shouting"]("default", ModelSettings(options={"mark": "?"}))
    await spawn(LLMGateway, {"default": shouting, "small": {}})

    await run_block(used, "llm.md", names)
    await names["use"](mesh)
    await run_block(voided, "llm.md", names)
    assert [part async for part in mesh.stream("llm", names["request"].model_copy(update={"model": "small"}))]
    await names["void"](mesh)
    await run_block(looked, "llm.md", names)
    await names["look"](mesh)

    assert printed[:2] == ["TELL ME ABOUT NATS?"] * 2
    assert any("small" in line for line in printed[2:])


async def test_the_page_about_call_trees_runs(mesh: Mesh, spawn: Spawn) -> None:
    declared, sent = blocks(ROOT / "docs/call-tree.md", "python")
    names: dict[str, Any] = {"__name__": "__main__", "mesh": mesh}

    await run_block(declared, "call-tree.md", names)
    await spawn(names["Reader"])
    await spawn(names["Researcher"])
    await run_block(sent, "call-tree.md", names)

    assert names["found"] == "what d says"
    assert await names["job"].result(timeout=10) == "what c says"


async def test_the_page_about_idempotency_runs(mesh: Mesh, spawn: Spawn) -> None:
    declared, said = blocks(ROOT / "docs/idempotency.md", "python")
    names: dict[str, Any] = {"__name__": "__main__", "mesh": mesh}

    await run_block(declared, "idempotency.md", names)
    await spawn(names["Shop"])
    async with ToolExecutor(mesh.transport, mesh.subjects, [names["charge"]]):
        await run_block(said, "idempotency.md", names)
        result = await names["same"].result(timeout=10)

    assert names["first"] == names["again"] == "paid 5"
    assert names["job"].id == names["same"].id
    assert result == "receipt for tea, receipt for stamps, written with fence True"


async def test_the_page_about_workflows_runs(mesh: Mesh, spawn: Spawn) -> None:
    declared, submitted = blocks(ROOT / "docs/workflows.md", "python")
    done: list[str] = []

    async def book_seat(key: str, city: str) -> str:
        done.append(key)
        return f"a seat to {city}"

    names: dict[str, Any] = {
        "__name__": "__main__",
        "mesh": mesh,
        "book_seat": book_seat,
        "cancel_seat": done.remove,
        "pay": lambda key, price: done.append(key),
    }

    await run_block(declared, "workflows.md", names)
    await spawn(names["Agency"])
    await run_block(submitted, "workflows.md", names)

    assert names["trip"] == "Ada has a seat to Rio"
    assert [key.rpartition("/")[2] for key in done] == ["seat", "pay"]


async def test_the_page_about_the_ledger_runs(
    nats_server: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks(ROOT / "docs/ledger.md", "python")
    names: dict[str, Any] = {"__name__": "__main__"}
    monkeypatch.setenv("NATS_URL", nats_server.url)
    monkeypatch.chdir(tmp_path)

    await run_block(code, "ledger.md", names)

    async with Ledger(tmp_path / "ledger.db") as ledger:
        assert [entry.task_id for entry in await ledger.ls()] == [names["job"].id]


async def test_the_page_about_tools_runs(mesh: Mesh) -> None:
    declared, called = blocks(ROOT / "docs/tools.md", "python")
    # As in a notebook: the function cannot be imported, so it is shipped to the child.
    names: dict[str, Any] = {"__name__": "__main__", "mesh": mesh, "self": SimpleNamespace(tools=mesh.tools)}

    await run_block(declared, "tools.md", names)
    async with ToolExecutor(mesh.transport, mesh.subjects, [names["word_count"]]):
        await run_block(called, "tools.md", names)

    assert names["n"] == 4
    assert names["listing"].name == "word_count"


async def test_the_page_about_memory_runs(mesh: Mesh) -> None:
    (code,) = blocks(ROOT / "docs/memory.md", "python")
    names: dict[str, Any] = {"mesh": mesh}

    await run_block(code, "memory.md", names)

    assert names["record"].value == {"found": 3}


async def test_the_page_about_hosts_runs(mesh: Mesh, spawn: Spawn) -> None:
    watched, leased = blocks(ROOT / "docs/hosts.md", "python")
    names: dict[str, Any] = {"mesh": mesh}

    await run_block(watched, "hosts.md", names)
    await run_block(leased, "hosts.md", names)

    assert names["alive"] == []
    assert names["token"] > 0


async def test_the_page_about_supervision_runs(mesh: Mesh, spawn: Spawn) -> None:
    redacted, watcher, watching, finishing = blocks(ROOT / "docs/supervision.md", "python")
    names: dict[str, Any] = {"__name__": "__main__", "mesh": mesh}

    for code in (redacted, watcher, finishing):
        await run_block(code, "supervision.md", names)
    guard = await spawn(names["Guard"])
    await run_block(watching, "supervision.md", names)

    assert names["gone"].reason == "it is not there"
    assert await guard.ask(names["Status"]()) == ["worker.0 on : it is not there; 0 left"]


async def test_the_page_about_the_guides_runs(nats_server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    used, naming = blocks(ROOT / "docs/guides.md", "python")
    names: dict[str, Any] = {"__name__": "__main__"}
    monkeypatch.setenv("NATS_URL", nats_server.url)

    for code in (used, naming):
        await run_block(code, "guides.md", names)

    assert names["codec"].decode(names["reply"].data)["response"] == "hello"
    assert names["ours"].mailbox("a") == "custom.agent.message.tenant_123.a"


@pytest.mark.seed("D26", "D27")
async def test_the_page_about_streams_runs(mesh: Mesh) -> None:
    produced, plain = blocks(ROOT / "docs/streams.md", "python")
    names: dict[str, Any] = {"mesh": mesh}

    await run_block(produced, "streams.md", names)
    await run_block(plain, "streams.md", names)

    assert names["story"] == ["Once ", "upon ", "a ", "time.", ""]
    assert names["told"] == ["Hello!", "aborted"]


async def test_the_page_about_testing_runs(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "docs/testing.md", "python")
    agent = """
from agentmesh import Agent, Event, Request, handler

class Greet(Request[str]):
    name: str

class Greeted(Event):
    name: str

class Greeter(Agent):
    def __init__(self, greeting):
        self.greeting = greeting

    @handler
    async def greet(self, request: Greet) -> str:
        await self.mesh.tell("auditor", Greeted(name=request.name))
        return f"{self.greeting}, {request.name}!"

"""
    (tmp_path / "test_page.py").write_text(agent + code)

    printed = await run_python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "test_page.py"), cwd=tmp_path
    )

    assert "1 passed" in printed


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_settings_block_is_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for code in blocks(page, "toml"):
        file = tmp_path / "mesh.toml"
        file.write_text(code)
        tomllib.loads(code)
        settings.load(config=file)


# ---------------------------------------------------------------- commands


def _typed(page: Path) -> Iterator[list[str]]:
    """The arguments of every `agentmesh …` in the shell blocks of a page."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars="|&;><")
            words.whitespace_split = True
            command: list[str] = []
            for word in [*words, ";"]:
                if word[0] not in "|&;><":
                    command.append(word)
                    continue
                while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                    command.pop(0)
                if command[:1] == ["agentmesh"]:
                    yield command[1:]
                command = []


def _find(words: list[str]) -> tuple[Any, Any, list[str]]:
    """The command that the first words name, its context, and the other words."""
    command, context, rest = COMMANDS, typer.Context(COMMANDS, info_name="agentmesh"), list(words)
    while hasattr(command, "list_commands") and rest:
        name = rest.pop(0)
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {name!r}: agentmesh {' '.join(words)}"
        context = typer.Context(command, info_name=name, parent=context)
    return command, context, rest


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_command_line_in_a_shell_block_can_be_typed(page: Path) -> None:
    for words in _typed(page):
        command, context, rest = _find(words)
        command.make_context(context.info_name, rest, parent=context.parent)  # raises for what is wrong


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_command_and_option_in_the_text_exists(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for mention in _INLINE.findall(text):
        words = re.findall(r"[^\s|]+", mention)[1:]
        command, _, rest = _find([word for word in words if re.fullmatch(r"[-\w.:=]+", word)])
        known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        options = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert options <= known, f"{mention}: {options - known}"


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{_id(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{_id(page)} links to {target}"


def test_the_pages_are_all_reached_from_the_readme() -> None:
    linked = {target.partition("#")[0] for page in PAGES for target in _LINK.findall(page.read_text(encoding="utf-8"))}
    names = {Path(target).name for target in linked}

    assert [_id(page) for page in PAGES if page.parent.name == "docs" and page.name not in names] == []
