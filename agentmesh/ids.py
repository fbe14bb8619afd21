"""Ids and the clock.

An id is time-ordered and comes from a counter on a random per-process prefix: 0.3 us instead of the 2.5 us of a
uuid4, unique without coordination, and a safe subject token.
"""

from __future__ import annotations

import itertools
import os
import time
from datetime import UTC, datetime

_prefix = ""
_count = itertools.count()


def _renew() -> None:
    global _prefix, _count
    _prefix = os.urandom(4).hex()
    _count = itertools.count()


_renew()
os.register_at_fork(after_in_child=_renew)


def new_id() -> str:
    """A new id, 23 or more characters: milliseconds since 1970 (11 hex digits), process (8), counter (4 or more)."""
    return f"{time.time_ns() // 1_000_000:011x}{_prefix}{next(_count):04x}"


def now() -> datetime:
    """The time of day, aware, UTC."""
    return datetime.now(UTC)
