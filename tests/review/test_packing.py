from __future__ import annotations

import pytest

from agentmesh.agents.review.assemble import assemble
from agentmesh.agents.review.model import FileReview
from agentmesh.agents.review.packing import pack, unpack
from tests.review.builders import block, diagnostic, sample_review


def test_a_usual_review_travels_as_it_is() -> None:
    assert pack(sample_review()) == sample_review()
    assert unpack(sample_review()) == sample_review()


def test_a_review_with_5_000_findings_fits_into_one_message_and_comes_back_whole() -> None:
    large = assemble(
        "generated.py",
        "x = 1\n" * 5_000,
        ruff=[diagnostic("F841", row, message=f"Local variable `v{row}` is never used") for row in range(1, 5_001)],
        radon=[block(f"f{n}", n, n + 3, 5) for n in range(1, 2000)],
    )

    packed = pack(large).model_dump_json()

    assert len(packed) < 512 * 1024
    assert unpack(FileReview.model_validate_json(packed)) == large


def test_a_damaged_review_is_refused() -> None:
    with pytest.raises(ValueError, match="a packed FileReview is damaged"):
        unpack(FileReview(path="a.py", packed="00000"))
