from __future__ import annotations

from agentmesh.agents.review.history import SnapshotPage, compare, snapshot
from agentmesh.agents.review.model import Finding
from tests.review.builders import NOW, finding


def _findings(*fingerprints: str) -> list[Finding]:
    return [finding("F841", line=number, fingerprint=text) for number, text in enumerate(fingerprints, start=1)]


def test_new_fixed_and_unchanged_findings_are_told_apart() -> None:
    earlier = snapshot(_findings("a", "b", "c"), NOW)

    history = compare(earlier, _findings("c", "d", "a"))

    assert history is not None
    assert (history.earlier_at, history.new, history.unchanged) == (NOW, ("d",), 2)
    assert [(gone.fingerprint, gone.line) for gone in history.fixed] == [("b", 2)]


def test_the_first_review_has_no_history() -> None:
    assert compare([], _findings("a")) is None


def test_a_run_without_findings_is_remembered_too() -> None:
    history = compare(snapshot([], NOW), _findings("a"))

    assert history is not None
    assert history.new == ("a",)


def test_a_snapshot_is_cut_into_pages_and_put_together_in_any_order() -> None:
    pages = snapshot(_findings(*"abcdefg"), NOW, page_size=3)

    assert [len(page.findings) for page in pages] == [3, 3, 1]
    history = compare(list(reversed(pages)), _findings(*"abcdefg"))
    assert history is not None
    assert (history.new, history.fixed, history.unchanged) == ((), (), 7)


def test_half_a_snapshot_is_not_taken_for_a_whole_one() -> None:
    pages = snapshot(_findings(*"abcdefg"), NOW, page_size=3)

    assert compare(pages[:2], _findings("a")) is None


def test_a_page_of_usual_paths_fits_into_a_record_of_the_memory_service() -> None:
    path = "package/subpackage/" + "long_module_name_" * 4 + ".py"
    many = [finding("PERF401", path, line, fingerprint=f"{line:016x}") for line in range(1, 1001)]

    (page,) = snapshot(many, NOW)

    assert len(page.model_dump_json()) < 256 * 1024
    assert SnapshotPage.model_validate_json(page.model_dump_json()) == page
