"""Keep the review of one file small enough for one message of the broker.

Usual files give a few kilobytes and travel as they are, readable by `agentmesh task get`. A generated file with
thousands of findings would be refused; its lists are packed into a compressed field, at about a tenth of the size.
"""

from __future__ import annotations

import base64
import zlib

from pydantic import BaseModel

from agentmesh.agents.review.model import FileReview, Finding, FunctionBlock

LIMIT = 400_000
"""Bytes of JSON above which a review is packed; the broker's default limit for a message is 1 MiB."""
_MAX_UNPACKED = 256 * 1024 * 1024


class _Lists(BaseModel):
    findings: tuple[Finding, ...]
    functions: tuple[FunctionBlock, ...]


def pack(review: FileReview, limit: int = LIMIT) -> FileReview:
    """The review itself if it is small, else one with its lists in `packed`."""
    if len(review.model_dump_json()) <= limit:
        return review
    lists = _Lists(findings=review.findings, functions=review.functions).model_dump_json()
    packed = base64.b85encode(zlib.compress(lists.encode(), 9)).decode()
    return review.model_copy(update={"findings": (), "functions": (), "packed": packed})


def unpack(review: FileReview) -> FileReview:
    """The review with its lists, however it travelled.

    Raises:
        ValueError: The packed field is damaged, or larger than any review can be.
    """
    if not review.packed:
        return review
    expander = zlib.decompressobj()
    try:
        text = expander.decompress(base64.b85decode(review.packed), _MAX_UNPACKED)
    except zlib.error as error:
        raise ValueError(f"review of {review.path!r} is damaged: {error}") from error
    if expander.unconsumed_tail:
        raise ValueError(f"review of {review.path!r} is larger than {_MAX_UNPACKED} bytes")
    lists = _Lists.model_validate_json(text)
    return review.model_copy(update={"findings": lists.findings, "functions": lists.functions, "packed": ""})
