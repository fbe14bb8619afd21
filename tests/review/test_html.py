from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agentmesh.agents.review.assemble import assemble
from agentmesh.agents.review.history import compare, snapshot
from agentmesh.agents.review.html import render_html
from agentmesh.agents.review.model import FileReview, Report
from agentmesh.agents.review.output import write_report
from tests.review.builders import NOW, block, diagnostic, finding, report, sample_review

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'`&<!--\u2028"""
LOADING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "manifest", "ping"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

BROWSER_OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]


class _Page(HTMLParser):
    """Collects every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.raw.append(data)

    def names(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    def data(self) -> dict[str, list[list[object]]]:
        index = next(i for i, (_, attrs) in enumerate(self.elements) if attrs.get("id") == "data")
        assert self.elements[index][0] == "script"
        found: dict[str, list[list[object]]] = json.loads(
            next(text for text in self.raw if text.startswith('{"paths"'))
        )
        return found


def _hostile_review() -> FileReview:
    source = f"x = 1  # {HOSTILE}\n"
    return assemble(
        f"pkg/{HOSTILE.replace('/', '')}.py",
        source,
        ruff=[
            diagnostic("S307", 1, message=HOSTILE, url="javascript:alert(3)"),
            diagnostic("F821", 1, message=f"Undefined name `{HOSTILE}`", url='https://x/"onmouseover="alert(4)'),
        ],
        radon=[block(HOSTILE, 1, 1, 30)],
        metrics={"lines": 1, "missing_docstrings": [HOSTILE]},
    )


def _large_report(count: int) -> Report:
    reviews = [
        assemble(
            f"pkg{n % 17}/m{n}.py", "x\n", ruff=[diagnostic("F841", line, message="unused") for line in range(1, 101)]
        )
        for n in range(count // 100)
    ]
    return report(*reviews)


def test_the_page_loads_nothing_from_anywhere() -> None:
    page = render_html(report(sample_review()))

    for tag, attributes in _Page(page).elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not LOADING & attributes.keys(), (tag, attributes)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page)


def test_the_policy_forbids_everything_but_the_script_of_the_page() -> None:
    elements = _Page(render_html(report(sample_review()))).elements
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")

    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}';", policy)


def test_hostile_paths_messages_and_source_stay_text() -> None:
    clean, hostile = report(sample_review()), report(_hostile_review(), project=HOSTILE)

    page = _Page(render_html(hostile))

    assert page.names() <= _Page(render_html(clean)).names()
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not (attributes.get("href") or "").startswith("javascript:")
    assert HOSTILE in [row[5] for row in page.data()["findings"]]


def test_the_page_says_what_is_new_and_what_is_fixed() -> None:
    review = sample_review()
    everything = report(review)
    earlier = snapshot([everything.findings[0], finding("F811", "gone.py", 9, fingerprint="gone")], NOW)

    page = render_html(report(review, history=compare(earlier, everything.findings)))

    assert ">2 new<" in page
    assert ">1 fixed<" in page
    assert ">1 unchanged<" in page
    assert "gone.py:9" in page
    assert "only-new" in page


def test_a_project_without_findings_is_congratulated() -> None:
    page = render_html(report(assemble("a.py", "x = 1\n", metrics={"lines": 1})))

    assert "Nothing to fix. Well done." in page
    assert render_html(report())  # not even a file


def test_every_control_and_table_has_a_name() -> None:
    page = render_html(report(sample_review()))
    elements = _Page(page).elements

    labelled = [a for tag, a in elements if tag in ("input", "select") and a.get("name") != "severity"]
    assert all(attributes.get("aria-label") for attributes in labelled)
    assert page.count("<caption") == page.count("<table")
    assert '<html lang="en">' in page


def test_writing_replaces_all_three_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    written = write_report(report(sample_review()), tmp_path / "out")
    assert written == write_report(report(sample_review()), tmp_path / "out")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "review.html", "review.sarif"]
    again = Report.model_validate_json(written["json"].read_text(encoding="utf-8"))
    assert again == report(sample_review())


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("hostile", [False, True], ids=["20,000 findings", "hostile input"])
def test_a_browser_runs_the_page_and_nothing_else(tmp_path: Path, hostile: bool) -> None:
    large = _large_report(0 if hostile else 20_000)
    written = write_report(report(_hostile_review()) if hostile else large, tmp_path)

    dom = subprocess.run(
        [str(CHROMIUM), *BROWSER_OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", written["html"].as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout

    count = 4 if hostile else 20_000
    assert re.search(rf'id="shown"[^>]*>{count:,} of {count:,} findings<', dom)
    assert len(re.findall(r'<td class="message">', dom)) == min(count, 100)
    assert "<img" not in dom
