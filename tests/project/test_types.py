"""What type checkers see: the reply of an ask has the type the request promises."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RIGHT = """
from agentmesh import Agent, Job, Mesh, Request, Task, connect, handler

class Summarise(Request[str]):
    text: str

class Count(Task[int]):
    text: str

async def main() -> None:
    async with connect() as mesh:
        summary: str = await mesh.ask("writer", Summarise(text="a"))
        ref = mesh.ref("writer")
        again: str = await ref.ask(Summarise(text="a"))
        async for chunk in ref.stream(Summarise(text="a")):
            piece: str = chunk
            print(piece)
        job: Job[int] = await mesh.submit(Count(text="a"))
        number: int = await job.result()
        numbers: list[int] = await mesh.map(Count, ["a", "b"])
        plain: str = mesh.sync.ask("writer", Summarise(text="a"))
        print(summary, again, number, numbers, plain)
"""

# Each of these lines must be an error.
WRONG = [
    'number: int = await mesh.ask("writer", Summarise(text="a"))',
    'await mesh.ask("writer", Count(text="a"))',
    'await mesh.submit(Summarise(text="a"))',
    'await mesh.tell("writer", Summarise(text="a"))',
    'text: str = await (await mesh.submit(Count(text="a"))).result()',
]


def _mypy(path: Path) -> list[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file=", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout
    return [line for line in shown.splitlines() if path.name in line and "error" in line]


def _pyright(path: Path) -> list[str]:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout
    found = json.loads(shown)["generalDiagnostics"]
    return [one["message"] for one in found if one["severity"] == "error" and one["file"].endswith(path.name)]


CHECKERS = {"mypy": _mypy, "pyright": _pyright}


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_reply_type_is_known_to(checker: str, tmp_path: Path) -> None:
    if checker == "pyright" and shutil.which("node") is None:
        pytest.skip("pyright needs node")
    # One file with every wrong line, each in a function of its own, keeps it to one run of the checker.
    body = RIGHT + "".join(f"\nasync def wrong{n}(mesh: Mesh) -> None:\n    {line}\n" for n, line in enumerate(WRONG))
    right, wrong = tmp_path / "right_program.py", tmp_path / "wrong_program.py"
    right.write_text(RIGHT)
    wrong.write_text(body)
    assert CHECKERS[checker](right) == []
    assert len(CHECKERS[checker](wrong)) >= len(WRONG)
