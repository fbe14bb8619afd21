"""`agentmesh init`: what it writes starts, answers, and passes its own test and type check."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from agentmesh.cli.init import check_package, package_name
from agentmesh.errors import UsageError
from tests.cli.conftest import Cli, environment

FILES = {
    ".gitignore",
    "README.md",
    "hello/__init__.py",
    "hello/agents.py",
    "hello/messages.py",
    "hello/tools.py",
    "mesh.toml",
    "pyproject.toml",
    "tests/test_agents.py",
}


async def python(project: Path, *arguments: str) -> tuple[int, str]:
    """Run a Python module in the project."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", *arguments),
        cwd=project,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_init_writes_a_project_and_says_what_to_type_next(alone: Cli, tmp_path: Path) -> None:
    ran = await alone("init", "hello")

    written = {str(path.relative_to(tmp_path / "hello")) for path in (tmp_path / "hello").rglob("*") if path.is_file()}
    assert ran.code == 0
    assert written == FILES
    assert "hello/" in ran.out
    assert "    agents.py" in ran.out
    assert "cd hello && agentmesh up" in ran.err
    assert 'agentmesh ask greeter "hi"' in ran.err
    assert "{{" not in "".join(path.read_text() for path in (tmp_path / "hello").rglob("*") if path.is_file())


async def test_init_overwrites_nothing(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello" / "mesh.toml").write_text("mine")

    ran = await alone("init", "hello")

    assert ran.code == 2
    assert "already has mesh.toml" in ran.err
    assert [path.name for path in (tmp_path / "hello").iterdir()] == ["mesh.toml"]


async def test_init_beside_other_files_leaves_them_alone(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    ran = await alone("init", ".", "--name", "hello", "--json")

    assert ran.code == 0
    assert set(ran.json["files"]) == FILES
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_package_name_comes_from_the_directory() -> None:
    assert package_name(Path("/x/My-Agents 2")) == "my_agents_2"


@pytest.mark.parametrize("name", ["class", "json", "agentmesh", "tests", "a-b", "A", "1a", "", "a.b", "é"])
def test_a_package_name_that_cannot_work_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--name my_agents"):
        check_package(name)


async def test_the_new_project_passes_its_own_tests_and_checks(alone: Cli, tmp_path: Path) -> None:
    await alone("init", "hello")
    project = tmp_path / "hello"

    tested, output = await python(project, "pytest", "-q", "-p", "no:cacheprovider")
    assert tested == 0, output
    typed, output = await python(project, "mypy", "--cache-dir", str(tmp_path / "mypy"))
    assert typed == 0, output
    rules = ("--isolated", "--select", "E,F,I,UP,B", "--line-length", "120")
    linted, output = await python(project, "ruff", "check", "--no-cache", *rules)
    assert linted == 0, output
