from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentmesh.agents.review.walk import walk


def _write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")


def test_the_same_tree_is_always_listed_in_the_same_order(tmp_path: Path) -> None:
    _write(tmp_path, "b.py", "a/z.py", "a/b.pyi", "a.py", "a/readme.txt", "A.py")

    assert walk(tmp_path).paths == ("A.py", "a.py", "a/b.pyi", "a/z.py", "b.py")
    assert walk(tmp_path) == walk(tmp_path)


def test_other_peoples_and_generated_code_is_left_out(tmp_path: Path) -> None:
    _write(tmp_path, "kept.py", ".git/a.py", "x/__pycache__/a.py", "node_modules/m/a.py", "build/lib/a.py", "dist/a.py")
    _write(tmp_path, "my-env/lib/a.py", "my-env/pyvenv.cfg", "p.egg-info/a.py")

    assert walk(tmp_path).paths == ("kept.py",)


def test_a_package_that_is_called_build_is_reviewed(tmp_path: Path) -> None:
    _write(tmp_path, "src/build/__init__.py", "src/build/env.py")

    assert walk(tmp_path).paths == ("src/build/__init__.py", "src/build/env.py")


def test_directories_can_be_left_out_by_name(tmp_path: Path) -> None:
    _write(tmp_path, "a.py", "test/b.py", "deep/test/c.py", "testing/d.py")

    assert walk(tmp_path, exclude=["test"]).paths == ("a.py", "testing/d.py")


def test_links_that_form_a_loop_end_the_walk_and_repeat_no_file(tmp_path: Path) -> None:
    _write(tmp_path, "pkg/a.py")
    (tmp_path / "pkg" / "again").symlink_to(tmp_path)
    (tmp_path / "link.py").symlink_to(tmp_path / "pkg" / "a.py")
    (tmp_path / "nowhere.py").symlink_to(tmp_path / "missing")

    assert walk(tmp_path).paths == ("pkg/a.py",)


def test_a_fifo_called_like_a_module_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()

    assert walk(tmp_path).paths == ()


def test_a_directory_that_cannot_be_opened_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may open everything, so the refusal itself is staged; what follows from it is real.
    _write(tmp_path, "a.py", "locked/b.py")
    scandir = os.scandir

    def refuse(path: Path) -> os.ScandirIterator[str]:  # type: ignore[name-defined]
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = walk(tmp_path)

    assert found.paths == ("a.py",)
    assert [(problem.rule, problem.path, problem.message) for problem in found.problems] == [
        ("unreadable", "locked", "could not be read: Permission denied")
    ]


def test_a_name_that_is_not_unicode_is_listed_in_a_form_that_can_travel(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/bad\xff.py", "w"):
        pass

    assert walk(tmp_path).paths == ("bad\\udcff.py",)


def test_one_file_can_be_reviewed_alone(tmp_path: Path) -> None:
    _write(tmp_path, "a.py", "b.py")

    found = walk(tmp_path / "a.py")

    assert (found.root, found.paths) == (tmp_path, ("a.py",))


def test_a_root_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        walk(tmp_path / "missing")
