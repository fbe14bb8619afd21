"""The golden check itself, on a part of the standard library: real tools, real code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.review import golden

LIBRARY = Path(json.__file__).parent


def test_one_run_of_ruff_per_file_equals_one_run_over_the_tree() -> None:
    root = LIBRARY.parent / "asyncio"
    expected = golden.one_ruff_run(root)

    per_file: Counter[tuple[object, ...]] = Counter()
    for path in golden.expected_files(root):
        run = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", golden.RULES]
        done = subprocess.run(
            [*run, "--output-format", "json", str(root / path)], capture_output=True, text=True, check=False
        )
        per_file.update((path, each["location"]["row"], each["code"]) for each in json.loads(done.stdout))

    assert expected.total() > 100
    assert per_file == Counter((entry[0], entry[1], entry[5]) for entry in expected.elements())


@pytest.mark.parametrize("what", ["a finding", "a block", "a file"])
def test_the_golden_check_notices_what_is_missing(what: str) -> None:
    empty = {"files": [{"path": path, "findings": [], "functions": []} for path in golden.expected_files(LIBRARY)]}
    found = golden.differences(empty, LIBRARY)

    if what == "a file":
        del empty["files"][0]
        assert [each for each in golden.differences(empty, LIBRARY) if each.startswith("not reviewed")]
    else:
        tool = {"a finding": "ruff: missing", "a block": "radon, "}[what]
        assert [each for each in found if each.startswith(tool)]
