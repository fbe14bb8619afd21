"""The tour notebook runs from top to bottom in a real kernel, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.harness import eventually

TOUR = Path(__file__).resolve().parents[2] / "examples" / "tour.ipynb"


def _texts(cell: nbformat.NotebookNode) -> str:
    """Everything a cell printed or returned, as text."""
    parts = []
    for output in cell.get("outputs", []):
        parts.append(output.get("text", ""))
        parts.append(output.get("data", {}).get("text/plain", ""))
    return "".join(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the kernel works and keeps its temporary files, the broker's store among them."""
    return tmp_path_factory.mktemp("tour")


@pytest.fixture(scope="module")
def executed(folder: Path) -> list[str]:
    notebook = nbformat.read(TOUR, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    environment = {key: value for key, value in os.environ.items() if key != "NATS_URL"}
    client.execute(env={**environment, "TMPDIR": str(folder)})
    return [_texts(cell) for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.filterwarnings("default")  # warnings of the notebook machinery are not ours
def test_every_cell_of_the_tour_shows_what_its_text_says(executed: list[str]) -> None:
    shown = "\n".join(executed)
    for expected in (
        "Good morning, Ada! You are number 1.",
        "Good morning, Grace! You are number 2.",
        "you said: streams are just async generators",
        "did you mean 'greeter'?",
        "half way",
        "[1, 2, 3]",
        "[5, 3, 4, 9]",
        "ToolArgumentsError",
        "'first': 'programmer'",
        "counter",
    ):
        assert expected in shown, shown


async def test_no_process_of_the_tour_is_left(executed: list[str], folder: Path) -> None:
    assert executed
    await eventually(lambda: not _using(folder), timeout=5)


def _using(folder: Path) -> list[str]:
    """Commands of processes that name the folder: the kernel's broker has its store there."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command and "pytest" not in command:
                found.append(command)
    return found
