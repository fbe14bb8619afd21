"""What the gateway counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from agentmesh.agents.llm.cache import AnswerCache
from agentmesh.agents.llm.calling import Model
from agentmesh.metrics import Family

STATES = {"closed": 0, "half-open": 1, "open": 2}


def figures(models: Sequence[Model], cache: AnswerCache) -> list[Family]:
    """Calls, tokens and dollars per model, breakers, and the cache."""
    calls = Family("agentmesh_llm_calls_total", "counter", "Calls of language models.")
    failed = Family("agentmesh_llm_failed_total", "counter", "Calls of language models that failed.")
    under_way = Family("agentmesh_llm_under_way", "gauge", "Calls of language models that are under way.")
    tokens = Family("agentmesh_llm_tokens_total", "counter", "Tokens of calls of language models.")
    dollars = Family("agentmesh_llm_usd_total", "counter", "US dollars that calls of language models cost.")
    breaker = Family("agentmesh_llm_breaker", "gauge", "Circuit breaker: 0 closed, 1 half-open, 2 open.")
    for model in models:
        calls.add(model.calls, model=model.name)
        failed.add(model.failed, model=model.name)
        under_way.add(model.under_way, model=model.name)
        tokens.add(model.prompt_tokens, model=model.name, kind="prompt")
        tokens.add(model.completion_tokens, model=model.name, kind="completion")
        dollars.add(model.dollars, model=model.name)
        breaker.add(STATES[model.breaker.state], model=model.name)
    looks = Family("agentmesh_llm_cache_looks_total", "counter", "Looks into the cache of answers.")
    looks.add(cache.hits, outcome="hit")
    looks.add(cache.misses, outcome="miss")
    size = Family("agentmesh_llm_cache_bytes", "gauge", "Bytes of cached answers.")
    size.add(cache.size)
    return [calls, failed, under_way, tokens, dollars, breaker, looks, size]
