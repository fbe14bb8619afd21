"""Calls of the JetStream API: JSON in, JSON out, refusals as our errors, elections waited out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from agentmesh.errors import (
    BrokerError,
    ConnectionClosedError,
    ConnectionLostError,
    DeadlineExceededError,
    JetStreamError,
    JetStreamUnavailableError,
    NoRespondersError,
)
from agentmesh.transport.inbox import Mux

T = TypeVar("T")

ATTEMPT_TIMEOUT = 2.0
"""Seconds one attempt waits for its answer before it is repeated."""
CALL_TIMEOUT = 30.0

NOT_FOUND = (10059, 10014, 10037, 10043)  # stream, consumer, message, sequence
# Unavailable, not enough peers (so says a cluster that just starts), short of resources, no account yet, our own first
# attempt not yet agreed on.
_TRANSIENT_CODES = (10008, 10005, 10074, 10023, 10076, 10158)


TRANSIENT = (JetStreamUnavailableError, NoRespondersError, DeadlineExceededError, ConnectionLostError)
"""What a restart, an election or a lost reply looks like: worth trying again."""


def refusal(operation: str, error: Mapping[str, Any]) -> BrokerError:
    """The error for an `error` object of JetStream."""
    code, description = int(error.get("err_code", 0)), str(error.get("description", ""))
    if error.get("code") == 503 or code in _TRANSIENT_CODES:
        return JetStreamUnavailableError(operation, f"{description} ({code})")
    return JetStreamError(operation, code, description)


def is_transient(error: BaseException) -> bool:
    return isinstance(error, TRANSIENT) and not isinstance(error, ConnectionClosedError)


async def patiently(attempt: Callable[[float], Awaitable[T]], timeout: float) -> T:
    """Call `attempt(seconds it may take)` until it returns, for up to `timeout` seconds.

    Only what a restart or an election makes fail is tried again, with growing pauses and jitter; the last such
    error is raised when time is up.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    try:
        return await attempt(min(ATTEMPT_TIMEOUT, timeout))
    except TRANSIENT as error:
        if not is_transient(error) or loop.time() >= end:
            raise
    # Slow to import and to make, and only needed once something failed.
    from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay, wait_random_exponential

    async for trial in AsyncRetrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=0.05, max=1.0),
        stop=stop_before_delay(end - loop.time()),
        reraise=True,
    ):
        with trial:
            return await attempt(max(0.05, min(ATTEMPT_TIMEOUT, end - loop.time())))
    raise AssertionError("unreachable: the last error was raised")


class JetStreamApi:
    """Calls of `$JS.API`."""

    def __init__(self, inbox: Mux) -> None:
        self._inbox = inbox

    async def call(self, operation: str, body: Any = None, *, timeout: float = CALL_TIMEOUT) -> dict[str, Any]:
        """Call `$JS.API.<operation>`, waiting out restarts and elections for up to `timeout` seconds.

        Raises:
            JetStreamError: JetStream refused.
            ConnectionLostError: It did not answer in time.
        """
        payload = b"" if body is None else msgspec.json.encode(body)

        async def attempt(seconds: float) -> dict[str, Any]:
            return await self.once(operation, payload, seconds)

        try:
            return await patiently(attempt, timeout)
        except ConnectionClosedError:
            raise
        except TRANSIENT as error:
            raise ConnectionLostError(f"JetStream did not answer {operation} within {timeout:g} s: {error}") from error

    async def once(self, operation: str, payload: bytes, timeout: float) -> dict[str, Any]:
        reply = await self._inbox.attempt("$JS.API." + operation, payload, timeout=timeout)
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        if "error" in answer:
            raise refusal(operation, answer["error"])
        return answer

    async def find(self, operation: str, body: Any = None) -> dict[str, Any] | None:
        """Like `call`; None when the stream, consumer or message does not exist."""
        try:
            return await self.call(operation, body)
        except JetStreamError as error:
            if error.code in NOT_FOUND:
                return None
            raise
