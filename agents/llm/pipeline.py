"""The life of a request to a language model: `Pipeline.run`, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

from agentmesh.agents.llm.backends import ModelCall, make_backend
from agentmesh.agents.llm.backends.offline.tokens import count_messages, count_tokens
from agentmesh.agents.llm.bounds import ANSWER, Bound, Meter, Need, Refusal, Taken
from agentmesh.agents.llm.cache import AnswerCache, Entry, digest_of
from agentmesh.agents.llm.calling import ELSEWHERE, LONGEST_PAUSE, SHORT_PAUSE, Model, Tries, ask
from agentmesh.agents.llm.figures import figures
from agentmesh.agents.llm.flights import Flights
from agentmesh.agents.llm.messages import (
    CachePolicy,
    LLMPart,
    LLMRequest,
    LLMResponse,
    ModelStatus,
    TokenUsage,
    error_part,
)
from agentmesh.agents.llm.prices import cost_of
from agentmesh.agents.llm.record import PATIENCE, Recorder
from agentmesh.agents.llm.routing import Route, Table
from agentmesh.agents.llm.turns import Turns
from agentmesh.breaker import Breaker
from agentmesh.chat import ChatMessage
from agentmesh.config import LLMSettings
from agentmesh.errors import AgentMeshError, ModelError
from agentmesh.ids import new_id
from agentmesh.llmops import Invalidation, Operation, Tokens
from agentmesh.metrics import Family, metrics_of
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport

LONGEST_KEPT = 7 * 86_400.0
"""Seconds; longer than that invalidations are not kept either."""


@dataclass
class Asked:
    """A request on its way."""

    request: LLMRequest
    tenant: str
    route: Route
    began: float = field(default_factory=perf_counter)
    policy: CachePolicy | None = None
    digest: str = ""
    version: int = -1
    """Of the cache, when the model was asked."""
    answering: bool = False
    """Some of the answer has been given: no other model can begin it again."""

    @property
    def user(self) -> str:
        return self.request.meta.user_id or self.request.meta.client_id

    @property
    def key(self) -> str:
        """Of the stored answer."""
        policy = self.policy or CachePolicy()
        return f"{policy.key or self.route.name}/{self.digest[:16]}"

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.policy.tags) if self.policy else ()

    def milliseconds(self) -> float:
        return round((perf_counter() - self.began) * 1000, 3)


@dataclass
class Answer:
    """What has come from a model so far."""

    operation_id: str = field(default_factory=new_id)
    text: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    tries: Tries = field(default_factory=Tries)

    def take(self, part: LLMPart) -> None:
        if part.type == "text":
            self.text.append(part.content)
        elif part.type == "tool_call" and isinstance(part.data, dict):
            self.calls.append(part.data)

    def usage(self, prompt_tokens: int) -> TokenUsage:
        """As the backend says, else as we count."""
        said = self.end.get("usage") or {}
        if said.get("prompt_tokens") is None:
            return TokenUsage.of(prompt_tokens, count_tokens("".join(self.text)))
        return TokenUsage.of(int(said["prompt_tokens"]), int(said.get("completion_tokens") or 0))


class Pipeline:
    """See the module."""

    def __init__(self, transport: Transport, subjects: Subjects, table: Table, settings: LLMSettings) -> None:
        self._subjects = subjects
        self._table = table
        self._settings = settings
        self._models: dict[str, Model] = {}
        self._recorder = Recorder(transport)
        self._meter = Meter(transport, settings, table.longest)
        self._turns = Turns(settings.queue, settings.user_queue, self._unreserve)
        self._flights = Flights()
        self._metrics = metrics_of(transport)
        self._forget_figures: Callable[[], None] = lambda: None
        self.cache = AnswerCache(transport, settings.cache.max_size, on_void=self._voided)

    async def start(self) -> None:
        """Make the backends."""
        for name, settings in self._table.models.items():
            backend = self._table.backends.get(name) or make_backend(name, settings)
            guard = self._settings.breaker
            breaker = Breaker(name, failures=guard.failures, window=guard.window, cooldown=guard.cooldown)
            self._models[name] = Model(name, settings, backend, breaker)
        self._forget_figures = self._metrics.add_source(self._figures)

    async def stop(self) -> None:
        """Cancel what is under way, keep what is to be kept, and close the backends."""
        self._forget_figures()
        await self._flights.close()
        await self._turns.close()
        await self._recorder.close()
        await self.cache.close()
        for model in self._models.values():
            await model.backend.close()

    # ------------------------------------------------------------ the life of a request

    async def run(self, request: LLMRequest, tenant: str) -> AsyncGenerator[LLMPart, None]:
        """The parts of the answer; the last is a `finish` with the fields of `LLMResponse`, also of an error."""
        try:
            asked = Asked(request, tenant, self._table.resolve(request.model))
        except ModelError as error:
            yield error_part(request, error)
            return
        parts = self._answer(asked)
        if self._may_share(asked):
            asked.digest = digest_of(request, tenant, asked.route.name)
            entry = await self._stored(asked)
            parts = self._shared(asked) if entry is None else self._again(asked, entry)
        async with aclosing(parts):
            async for part in parts:
                yield part

    def _may_share(self, asked: Asked) -> bool:
        """Whether the answer may be one that is stored, or one that is being made."""
        request = asked.request
        if self.cache.enabled:
            asked.policy = request.cache or (CachePolicy() if asked.route.settings.cache else None)
        return asked.policy is not None or (self._settings.coalesce and not request.params.temperature)

    async def _stored(self, asked: Asked) -> Entry | None:
        policy = asked.policy
        return await self.cache.get(asked.tenant, asked.digest) if policy is not None and policy.read else None

    async def _again(self, asked: Asked, entry: Entry) -> AsyncGenerator[LLMPart, None]:
        """A stored answer."""
        response = LLMResponse.model_validate(entry.response)
        for call in response.messages[0].tool_calls or () if response.messages else ():
            yield LLMPart(type="tool_call", data=call)
        if response.text:
            yield LLMPart(content=response.text)
        yield self._borrowed(asked, response)

    async def _shared(self, asked: Asked) -> AsyncGenerator[LLMPart, None]:
        """The answer to all equal requests of the moment: the first one has the model asked."""
        place = asked.digest
        if self._meter.of_caller(asked.tenant, asked.user):  # whoever is refused is refused alone
            place += f"/{asked.user}/{asked.request.wait}/{asked.request.priority}"
        flight = self._flights.find(place) if self._settings.coalesce else None
        mine = flight is None
        if flight is None:
            place = place if self._settings.coalesce else new_id()
            flight = self._flights.begin(place, asked.key, asked.tags, partial(self._answer, asked))
        async with aclosing(self._flights.ride(flight)) as parts:
            async for part in parts:
                if part.is_final and not mine:
                    response = part.response()
                    part = self._borrowed(asked, response) if response.error is None else _for(asked, response)
                yield part

    async def _answer(self, asked: Asked) -> AsyncGenerator[LLMPart, None]:
        """Have the models of the route tried, one after the other, until one answers."""
        error: ModelError | None = None
        if asked.policy is not None and asked.policy.write:
            asked.version = await self.cache.version(asked.tenant)
        for name in asked.route.models:
            last = name == asked.route.models[-1]
            try:
                async with aclosing(self._from(asked, self._models[name], last)) as parts:
                    async for part in parts:
                        yield part
                return
            except ModelError as problem:
                error = problem
                of_caller = error.details.get("scope") in ("tenant", "user")  # another model does not help
                if asked.answering or error.code not in ELSEWHERE or of_caller:
                    break
        assert error is not None, "a route has a model"
        yield error_part(asked.request, error)

    async def _from(self, asked: Asked, model: Model, last: bool) -> AsyncGenerator[LLMPart, None]:
        """The answer of one model, within the limits, and on record. `last`: there is no other one to try."""
        call = _call_of(asked.request, model, asked.user)
        prompt_tokens = count_messages(call.messages)
        taken = await self._reserve(asked, model, prompt_tokens)
        route, answer = asked.route.settings, Answer()
        total = min(route.total, model.settings.timeout or route.total)
        deadline = asyncio.get_running_loop().time() + total
        status, problem = "cancelled", None
        model.under_way += 1
        try:
            async with aclosing(
                ask(model, call, route, deadline, answer.tries, LONGEST_PAUSE if last else SHORT_PAUSE)
            ) as parts:
                async for part in parts:
                    if part.is_final:
                        answer.end = part.data or {}
                        break
                    asked.answering = True
                    answer.take(part)
                    yield part
            status, model.problem = "ok", ""
        except ModelError as error:
            status, problem, model.problem = "error", error, str(error)
            raise
        finally:
            model.under_way -= 1
            usage = answer.usage(prompt_tokens) if status == "ok" or answer.text else TokenUsage()
            cost = float(answer.end.get("cost") or cost_of(usage, model.settings.price))
            recording = None
            if answer.tries.count:  # its breaker let it through
                model.count(usage, cost, failed=status == "error")
                operation = _operation(asked, model, answer, usage, cost, status, problem)
                recording = self._recorder.operation(operation)
            if taken.amounts:
                self._recorder.later(self._pay(taken, usage, cost, model))
        if recording is not None:
            await asyncio.wait({recording}, timeout=PATIENCE)
        response = _response(asked, model, answer, usage, cost)
        yield LLMPart(type="finish", data=self._keep(asked, response).model_dump(mode="json"))

    # ------------------------------------------------------------ limits and money

    async def _reserve(self, asked: Asked, model: Model, prompt_tokens: int) -> Taken:
        """What the call may come to, under the limits of its caller and of the model.

        Raises:
            ModelError: `RESOURCE_EXHAUSTED`; or `UNAVAILABLE`, because it cannot be known.
        """
        bounds = self._meter.of_caller(asked.tenant, asked.user) + self._meter.of_model(model.name, model.settings)
        if not bounds:
            return Taken("", asked.tenant)
        params = asked.request.params
        longest = ANSWER if params.max_tokens is None else params.max_tokens
        worst = TokenUsage.of(prompt_tokens, longest)
        need = Need(worst.total_tokens, cost_of(worst, model.settings.price))
        try:
            outcome = await self._turns.take(
                [bound.path for bound in bounds],
                partial(self._meter.take, asked.tenant, bounds, need),
                caller=(asked.tenant, asked.user),
                priority=asked.request.priority,
                wait=self._settings.wait if asked.request.wait else 0.0,
                on_refused=partial(self._recorder.refused, asked.tenant, asked.request.request_id),
            )
        except ModelError:
            raise
        except AgentMeshError as error:
            raise ModelError("UNAVAILABLE", f"limits cannot be read: {error}", model.name) from error
        if isinstance(outcome, Refusal):
            raise _exhausted(outcome)
        return outcome

    async def _pay(self, taken: Taken, usage: TokenUsage, cost: float, model: Model) -> None:
        bounds = list(taken.amounts)
        spent = await self._settle(taken, usage.total_tokens, cost)
        for bound in bounds:
            if bound in spent:
                await self._recorder.spent(taken.tenant, {bound: spent[bound]}, self._thresholds(bound, model))

    async def _unreserve(self, taken: Taken) -> None:
        await self._settle(taken, None, 0.0)

    async def _settle(self, taken: Taken, tokens: int | None, dollars: float) -> dict[Bound, float]:
        paths = [bound.path for bound in taken.amounts]
        spent = await self._meter.settle(taken, tokens, dollars)
        self._turns.prompt(paths)
        return spent

    def _thresholds(self, bound: Bound, model: Model) -> list[float]:
        if bound.scope == "model":
            return model.settings.budget.alerts
        if bound.scope == "user":
            return self._settings.user_budget.alerts
        return self._settings.tenants.get(bound.owner, self._settings.budget).alerts

    # ------------------------------------------------------------ stored answers

    def _keep(self, asked: Asked, response: LLMResponse) -> LLMResponse:
        """Store the answer, if it is to be."""
        policy = asked.policy
        if policy is None or not policy.write or asked.version < 0:
            return response
        ttl = min(policy.ttl or self._settings.cache.ttl, LONGEST_KEPT)
        keyed = response.model_copy(update={"cache_key": asked.key})
        fields = keyed.model_dump(mode="json")
        stored = self.cache.put(asked.tenant, asked.digest, asked.key, asked.tags, fields, ttl, asked.version)
        return keyed if stored else response

    def _borrowed(self, asked: Asked, response: LLMResponse) -> LLMPart:
        """The end of an answer for which no model was called."""
        mine = response.model_copy(
            update={
                "request_id": asked.request.request_id,
                "generation_id": new_id(),
                "cached": True,
                "cost": 0.0,
                "latency_ms": asked.milliseconds(),
            }
        )
        usage = mine.usage
        self._recorder.operation(
            Operation(
                operation_id=mine.generation_id,
                model=mine.backend,
                tokens=Tokens(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
                latency_ms=mine.latency_ms,
                tenant_id=asked.tenant,
                backend=self._models[mine.backend].backend.name,
                cached=True,
                request_id=mine.request_id,
                user_id=asked.user,
                route=asked.route.name,
                attempts=0,
            )
        )
        return LLMPart(type="finish", data=mine.model_dump(mode="json"))

    def _voided(self, tenant: str, order: Invalidation) -> None:
        """Nobody comes on board of an answer that is void before it is there."""
        self._flights.forget(*(one for one in self._flights.under_way() if order.fits(one.key, one.tags)))

    # ------------------------------------------------------------ for people

    def _figures(self) -> list[Family]:
        return figures(list(self._models.values()), self.cache)

    def models(self) -> list[ModelStatus]:
        """How the models are, as this replica sees them."""
        return [
            ModelStatus(
                name=model.name,
                backend=model.settings.backend,
                model=model.theirs,
                state=model.breaker.state,
                retry_after=model.breaker.retry_after,
                calls=model.calls,
                failed=model.failed,
                under_way=model.under_way,
                waiting=sum(
                    self._turns.waiting(bound.path) for bound in self._meter.of_model(model.name, model.settings)
                ),
                routes=self._table.routes_to(model.name),
                fallbacks=model.settings.fallbacks,
                problem=model.problem,
            )
            for model in self._models.values()
        ]


def _call_of(request: LLMRequest, model: Model, user: str) -> ModelCall:
    return ModelCall(
        model=model.theirs,
        messages=request.conversation(),
        params=request.params,
        tools=request.tools,
        tool_choice=request.tool_choice,
        response_format=request.response_format,
        context=request.context,
        user=user,
        request_id=request.request_id,
    )


def _response(asked: Asked, model: Model, answer: Answer, usage: TokenUsage, cost: float) -> LLMResponse:
    text = "".join(answer.text)
    message = ChatMessage(role="assistant", content=text, tool_calls=answer.calls or None)
    return LLMResponse(
        request_id=asked.request.request_id,
        generation_id=answer.operation_id,
        model=answer.end.get("model") or model.theirs,
        backend=model.name,
        text=text,
        messages=[message] if asked.request.messages is not None or answer.calls else [],
        finish_reason=answer.end.get("finish_reason") or "stop",
        usage=usage,
        cost=cost,
        latency_ms=asked.milliseconds(),
    )


def _operation(
    asked: Asked, model: Model, answer: Answer, usage: TokenUsage, cost: float, status: str, error: ModelError | None
) -> Operation:
    return Operation(
        operation_id=answer.operation_id,
        model=model.name,
        tokens=Tokens(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
        cost=cost,
        latency_ms=asked.milliseconds(),
        status=status,
        tenant_id=asked.tenant,
        backend=model.backend.name,
        error=error.code if error is not None else "",
        request_id=asked.request.request_id,
        user_id=asked.user,
        route=asked.route.name,
        attempts=answer.tries.count,
    )


def _exhausted(refusal: Refusal) -> ModelError:
    bound = refusal.bound
    details = {"limit": str(bound), "scope": bound.scope}
    message = f"the limit is reached: {bound}"
    return ModelError("RESOURCE_EXHAUSTED", message, retry_after=refusal.retry_after, details=details)


def _for(asked: Asked, response: LLMResponse) -> LLMPart:
    mine = response.model_copy(update={"request_id": asked.request.request_id})
    return LLMPart(type="finish", data=mine.model_dump(mode="json"))


__all__ = ["Asked", "Pipeline"]
