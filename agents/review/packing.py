"""Keep results small enough for one message of the broker.

Usual results are a few kilobytes and travel as they are, readable by `agentmesh task get`. A generated file with
thousands of findings, or the list of a hundred thousand files, would be refused; the long lists of such a result are
packed into one compressed field, at about a tenth of their size.
"""

from __future__ import annotations

import base64
import zlib
from typing import ClassVar, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

LIMIT = 300_000
"""Bytes of JSON above which a result is packed; a stored message may have 512 KiB."""
_MAX_UNPACKED = 256 * 1024 * 1024


class Packable(BaseModel):
    """A result that may become long."""

    heavy: ClassVar[frozenset[str]] = frozenset()
    """Fields that are packed; each has a default."""

    packed: str = ""
    """On the way only: the heavy fields, compressed."""


P = TypeVar("P", bound=Packable)


def pack(result: P, limit: int = LIMIT) -> P:
    """The result itself if it is small, else one whose heavy fields are in `packed`."""
    if len(result.model_dump_json()) <= limit:
        return result
    heavy = result.model_dump_json(include=set(result.heavy))
    light = result.model_dump(exclude=set(result.heavy))
    return type(result).model_validate(light | {"packed": base64.b85encode(zlib.compress(heavy.encode(), 9)).decode()})


def unpack(result: P) -> P:
    """The result with all its fields, however it travelled.

    Raises:
        ValueError: The packed field is damaged, or larger than any result can be.
    """
    if not result.packed:
        return result
    expander = zlib.decompressobj()
    try:
        heavy = expander.decompress(base64.b85decode(result.packed), _MAX_UNPACKED)
    except zlib.error as error:
        raise ValueError(f"a packed {type(result).__name__} is damaged: {error}") from error
    if expander.unconsumed_tail:
        raise ValueError(f"a packed {type(result).__name__} is larger than {_MAX_UNPACKED} bytes")
    light = result.model_dump(exclude={*result.heavy, "packed"})
    return type(result).model_validate(light | from_json(heavy))
