"""Settings of language models and of the gateway to them: `[models.NAME]`, `[llm]`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentmesh.config.table import Table
from agentmesh.config.values import Duration, Size


class PriceSettings(Table):
    """US dollars per million tokens."""

    prompt: float = Field(default=0.0, ge=0)
    """Of what is sent to the model."""

    completion: float = Field(default=0.0, ge=0)
    """Of what it answers."""


class ModelBudgetSettings(Table):
    """What may be used, over all replicas of the gateway; unset: no bound."""

    usd_per_day: float | None = Field(default=None, gt=0)
    """US dollars from midnight to midnight UTC."""

    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens of questions and answers within any minute."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Calls within any minute."""

    alerts: list[float] = [0.5, 0.8, 1.0]
    """Fractions of `usd_per_day` that are told once a day each when they are reached."""


class ModelSettings(Table):
    """A language model: `[models.NAME]`."""

    backend: str = "offline"
    """`offline` (rules, no network), `openai` (any compatible server), `litellm`, or a class as `module:Class`."""

    base_url: str | None = None
    """Of the server, such as `https://api.openai.com/v1`; unset: the backend's own."""

    model: str = ""
    """What the backend calls it; unset: NAME."""

    api_key: str | None = None
    """In a file only as `${NAME}`."""

    timeout: Duration | None = None
    """Seconds a whole answer may take; unset: as the route says."""

    price: PriceSettings = PriceSettings()
    """What a million tokens cost; unset: nothing, or what the backend knows."""

    budget: ModelBudgetSettings = ModelBudgetSettings()
    """What all callers together may use of it, for each tenant."""

    fallbacks: list[str] = []
    """Models that are asked, in this order, when it cannot answer."""

    concurrency: int | None = Field(default=None, ge=1)
    """Calls that one replica of the gateway has under way to it."""

    options: dict[str, Any] = {}
    """What else the backend takes."""


class RouteSettings(Table):
    """A name under which models are asked for: `[llm.routes.NAME]`."""

    models: list[str] = []
    """Tried in this order; unset: the model of that name with its fallbacks."""

    connect: Duration = 5.0
    """Seconds until a model's server is reached."""

    first_token: Duration = 30.0
    """Seconds until the answer begins."""

    idle: Duration = 30.0
    """Seconds between two pieces of it."""

    total: Duration = 60.0
    """Seconds for the whole answer, with all further tries."""

    retries: int = Field(default=2, ge=0)
    """Further tries of each model, when what went wrong may pass."""

    backoff: Duration = 0.5
    """Seconds before the second try; doubles with each further one. A server that says when counts instead."""

    cache: bool = False
    """Whether answers are stored and given again, also when the request does not ask for it."""


class CacheSettings(Table):
    """Answers that are given again: `[llm.cache]`."""

    ttl: Duration = 3600.0
    """Seconds an answer is kept, unless the request says otherwise."""

    max_size: Size = 64 * 1024 * 1024
    """Bytes that one replica keeps; the least used go first. 0: nothing is kept."""


class BreakerSettings(Table):
    """When a model that fails is left alone: `[llm.breaker]`."""

    failures: int = Field(default=5, ge=1)
    """Failures within `window` after which it is."""

    window: Annotated[Duration, Field(gt=0)] = 60.0
    """Seconds that failures count."""

    cooldown: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds until it is tried again."""


class DoorSettings(Table):
    """How clients that are no agents reach the gateway to language models: `[llm.doors]`."""

    enabled: bool = True
    """Whether there are doors; without them only agents, and what speaks for them, can ask."""

    shared: bool | None = None
    """Whether to serve the subject that names no tenant, `svc.ai.llm.v1.infer`; unset: only as tenant `default`."""

    capacity: int = Field(default=512, ge=1)
    """Requests under way at each door of a replica; more are passed on to other replicas, or refused."""

    timeout: Annotated[Duration, Field(gt=0)] = 60.0
    """Seconds an answer may take, if the client does not say."""

    idle_timeout: Annotated[Duration, Field(gt=0)] = 60.0
    """Seconds until the next piece of a streamed answer, if the client does not say."""

    responses: bool = False
    """Whether answers to `ai.gateway.requests.T` are copied to `ai.gateway.responses.T`, where all who listen read
    them."""


class LLMSettings(Table):
    """The gateway to language models, the agent `llm`: `[llm]`."""

    enabled: bool = True
    """Whether `agentmesh up` starts it."""

    replicas: int = Field(default=1, ge=0, le=1024)
    """How many run."""

    routes: dict[str, RouteSettings] = {}
    """Names for requests; `default` is for those that name none."""

    cache: CacheSettings = CacheSettings()

    coalesce: bool = True
    """Whether equal requests at the same time are one call, unless they want a temperature above 0."""

    breaker: BreakerSettings = BreakerSettings()

    doors: DoorSettings = DoorSettings()

    budget: ModelBudgetSettings = ModelBudgetSettings()
    """What each tenant may use."""

    tenants: dict[str, ModelBudgetSettings] = {}
    """Instead of `budget`, for single tenants."""

    user_budget: ModelBudgetSettings = ModelBudgetSettings()
    """What each user of a tenant may use."""

    queue: int = Field(default=1000, ge=0)
    """Requests of one replica that may wait for their turn at a limit."""

    user_queue: int = Field(default=100, ge=1)
    """Those of one user."""

    wait: Duration = 30.0
    """Seconds a request waits for its turn, if it wants to wait."""
