"""`agentmesh ledger`, and submits that are written down."""

from __future__ import annotations

from pathlib import Path

from agentmesh import Mesh
from tests.cli.conftest import Cli


async def test_what_was_submitted_is_listed_and_submitted_again_when_it_is_lost(
    cli: Cli, mesh: Mesh, tmp_path: Path
) -> None:
    known = {"AGENTMESH_LEDGER": "ledger.db"}
    submitted = await cli("submit", "Ring", "--to", "ringer", env=known)
    task_id = submitted.out.strip()
    assert (submitted.code, (tmp_path / "ledger.db").exists()) == (0, True)

    listed = (await cli("ledger", "ls", "--json", env=known)).json
    assert [(entry["id"], entry["type"], entry["state"]) for entry in listed] == [(task_id, "Ring", "accepted")]
    assert (await cli("ledger", "reconcile", env=known)).out == "0 decided, 1 wait or run, 0 submitted again\n"

    await mesh.transport.purge("TASKS", mesh.subjects.tasks("ringer", "normal"))
    again = (await cli("ledger", "reconcile", "--ledger", "ledger.db", "--json")).json
    assert again["resubmitted"] == [task_id]

    await mesh.tasks.cancel(task_id)
    assert (await cli("ledger", "reconcile", env=known)).out.startswith("1 decided")
    assert (await cli("ledger", "ls", env=known)).err == "everything that was submitted is decided\n"


async def test_a_ledger_that_is_not_named_not_there_or_none_is_refused(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no ledger, but long enough to be a database file " * 100)

    unnamed, missing, strange = [
        await alone("ledger", "ls"),
        await alone("ledger", "ls", "--ledger", "nothing.db"),
        await alone("ledger", "ls", "--ledger", "notes.txt"),
    ]

    assert (unnamed.code, "--ledger FILE" in unnamed.err) == (2, True)
    assert (missing.code, "there is no such file" in missing.err) == (1, True)
    assert (strange.code, "no ledger, or damaged" in strange.err) == (1, True)
    assert not (tmp_path / "nothing.db").exists()
