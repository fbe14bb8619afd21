"""Which models a request goes to: names, routes, fallbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from agentmesh.agents.llm.backends import ModelBackend
from agentmesh.config import LLMSettings, ModelSettings, RouteSettings
from agentmesh.errors import ConfigError, ModelError
from agentmesh.registry import near_misses
from agentmesh.subjects import token

DEFAULT = "default"


@dataclass(frozen=True)
class Route:
    """Where a request goes."""

    name: str
    models: tuple[str, ...]
    """Tried in this order."""
    settings: RouteSettings


class Table:
    """The configured models and routes.

    Args:
        models: By name: settings, their plain form, or a backend.
        settings: Of the gateway.

    Raises:
        ConfigError: They contradict each other.
    """

    def __init__(
        self, models: Mapping[str, ModelSettings | ModelBackend | Mapping[str, Any]], settings: LLMSettings
    ) -> None:
        self.models: dict[str, ModelSettings] = {}
        self.backends: dict[str, ModelBackend] = {}
        """Those that were given, not made from settings."""
        for name, entry in models.items():
            self._add(token("model", name), entry)
        self._anything = not self.models
        """Nothing is configured: the one model there is answers, whatever it is called."""
        if self._anything:
            self.models[DEFAULT] = ModelSettings()
        self._routes = {name: self._route(name, route) for name, route in settings.routes.items()}
        for name, model in self.models.items():
            for fallback in model.fallbacks:
                self._known(f"models.{name}.fallbacks", fallback)
            self._routes.setdefault(name, self._route(name, RouteSettings()))
        self._routes.setdefault(DEFAULT, self._route(DEFAULT, RouteSettings(models=[next(iter(self.models))])))

    def resolve(self, name: str) -> Route:
        """The route of that name, or of the model of that name.

        Raises:
            ModelError: `NOT_FOUND`.
        """
        found = self._routes.get(name or DEFAULT)
        if found is None and self._anything:
            return self._routes[DEFAULT]
        if found is None:
            near = near_misses(name, self._routes)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(self._routes)}"
            raise ModelError("NOT_FOUND", f"no model or route {name!r}; {hint}")
        return found

    @property
    def longest(self) -> float:
        """Seconds the longest answer may take."""
        return max(route.settings.total for route in self._routes.values())

    def routes_to(self, model: str) -> list[str]:
        """Names of the routes on which the model is tried first."""
        return sorted(name for name, route in self._routes.items() if route.models[0] == model)

    def _add(self, name: str, entry: ModelSettings | ModelBackend | Mapping[str, Any]) -> None:
        if isinstance(entry, ModelSettings):
            self.models[name] = entry
        elif isinstance(entry, Mapping):
            try:
                self.models[name] = ModelSettings.model_validate(entry)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                where = ".".join(str(part) for part in first["loc"])
                raise ConfigError(f"models.{name}.{where}", first["msg"]) from None
        else:
            self.backends[name] = entry
            self.models[name] = ModelSettings(backend=entry.name)

    def _route(self, name: str, settings: RouteSettings) -> Route:
        for model in settings.models:
            self._known(f"llm.routes.{name}.models", model)
        if not settings.models:
            self._known(f"llm.routes.{name}.models", name)
        first = list(settings.models or [name])
        for model in list(first):
            first += [other for other in self.models[model].fallbacks if other not in first]
        return Route(name, tuple(first), settings)

    def _known(self, key: str, model: str) -> None:
        if model not in self.models:
            raise ConfigError(key, f"there is no model {model!r} (there are: {', '.join(self.models)})")
