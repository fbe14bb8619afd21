"""Promises of the tools that come with agentmesh, where the tools they wrap are the judges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from radon.complexity import cc_rank, cc_visit  # type: ignore[import-untyped]

from agentmesh.errors import MissingExtraError, ToolArgumentsError, ToolError, ToolFailedError, ToolLimitError
from agentmesh.tooling import Tool
from agentmesh.tools import builtin
from agentmesh.tools.command import OUTPUT_BYTES, command_tools
from agentmesh.tools.files import file_tools
from agentmesh.tools.pool import ProcessPool
from agentmesh.tools.python_ast import measure

STDLIB = Path(sysconfig.get_path("stdlib"))

HOSTILE_PATHS = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "a/../../../etc/passwd",
    "..\\x",
    "a\x00.txt",
    "link/passwd",
    "passwd-link",
    "",
    ".",
    "a/" * 300 + "x",
    "missing",
    "folder",
    "pipe",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a few files, and with things that lead out of it."""
    top = tmp_path / "root"
    (top / "folder").mkdir(parents=True)
    (tmp_path / "x").write_text("outside")
    (top / "a.txt").write_text("alpha\r\nbeta\n")
    (top / "folder" / "b.txt").write_text("ä")
    (top / "latin.txt").write_bytes(b"\xe4")
    (top / "inner-link").symlink_to("folder/b.txt")
    (top / "link").symlink_to("/etc")
    (top / "passwd-link").symlink_to("/etc/passwd")
    os.mkfifo(top / "pipe")
    return top


def tools(root: Path) -> tuple[Tool[..., Any], Tool[..., Any]]:
    read_file, list_files = file_tools(root)
    return read_file, list_files


@pytest.mark.parametrize("path", HOSTILE_PATHS)
@pytest.mark.parametrize("tool", ["read_file", "radon_complexity", "python_metrics"])
def test_j2_a_path_out_of_the_root_is_refused(root: Path, tool: str, path: str) -> None:
    with pytest.raises(ToolArgumentsError):
        getattr(builtin, tool).configure(root=root)(path)


def test_files_under_the_root_are_read_as_they_are(root: Path) -> None:
    read_file, _ = tools(root)

    assert read_file("a.txt") == "alpha\r\nbeta\n"
    assert read_file("folder/./b.txt") == read_file("inner-link") == read_file(str(root / "folder/b.txt")) == "ä"
    with pytest.raises(ToolLimitError, match="3 bytes"):
        read_file("a.txt", 3)
    with pytest.raises(UnicodeDecodeError):
        read_file("latin.txt")


def test_files_are_listed_without_those_that_links_lead_to_outside(root: Path) -> None:
    _, list_files = tools(root)

    assert list_files() == ["a.txt", "folder/b.txt", "inner-link", "latin.txt"]
    assert list_files("*/*") == ["folder/b.txt"]
    assert list_files("folder/*.txt") == ["folder/b.txt"]
    assert list_files("*.py") == []
    assert len(list_files(limit=2)) == 2


@pytest.mark.parametrize("pattern", ["../*", "/etc/*", "", "a/../../*", "a\x00", "**x/**y"])
def test_a_pattern_out_of_the_root_is_refused(root: Path, pattern: str) -> None:
    with pytest.raises(ToolArgumentsError):
        tools(root)[1](pattern)


async def test_a_command_on_the_allowlist_runs_without_a_shell(pool: ProcessPool, root: Path) -> None:
    (run_command,) = command_tools(["echo", "cat a.txt", "sh -c"], root)

    async def run(*argv: str) -> dict[str, Any]:
        data = await pool.run(run_command, run_command.encode_arguments({"argv": argv}), 10)
        result: dict[str, Any] = json.loads(data)
        return result

    assert await run("echo", "$HOME;", "*") == {
        "exit_code": 0,
        "stdout": "$HOME; *\n",
        "stderr": "",
        "truncated": False,
    }
    assert (await run("cat", "a.txt"))["stdout"] == "alpha\r\nbeta\n"
    assert await run("sh", "-c", "echo bad >&2; exit 3") | {"stdout": ""} == {
        "exit_code": 3,
        "stdout": "",
        "stderr": "bad\n",
        "truncated": False,
    }
    flood = await run("sh", "-c", "while :; do echo flood; done")
    assert (flood["truncated"], len(flood["stdout"])) == (True, OUTPUT_BYTES)


@pytest.mark.parametrize(
    "argv", [["ls"], ["cat"], ["cat", "b.txt"], ["/bin/echo"], ["./echo"], ["echo ; ls"], ["echo", "a\0b"], [""]]
)
def test_any_other_command_is_refused(root: Path, argv: list[str]) -> None:
    (run_command,) = command_tools(["echo", "cat a.txt"], root)

    with pytest.raises(ToolArgumentsError):
        run_command(argv)
    with pytest.raises(ToolArgumentsError):
        builtin.run_command(["echo"])


def test_a_command_that_is_not_installed_says_so(root: Path) -> None:
    with pytest.raises(ToolFailedError, match="not installed"):
        command_tools(["no-such-program"], root)[0](["no-such-program"])


SOURCE = '''"""Sizes."""
# a comment
import pickle as p
import subprocess
from os import system as shell

class Shape:
    def area(self):
        """Its size."""
        def helper(): return 1
        if a:
            pass
        elif b:
            for x in y:
                with z:
                    pass

    @property
    def name(self): return eval("1")

    @name.setter
    def name(self, value): pass

    def _private(self): p.loads(b"")

async def run(text):
    shell("ls"); subprocess.run("ls", shell=True); subprocess.run(["ls"], shell=False); model.eval()
'''


def test_python_metrics_count_what_is_there() -> None:
    found = measure(SOURCE.encode())

    assert (found["lines"], found["functions"], found["classes"], found["max_nesting"]) == (27, 6, 1, 3)
    assert found["code_lines"] == 27 - 1 - 5  # a comment, five blank lines
    assert found["missing_docstrings"] == ["Shape", "run", "Shape.name"]
    assert [(call["name"], call["line"], call["column"]) for call in found["risky_calls"]] == [
        ("eval", 19, 28),
        ("pickle.loads", 24, 25),
        ("os.system", 27, 5),
        ("subprocess.run", 27, 18),
    ]
    assert "syntax_error" not in found


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("x = 1\ndef f(:\n", 2, "invalid syntax"),
        ("print 'x'\n", 1, "Missing parentheses"),
        ("x = '\n", 1, "unterminated string"),
        ("x = 1\n\ty = 2\n", 2, "unexpected indent"),
        ("# -*- coding: no-such -*-\n", 1, "unknown encoding"),
        ("x = 1\0\n", 1, "null bytes"),
        ("(" * 5000, 1, ""),
        ("x = " + "-" * 100_000 + "1", 1, ""),
    ],
)
def test_source_that_cannot_be_parsed_is_a_result_with_a_syntax_error(source: str, line: int, message: str) -> None:
    found = builtin.python_metrics(source=source)

    assert found["syntax_error"]["line"] == line
    assert found["syntax_error"]["column"] >= 1
    assert message in found["syntax_error"]["message"]


def test_deeply_nested_source_is_measured() -> None:
    chain = "if a: pass\n" + "elif b: pass\n" * 900
    sums = "x = " + " + ".join(["1"] * 800)

    assert measure(f"{chain}{sums}\n".encode())["max_nesting"] == 1


def test_metrics_need_either_a_path_or_the_source(root: Path) -> None:
    metrics = builtin.python_metrics.configure(root=root)
    for path, source in ((None, None), ("a.txt", "")):
        with pytest.raises(ToolArgumentsError, match="either path or source"):
            metrics(path, source)


@pytest.mark.parametrize("path", ["asyncio/base_events.py", "typing.py", "json/decoder.py", "keyword.py"])
async def test_complexity_is_what_radon_itself_says(pool: ProcessPool, path: str) -> None:
    tool = builtin.radon_complexity.configure(root=STDLIB)
    found = json.loads(await pool.run(tool, tool.encode_arguments({"path": path}), 30))

    letters = {"function": "F", "method": "M", "class": "C"}
    ours = [
        (b["name"], b["classname"], letters[b["type"]], b["line"], b["endline"], b["complexity"], b["rank"])
        for b in found
    ]
    assert ours == [
        (b.name, getattr(b, "classname", "") or "", b.letter, b.lineno, b.endline, b.complexity, cc_rank(b.complexity))
        for b in cc_visit((STDLIB / path).read_text())
    ]


def test_a_file_that_cannot_be_parsed_has_no_complexity(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f(:\n")

    assert builtin.radon_complexity.configure(root=tmp_path)("bad.py") == []


async def test_ruff_findings_are_what_ruff_itself_says(pool: ProcessPool) -> None:
    path, select = "asyncio/base_events.py", "E,F,B,C90,SIM,PERF,S"
    tool = builtin.ruff_check.configure(root=STDLIB)
    found = json.loads(await pool.run(tool, tool.encode_arguments({"path": path, "select": select}), 30))

    said = _ruff("--select", select, str(STDLIB / path))
    assert found
    assert [(f["code"], f["message"], f["row"], f["column"], f["end_row"], f["end_column"]) for f in found] == said


def _ruff(*arguments: str) -> list[tuple[Any, ...]]:
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--output-format", "json"]
    done = subprocess.run([*command, *arguments], capture_output=True, check=False)
    return [
        (
            each["code"],
            each["message"],
            each["location"]["row"],
            each["location"]["column"],
            each["end_location"]["row"],
            each["end_location"]["column"],
        )
        for each in json.loads(done.stdout)
    ]


def test_ruff_says_that_a_file_cannot_be_parsed(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f(:\n")

    found = builtin.ruff_check.configure(root=tmp_path)("bad.py")

    assert {finding["code"] for finding in found} == {"invalid-syntax"}


@pytest.mark.parametrize("select", ["--fix", "E F", "E,", "e", "E;ls", "E,--config=x"])
def test_only_names_of_rules_get_to_ruff(select: str) -> None:
    with pytest.raises(ToolArgumentsError, match="select"):
        builtin.ruff_check.encode_arguments({"path": "x.py", "select": select})


def test_a_rule_that_does_not_exist_is_an_error_with_ruffs_words(root: Path) -> None:
    with pytest.raises(ToolFailedError, match="Unknown rule selector"):
        builtin.ruff_check.configure(root=root)("a.txt", "QQQ999")


@pytest.mark.parametrize(("tool", "module"), [("ruff_check", "ruff"), ("radon_complexity", "radon.complexity")])
def test_a_missing_library_names_what_to_install(
    root: Path, tool: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(MissingExtraError, match=rf"pip install {module.partition('.')[0]} .*agentmesh-nats\[review\]"):
        getattr(builtin, tool).configure(root=root)("a.txt")


async def test_every_file_of_the_standard_library_can_be_measured_in_the_pool(pool: ProcessPool) -> None:
    tool = builtin.python_metrics.configure(root=STDLIB)
    paths = sorted((STDLIB / "asyncio").glob("*.py"))
    for path in paths:
        try:
            found = json.loads(await pool.run(tool, tool.encode_arguments({"path": str(path)}), 30))
        except ToolError as error:
            pytest.fail(f"{path}: {error}")
        assert found["lines"] == len(path.read_bytes().splitlines())
