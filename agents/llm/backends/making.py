"""From the settings of a model to its backend. Each kind is imported when it is first wanted."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from agentmesh.agents.llm.backends.base import ModelBackend
from agentmesh.config import ModelSettings
from agentmesh.errors import ConfigError

KINDS = {
    "offline": "agentmesh.agents.llm.backends.offline:OfflineBackend",
    "openai": "agentmesh.agents.llm.backends.openai:OpenAIBackend",
    "litellm": "agentmesh.agents.llm.backends.litellm:LiteLLMBackend",
}


def make_backend(name: str, settings: ModelSettings) -> ModelBackend:
    """The backend of the model `name`.

    Raises:
        ConfigError: There is no such kind, or it does not take these settings.
        MissingExtraError: It needs a library that is not installed.
    """
    target = KINDS.get(settings.backend, settings.backend)
    module, _, attribute = target.partition(":")
    if not attribute:
        raise ConfigError(
            f"models.{name}.backend", f"{settings.backend!r}: expected {', '.join(KINDS)} or module:Class"
        )
    try:
        kind: Any = import_module(module)
        for part in attribute.split("."):
            kind = getattr(kind, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"models.{name}.backend", f"{settings.backend!r} cannot be imported: {error}") from error
    made: ModelBackend = kind(name, settings)
    return made
