"""The review swarm as a notebook cell: the same agents, the same result."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

CELL = """
from pathlib import Path
import agentmesh
from agentmesh.agents.review.swarm import start_review, swarm

async with agentmesh.connect() as mesh, swarm(mesh, Path({root!r})):
    job = await start_review(mesh, Path({root!r}), output=Path({output!r}))
    summary = await job.result()
print(summary.files, "files", summary.findings, "findings")
"""


@pytest.mark.filterwarnings("default")  # warnings of the notebook machinery are not ours
def test_a_review_runs_in_a_cell(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "good.py").write_text('"""Nothing wrong."""\n')
    (code / "bad.py").write_text("import os\nassert eval('1')\n")
    (code / "broken.py").write_text("def f(:\n")
    notebook = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    source = CELL.format(root=str(code), output=str(tmp_path / "out"))
    notebook.cells = [nbformat.v4.new_code_cell(source)]  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={key: value for key, value in os.environ.items() if key != "NATS_URL"})

    shown = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    assert shown.startswith("3 files"), shown
    assert (tmp_path / "out" / "review.html").stat().st_size > 10_000
