"""Check a review against the tools themselves: an independent program that shares no code with the swarm.

    python tests/review/golden.py report.json ROOT [--exclude NAME]...

Runs `ruff check` once over the whole tree and radon's own API over every file, one after the other, and compares with
what the swarm collected file by file, before anything was merged. Exits with 1 and a list of the differences.

Ruff judges every file by itself: no rule of the selected families depends on other files, so a run per file and one run
over the tree give the same findings (checked for the standard library, 800 files, no rule differs). Two of ruff's
defaults depend on the directory and are therefore switched off here, as the walker has rules of its own: the exclusion
list and `.gitignore`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from radon.complexity import cc_rank, cc_visit  # type: ignore[import-untyped]

RULES = "E4,E7,E9,F,B,C90,SIM,PERF,S102,S103,S104,S105,S106,S107,S108,S11,S2,S3,S5,S6,S7"
OUTSIDE = (
    "__pycache__,__pypackages__,node_modules,site-packages,dist-packages,venv,buck-out,.agentmesh,.bzr,"
    ".direnv,.eggs,.git,.hg,.hypothesis,.ipynb_checkpoints,.mypy_cache,.nox,.pants.d,.pyenv,.pytest_cache,"
    ".pytype,.ruff_cache,.svn,.tox,.venv,.vscode,*.egg-info"
)


def differences(report: dict[str, Any], root: Path, exclude: Collection[str] = ()) -> list[str]:
    """What the review and the tools disagree about; empty if they agree to the last finding."""
    root = root.resolve()
    reviews = {review["path"]: review for review in report["files"]}
    files = expected_files(root, exclude)
    found = [f"not reviewed: {path}" for path in sorted(files - reviews.keys())]
    found += [f"reviewed, but should not be: {path}" for path in sorted(reviews.keys() - files)]
    found += _compare("ruff", one_ruff_run(root, exclude), _ruff_section(reviews.values()))
    for path in sorted(files & reviews.keys()):
        found += _compare(f"radon, {path}", _radon(root / path), _radon_section(reviews[path]))
    return found


def expected_files(root: Path, exclude: Collection[str] = ()) -> set[str]:
    """The files ruff itself would look at."""
    shown = _ruff(root, exclude, "--show-files").splitlines()
    return {str(path.relative_to(root)) for path in map(Path, filter(None, shown)) if _belongs(path, root)}


def one_ruff_run(root: Path, exclude: Collection[str] = ()) -> Counter[tuple[Any, ...]]:
    """Every diagnostic of one sequential run."""
    diagnostics = json.loads(_ruff(root, exclude, "--select", RULES, "--output-format", "json"))
    return Counter(
        (
            str(Path(each["filename"]).relative_to(root)),
            each["location"]["row"],
            each["location"]["column"],
            each["end_location"]["row"],
            each["end_location"]["column"],
            each["code"] or "invalid-syntax",
            each["message"],
        )
        for each in diagnostics
        if _belongs(Path(each["filename"]), root)
    )


def _ruff(root: Path, exclude: Collection[str], *options: str) -> str:
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--no-respect-gitignore", "--quiet"]
    command += ["--config", 'include = ["*.py", "*.pyi"]', "--exclude", ",".join([OUTSIDE, *exclude])]
    done = subprocess.run([*command, *options, str(root)], capture_output=True, text=True, check=False)
    if done.returncode > 1:
        raise SystemExit(f"ruff failed: {done.stderr}")
    return done.stdout


def _belongs(path: Path, root: Path) -> bool:
    """Neither a link nor inside of a virtual environment or of build output."""
    for folder in path.relative_to(root).parents:
        place = root / folder
        if place == root:
            break
        if (place / "pyvenv.cfg").exists() or (place / "conda-meta").is_dir():
            return False
        if place.name in ("build", "dist", "_build") and not (place / "__init__.py").exists():
            return False
    return not path.is_symlink()


def _ruff_section(reviews: Iterable[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(
        (
            finding["path"],
            finding["line"],
            finding["column"],
            finding["end_line"],
            finding["end_column"],
            finding["rule"],
            finding["message"],
        )
        for review in reviews
        for finding in review["findings"]
        if finding["tool"] == "ruff"
    )


def _radon(path: Path) -> Counter[tuple[Any, ...]]:
    try:
        blocks = cc_visit(path.read_bytes())
    except (SyntaxError, ValueError):
        return Counter()
    return Counter(
        (
            block.name,
            getattr(block, "classname", None) or "",
            block.letter,
            block.lineno,
            block.endline,
            block.complexity,
            cc_rank(block.complexity),
        )
        for block in blocks
    )


def _radon_section(review: dict[str, Any]) -> Counter[tuple[Any, ...]]:
    letters = {"function": "F", "method": "M", "class": "C"}
    return Counter(
        (
            block["name"],
            block["class_name"],
            letters[block["kind"]],
            block["line"],
            block["end_line"],
            block["complexity"],
            block["rank"],
        )
        for block in review["functions"]
    )


def _compare(what: str, expected: Counter[tuple[Any, ...]], got: Counter[tuple[Any, ...]]) -> list[str]:
    missing = [f"{what}: missing {each}" for each in (expected - got).elements()]
    return missing + [f"{what}: too much {each}" for each in (got - expected).elements()]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare a review with one sequential ruff and radon run.")
    parser.add_argument("report", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--exclude", action="append", default=[], metavar="NAME")
    options = parser.parse_args()
    report = json.loads(options.report.read_text(encoding="utf-8"))
    found = differences(report, options.root, options.exclude)
    for difference in found[:50]:
        print(difference)
    checked = sum(finding["tool"] == "ruff" for review in report["files"] for finding in review["findings"])
    blocks = sum(len(review["functions"]) for review in report["files"])
    print(f"{len(found)} differences in {len(report['files'])} files, {checked} ruff findings, {blocks} radon blocks")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
