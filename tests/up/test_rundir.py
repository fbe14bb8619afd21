"""Run directories: who has which."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agentmesh.up.rundir import RunLock, first_free, holder


def test_nodes_that_start_at_the_same_time_get_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        locks: list[RunLock] = list(pool.map(lambda _: first_free(tmp_path), range(8)))

    assert len({lock.folder for lock in locks}) == 8
    assert all(holder(lock.folder) is not None for lock in locks)
    for lock in locks:
        lock.release()


def test_a_folder_that_was_let_go_is_given_again(tmp_path: Path) -> None:
    first, second = first_free(tmp_path), first_free(tmp_path)
    assert (first.folder.name, second.folder.name) == ("1", "2")
    first.release()
    again = first_free(tmp_path)
    assert again.folder.name == "1"
    again.release()
    second.release()
