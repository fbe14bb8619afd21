"""Compressed bodies: said in the header `Content-Encoding`, and bounded when they are unpacked."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from agentmesh.errors import InvalidMessageError, PayloadTooLargeError

ENCODING = "Content-Encoding"
DEFLATE = "deflate"
"""The format of zlib (RFC 1950), as in HTTP."""

MAX_UNPACKED = 8 * 1024 * 1024
"""Bytes a body may have after it is unpacked, unless told otherwise."""


def packed(data: bytes, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """The body, compressed if that makes it smaller, with the header that says so."""
    if ENCODING in headers:
        return data, dict(headers)  # the caller did it
    smaller = zlib.compress(data, 6)
    if len(smaller) >= len(data):
        return data, dict(headers)
    return smaller, {**headers, ENCODING: DEFLATE}


def unpacked(data: bytes, headers: Mapping[str, str], limit: int) -> bytes:
    """The body as it was before it was compressed.

    Raises:
        PayloadTooLargeError: It would be larger than `limit` bytes; not more than that is unpacked.
        InvalidMessageError: It is not what the header says.
    """
    encoding = headers.get(ENCODING, "")
    if encoding in ("", "identity"):
        return data
    if encoding != DEFLATE:
        raise InvalidMessageError(f"{ENCODING} {encoding!r:.40} is not understood: use {DEFLATE}")
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidMessageError(f"the body is not {DEFLATE}, as its {ENCODING} says: {error}") from error
    if len(body) > limit:
        raise PayloadTooLargeError(len(body), limit)
    if not unpacker.eof:
        raise InvalidMessageError("the compressed body is cut off")
    return body
