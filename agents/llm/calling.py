"""One call of one model: its breaker, its tries, and how long each step may take."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from functools import partial

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from agentmesh.agents.llm.backends import ModelBackend, ModelCall
from agentmesh.agents.llm.messages import LLMPart, TokenUsage
from agentmesh.breaker import Breaker
from agentmesh.config import ModelSettings, RouteSettings
from agentmesh.errors import CircuitOpenError, ModelError

log = logging.getLogger("agentmesh.llm")

AGAIN = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "UNKNOWN"})
"""What may pass: the same model is tried again."""

ELSEWHERE = AGAIN | {"NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "OUT_OF_RANGE", "UNIMPLEMENTED"}
"""What another model may do better: fallbacks are tried."""

BROKEN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"})
"""What says that something is wrong with the model's server, and counts for its breaker."""

LONGEST_PAUSE, SHORT_PAUSE = 30.0, 2.0
"""Seconds between two tries of a model, at most; and if there is another model that could be asked instead."""


@dataclass
class Model:
    """A configured model and how it is doing, as this replica sees it."""

    name: str
    settings: ModelSettings
    backend: ModelBackend
    breaker: Breaker
    calls: int = 0
    failed: int = 0
    under_way: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    problem: str = ""

    def count(self, usage: TokenUsage, dollars: float, *, failed: bool) -> None:
        """What a call came to."""
        self.calls += 1
        self.failed += failed
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.dollars += dollars

    @property
    def theirs(self) -> str:
        """What its backend calls it."""
        return self.settings.model or self.name


@dataclass
class Tries:
    """How often a model was tried for one answer."""

    count: int = 0


async def ask(
    model: Model, call: ModelCall, route: RouteSettings, deadline: float, tries: Tries, patience: float
) -> AsyncGenerator[LLMPart, None]:
    """The parts of the model's answer. It is tried again only as long as nothing has come.

    Args:
        model: Which.
        call: What it is asked.
        route: Retries and time-outs.
        deadline: Event loop time at which the answer must be there.
        tries: Where tries are counted.
        patience: Seconds it may want to be left alone before the next try; if it wants longer there is none.

    Raises:
        ModelError: There is no answer, or no more of it.
    """
    first, rest = await _begin(model, call, route, deadline, tries, patience)
    part: LLMPart | None = first
    say = model.breaker.dropped
    try:
        while part is not None and not part.is_final:
            yield part
            part = await _next(model, rest, "went on", min(route.idle, _left(deadline)))
        say = model.breaker.succeeded
        if part is not None:
            yield part
    except ModelError as error:
        say = partial(_say_failed, model, error)
        raise
    finally:
        say()
        await _close(rest)


async def _begin(
    model: Model, call: ModelCall, route: RouteSettings, deadline: float, tries: Tries, patience: float
) -> tuple[LLMPart, AsyncIterator[LLMPart]]:
    """The first part, and where the others come from."""

    def enough(state: RetryCallState) -> bool:
        return state.attempt_number > route.retries or state.upcoming_sleep >= min(patience, _left(deadline))

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after if isinstance(error, ModelError) else 0.0
        usual = route.backoff * 2.0 ** (state.attempt_number - 1)
        return max(asked, min(patience * 0.75, usual) * random.uniform(0.75, 1.25))

    retrying = AsyncRetrying(retry=retry_if_exception(_may_pass), stop=enough, wait=pause, reraise=True)
    async for attempt in retrying:
        with attempt:
            return await _first(model, call, min(route.first_token, _left(deadline)), tries)
    raise AssertionError("tenacity ends with a result or an error")


async def _first(model: Model, call: ModelCall, seconds: float, tries: Tries) -> tuple[LLMPart, AsyncIterator[LLMPart]]:
    try:
        model.breaker.admit()
    except CircuitOpenError as error:
        message = "it failed again and again lately and is left alone for a while"
        raise ModelError("UNAVAILABLE", message, model.name, error.retry_after, {"breaker": "open"}) from None
    tries.count += 1
    parts = model.backend.generate(call)
    try:
        part = await _next(model, parts, "began", seconds)
        if part is None:
            raise ModelError("INTERNAL", "the answer was empty", model.name)
    except ModelError as error:
        _say_failed(model, error)
        await _close(parts)
        raise
    except BaseException:
        model.breaker.dropped()
        await _close(parts)
        raise
    return part, parts


def _say_failed(model: Model, error: ModelError) -> None:
    if error.code in BROKEN:
        model.breaker.failed()
    else:
        model.breaker.dropped()


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, ModelError) and error.code in AGAIN and "breaker" not in error.details


async def _next(model: Model, parts: AsyncIterator[LLMPart], what: str, seconds: float) -> LLMPart | None:
    """The next part in time; None if there is none. Whatever a backend raises becomes a `ModelError`."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await anext(parts, None)
    except TimeoutError:
        raise ModelError("DEADLINE_EXCEEDED", f"no answer {what} within {seconds:.3g} s", model.name) from None
    except ModelError as error:
        if error.backend:
            raise
        raise ModelError(error.code, error.message, model.name, error.retry_after, error.details) from error
    except Exception as error:  # the edge to foreign code: a backend of somebody else
        log.exception("the backend of model %r failed", model.name)
        raise ModelError("INTERNAL", f"its backend failed: {type(error).__name__}", model.name) from error


async def _close(parts: AsyncIterator[LLMPart]) -> None:
    close = getattr(parts, "aclose", None)
    if close is not None:
        await close()


def _left(deadline: float) -> float:
    return deadline - asyncio.get_running_loop().time()
