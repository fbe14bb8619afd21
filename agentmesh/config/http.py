"""Settings of the HTTP gateway: `[http]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agentmesh.config.table import Table
from agentmesh.config.values import Duration, Size, Tenant


class KeySettings(Table):
    """A key of the HTTP gateway: `[http.keys.NAME]`."""

    token: str = Field(min_length=1)
    """Its token, as `${NAME}`, or `sha256:…` as `agentmesh keys new` prints it."""

    tenant: Tenant | None = None
    """Whose agents it reaches; unset: those of this mesh."""

    rate: float = Field(default=1000.0, ge=0)
    """Requests per second; 0: no limit."""

    concurrency: int = Field(default=256, ge=0)
    """Requests under way at the same time, open streams not counted; 0: no limit."""

    streams: int = Field(default=100, ge=0)
    """Streams open at the same time; 0: no limit."""


class HttpRouteSettings(Table):
    """One route of the HTTP gateway, such as `[http.routes."POST /ai/llm/infer"]`."""

    timeout: Annotated[Duration, Field(gt=0)]
    """Seconds a request may take."""


class HttpSettings(Table):
    """The HTTP gateway: `[http]`."""

    enabled: bool = True
    """Whether `agentmesh up` starts it."""

    host: str = "127.0.0.1"
    """Address it listens on; any but loopback needs a token or keys. Also `$HOST`, if that is an address."""

    port: int | None = Field(default=None, ge=0, le=65535)
    """Its port; 0 takes any free one. Unset: 8000, or a free one when that is taken. Also `$PORT`."""

    token: str | None = None
    """Token that every caller needs, for this mesh's tenant; in a file only as `${NAME}` or `sha256:…`."""

    keys: dict[str, KeySettings] = {}
    """Further keys, each with a token, a tenant and limits of its own."""

    rate: float = Field(default=1000.0, ge=0)
    """Requests per second with `token`, or without any on loopback; 0: no limit."""

    concurrency: int = Field(default=256, ge=0)
    """Requests under way at the same time, likewise."""

    streams: int = Field(default=100, ge=0)
    """Streams open at the same time, likewise."""

    hosts: list[str] = []
    """Names under which it is reached, such as that of a proxy in front of it; with any, all others are refused."""

    cors: list[str] = []
    """Origins whose pages may call it, such as `["https://app.example"]`; never `*`."""

    max_body: Size = 512 * 1024
    """Largest body of a request, in bytes."""

    timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds a request may take, unless its route says otherwise."""

    header_timeout: Annotated[Duration, Field(gt=0)] = 10.0
    """Seconds for the headers of a request."""

    body_timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds for the body of a request."""

    idle_timeout: Annotated[Duration, Field(gt=0)] = 60.0
    """Seconds a connection may lie idle."""

    write_timeout: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds a client may take nothing of its answer."""

    conversations: bool = True
    """Whether `agentmesh up` runs the agent `conversations`, which answers stored conversations, too."""

    chat_agent: str = ""
    """The agent that answers `POST /chat` when the request names none; unset: the only one that can, or `llm`."""

    access_log: bool = True
    """A line for each request, without what is in it."""

    debug: bool = False
    """Tell callers what a failing handler said; by default only its kind, since it may hold secrets."""

    routes: dict[str, HttpRouteSettings] = {}
    """Single routes."""
