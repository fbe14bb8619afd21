"""Waiting for what has no event."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]], timeout: float = 5.0, *, what: str = "", period: float = 0.02
) -> T: ...


@overload
async def eventually(
    predicate: Callable[[], T], timeout: float = 5.0, *, what: str = "", period: float = 0.02
) -> T: ...


async def eventually(
    predicate: Callable[[], T | Awaitable[T]], timeout: float = 5.0, *, what: str = "", period: float = 0.02
) -> T:
    """Ask `predicate` (plain or async) every `period` seconds until its answer is true; the answer.

    Only for state outside this process, such as pids and files: where an event can be awaited, await it.

    Raises:
        AssertionError: It was not true within `timeout` seconds; names `what` and the last answer.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + timeout
    while True:
        answer = predicate()
        value: T = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if loop.time() >= give_up:
            raise AssertionError(
                f"not within {timeout:g} s: {what or inspect.getsource(predicate).strip()} -> {value!r}"
            )
        await asyncio.sleep(period)
