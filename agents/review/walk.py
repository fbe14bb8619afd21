"""Find the Python files under a root: always the same ones in the same order.

Symbolic links are not followed, so a loop cannot trap the walk and a file reached by two names is reviewed once,
under its real one. Directories that hold other people's or generated code are left out (see `is_excluded`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from agentmesh.agents.review.fingerprint import with_fingerprints
from agentmesh.agents.review.model import Finding, Severity

SUFFIXES = (".py", ".pyi")

EXCLUDED_NAMES = frozenset(
    {
        "__pycache__",
        "__pypackages__",
        "node_modules",
        "site-packages",
        "dist-packages",
        "venv",
        "buck-out",
        ".agentmesh",
        ".bzr",
        ".direnv",
        ".eggs",
        ".git",
        ".hg",
        ".hypothesis",
        ".ipynb_checkpoints",
        ".mypy_cache",
        ".nox",
        ".pants.d",
        ".pyenv",
        ".pytest_cache",
        ".pytype",
        ".ruff_cache",
        ".svn",
        ".tox",
        ".venv",
        ".vscode",
    }
)
"""Directories never looked into, whatever they hold."""

BUILD_NAMES = frozenset({"build", "dist", "_build"})
"""Left out unless they are packages themselves: some projects do have a package called `build`."""


@dataclass(frozen=True)
class Walk:
    """The files to review, and what could not be looked at."""

    root: Path
    paths: tuple[str, ...]
    """Relative to `root`, posix-style, sorted."""
    problems: tuple[Finding, ...]
    """Directories and files that could not be opened."""


def walk(root: Path, exclude: Collection[str] = ()) -> Walk:
    """List the Python files under `root`.

    Args:
        root: A directory, or one Python file.
        exclude: More directory names to leave out, for instance `test`.

    Raises:
        FileNotFoundError: `root` does not exist.
    """
    root = root.resolve(strict=True)
    if root.is_file():
        return Walk(root.parent, (root.name,), ())
    paths: list[str] = []
    problems: list[Finding] = []
    # An explicit stack: a tree deeper than Python's recursion limit is still a tree.
    pending = [root]
    while pending:
        directory = pending.pop()
        try:
            entries = list(os.scandir(directory))
        except OSError as error:
            problems.append(_unreadable(root, directory, error))
            continue
        pending.extend(Path(entry.path) for entry in entries if _is_wanted_directory(entry, exclude))
        for path, problem in _python_files(entries):
            if problem is None:
                paths.append(_relative(root, path))
            else:
                problems.append(_unreadable(root, path, problem))
    return Walk(root, tuple(sorted(paths)), tuple(with_fingerprints(problems, ())))


def is_excluded(directory: Path, exclude: Collection[str] = ()) -> bool:
    """Whether a directory is left out: by its name, as a virtual environment, or as build output."""
    name = directory.name
    if name in EXCLUDED_NAMES or name in exclude or name.endswith(".egg-info"):
        return True
    if (directory / "pyvenv.cfg").exists() or (directory / "conda-meta").is_dir():
        return True
    return name in BUILD_NAMES and not (directory / "__init__.py").exists()


def _is_wanted_directory(entry: os.DirEntry[str], exclude: Collection[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not is_excluded(Path(entry.path), exclude)


def _python_files(entries: list[os.DirEntry[str]]) -> Iterator[tuple[Path, OSError | None]]:
    for entry in entries:
        if not entry.name.endswith(SUFFIXES) or entry.is_symlink():
            continue
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError as error:
            yield Path(entry.path), error
            continue
        # Opening a FIFO or a device would wait forever.
        if stat.S_ISREG(mode):
            yield Path(entry.path), None


def _relative(root: Path, path: Path) -> str:
    # A name that is not UTF-8 could not travel as JSON; the replacement shows where it is.
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()


def _unreadable(root: Path, path: Path, error: OSError) -> Finding:
    return Finding(
        tool="walk",
        rule="unreadable",
        path=_relative(root, path),
        message=f"could not be read: {error.strerror or error}",
        severity=Severity.ERROR,
    )
