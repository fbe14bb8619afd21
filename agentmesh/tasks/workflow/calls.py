"""Calling the function of a step: async ones in place, others in a thread."""

from __future__ import annotations

import asyncio
import functools
import inspect
import typing
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

inside: ContextVar[str] = ContextVar("agentmesh_step", default="")
"""Name of the step whose function runs."""


def described(call: Callable[..., Any]) -> str:
    """What a function is called where it is defined, without the module: moving it is no change."""
    while isinstance(call, functools.partial):
        call = call.func
    return str(getattr(call, "__qualname__", type(call).__qualname__))


def result_type(call: Callable[..., Any]) -> Any:
    """What the function says that it returns; `Any`, that is plain data, if it says nothing that can be evaluated."""
    while isinstance(call, functools.partial):
        call = call.func
    function = call if inspect.isroutine(call) else type(call).__call__
    try:
        return typing.get_type_hints(function).get("return", Any)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


async def called(name: str, call: Callable[..., Any], args: tuple[Any, ...], timeout: float | None) -> Any:
    """Call it. A thread cannot be cancelled: at the timeout it is left behind.

    Raises:
        TimeoutError: It took longer than `timeout` seconds.
        Exception: What it raises.
    """
    token = inside.set(name)
    try:
        async with asyncio.timeout(timeout):
            if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__):
                return await call(*args)
            value = await asyncio.to_thread(call, *args)
            return await value if inspect.isawaitable(value) else value
    finally:
        inside.reset(token)
