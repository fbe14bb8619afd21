"""From `module:tool` to the tool."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from agentmesh.errors import AgentMeshError, ConfigError, DefinitionError
from agentmesh.tooling import Tool


def load(target: str) -> Tool[..., Any]:
    """The tool called `module:name`.

    Raises:
        DefinitionError: There is no such module, it cannot be imported, or there is no such tool in it.
    """
    module_name, _, path = target.partition(":")
    found: Any = _import(module_name, target)
    for name in path.split("."):
        found = getattr(found, name, None)
    if not isinstance(found, Tool):
        raise DefinitionError(target, "is not a tool; did you forget @tool?")
    return found


def load_all(targets: Sequence[str]) -> tuple[list[Tool[..., Any]], list[AgentMeshError]]:
    """The tools of all `targets`, each `module:name` or a module, once, and what is wrong with the others."""
    tools: list[Tool[..., Any]] = []
    broken: list[AgentMeshError] = []
    for target in targets:
        try:
            found = [load(target)] if ":" in target else _tools_of(target)
        except AgentMeshError as error:
            broken.append(error)
            continue
        tools += [tool for tool in found if tool not in tools]
    return tools, broken


def configure(tools: Sequence[Tool[..., Any]], settings: Mapping[str, Any]) -> list[Tool[..., Any]]:
    """The tools with those of `settings` that they have.

    Raises:
        ConfigError: No tool has such a setting.
        DefinitionError: A value does not fit.
    """
    known = {name for tool in tools for name in tool.settings}
    for name in settings:
        if name not in known:
            raise ConfigError(name, f"no tool has this setting (there are: {', '.join(sorted(known)) or 'none'})")
    return [
        tool.configure(**{name: value for name, value in settings.items() if name in tool.settings}) for tool in tools
    ]


def _tools_of(module_name: str) -> list[Tool[..., Any]]:
    module = _import(module_name, module_name)
    tools = [value for value in vars(module).values() if isinstance(value, Tool)]
    if not tools:
        raise DefinitionError(module_name, "has no tools; did you forget @tool?")
    return tools


def _import(module_name: str, target: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except AgentMeshError:
        raise
    except Exception as error:  # the edge: a user's module may raise anything
        raise DefinitionError(target, f"cannot be imported: {type(error).__name__}: {error}") from error
