"""Settings: `mesh.toml` (or `[tool.agentmesh]` in pyproject.toml), the environment, and the command line.

Later ones win: defaults, file, profile, environment, command line. Each value remembers where it came from
(`Settings.entries`). A wrong key or value is a `ConfigError` that names the key, the value and what was expected.

    name = "hello"

    [broker]
    url = "embedded"                     # or nats://…; $NATS_URL wins
    store = ".agentmesh"                 # "memory": gone on exit

    [agents.greeter]
    class = "hello.agents:Greeter"
    replicas = 2
    args = { greeting = "Hello" }

    [profiles.prod]
    broker.url = "nats://nats:4222"

Durations are seconds or strings such as "30s", "500ms", "1m30s"; sizes are bytes or strings such as "1MB".
`${NAME}` and `${NAME:-default}` inside strings take a variable of the environment; `$${` is a plain `${`.
No module outside this package reads the environment for settings.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentmesh.config.environment import broker_url, stream_variables, terminal_variables

if TYPE_CHECKING:
    from agentmesh.config.http import HttpRouteSettings, HttpSettings, KeySettings
    from agentmesh.config.llm import (
        BreakerSettings,
        CacheSettings,
        DoorSettings,
        LLMSettings,
        ModelBudgetSettings,
        ModelSettings,
        PriceSettings,
        RouteSettings,
    )
    from agentmesh.config.loading import FILE_NAME, Override, find_file, load, read_file, unknown_variables
    from agentmesh.config.model import (
        EMBEDDED,
        MEMORY,
        AgentSettings,
        BrokerSettings,
        DefaultSettings,
        Entry,
        GroupSettings,
        LedgerSettings,
        MailboxSettings,
        MemorySettings,
        NodeSettings,
        RestartSettings,
        ScheduleSettings,
        Settings,
        ToolSettings,
    )
    from agentmesh.config.values import parse_duration, parse_size

__all__ = [
    "EMBEDDED",
    "FILE_NAME",
    "MEMORY",
    "AgentSettings",
    "BreakerSettings",
    "BrokerSettings",
    "CacheSettings",
    "DefaultSettings",
    "DoorSettings",
    "Entry",
    "GroupSettings",
    "HttpRouteSettings",
    "HttpSettings",
    "KeySettings",
    "LLMSettings",
    "LedgerSettings",
    "MailboxSettings",
    "MemorySettings",
    "ModelBudgetSettings",
    "ModelSettings",
    "NodeSettings",
    "Override",
    "PriceSettings",
    "RestartSettings",
    "RouteSettings",
    "ScheduleSettings",
    "Settings",
    "ToolSettings",
    "broker_url",
    "find_file",
    "load",
    "parse_duration",
    "parse_size",
    "read_file",
    "stream_variables",
    "terminal_variables",
    "unknown_variables",
]


def __getattr__(name: str) -> Any:
    """Everything but the plain functions on first use: it needs pydantic, which takes 50 ms to import."""
    if name in __all__:
        for module in ("loading", "model", "llm", "http", "values"):
            found = getattr(import_module(f"agentmesh.config.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
