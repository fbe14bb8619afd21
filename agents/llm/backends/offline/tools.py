"""Which tools an order asks for, and with what arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentmesh.agents.llm.backends.base import ModelCall
from agentmesh.agents.llm.backends.offline.arithmetic import expression_in
from agentmesh.agents.llm.backends.offline.material import Material, plain
from agentmesh.agents.llm.backends.offline.schema import MISSING, Filler
from agentmesh.agents.llm.backends.offline.text import stem, stems, words

ENOUGH = 2.0
"""Points a tool needs: a word of its name counts 2, one of its description or parameters 1."""

_THEN = re.compile(r"\s*(?:,|;|\.)?\s*\b(?:and then|then|after that|afterwards|finally)\b\s*,?\s*", re.IGNORECASE)
_POINTS_BACK = re.compile(r"\b(?:it|that|this|them|the (?:result|answer|output|summary|text))\b", re.IGNORECASE)
_SUMS = frozenset({"calculat", "comput", "arithmetic", "math", "evaluat", "add", "sum", "expression"})
_SAME = {
    "forecast": "weather", "temperatur": "weather", "rain": "weather", "lookup": "search", "google": "search",
    "find": "search", "mail": "email", "remember": "memory", "store": "save", "note": "save", "calc": "calculat",
    "calculator": "calculat", "multiply": "calculat", "multipli": "calculat", "clock": "time", "hour": "time",
}  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """A function that may be called."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def points(self, order: str) -> tuple[float, bool]:
        """How well it fits, and whether its name was said."""
        said = _meanings(order)
        named = set(map(_meaning, map(stem, re.split(r"[\W_]+", _spaced(self.name).lower()))))
        told = set(_meanings(self.description)) | set(_meanings(" ".join(self.parameters.get("properties", {}))))
        score = sum(2.0 if word in named else 1.0 for word in set(said) if word in named or word in told)
        sums = bool(expression_in(order) and (named | told) & _SUMS)
        score += 2.0 * sums
        if re.search(rf"\b{re.escape(self.name)}\b", order):
            score += 4.0
        return score, sums or bool(named & set(said))


def wanted(call: ModelCall, material: Material) -> list[tuple[Tool, dict[str, Any]]]:
    """The tools to call now, with their arguments; none if it is time to answer."""
    tools = [tool for entry in call.tools or () if (tool := _tool(entry)) is not None]
    choice = call.tool_choice
    if not tools or choice == "none":
        return []
    steps = [step for step in _THEN.split(material.ask) if step.strip()] or [material.ask]
    if isinstance(choice, Mapping):
        name = (choice.get("function") or choice).get("name")
        chosen = [tool for tool in tools if tool.name == name]
        return [] if material.rounds else [(tool, _arguments(tool, material.ask, material)) for tool in chosen]
    if material.rounds >= len(steps):
        return []
    order = steps[material.rounds]
    if _forbids(order):
        return []
    found = _matching(tools, order)
    if not found and choice == "required" and not material.rounds:
        found = [max(tools, key=lambda tool: tool.points(order)[0])]
    calls = []
    for tool in found:
        arguments = _arguments(tool, order, material, forced=choice == "required")
        if arguments is not None:
            calls.append((tool, arguments))
    return calls


def as_part(tool: Tool, arguments: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    """A call in the form of the OpenAI API."""
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": tool.name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    }


def _matching(tools: Sequence[Tool], order: str) -> list[Tool]:
    """The best one, and others whose names were said, too."""
    points = [(tool, *tool.points(order)) for tool in tools]
    fitting = [entry for entry in points if entry[1] >= ENOUGH]
    if not fitting:
        return []
    best = max(fitting, key=lambda entry: entry[1])
    many = re.search(r"\band\b|,", order) is not None
    return [tool for tool, score, named in fitting if tool is best[0] or (many and named and score >= best[1] - 1)]


def _arguments(tool: Tool, order: str, material: Material, forced: bool = True) -> Any:
    """From the order, and from what tools answered before; None if something that is required is not said."""
    back = plain(material.results[-1]) if material.results and _POINTS_BACK.search(order) else None
    filler = Filler(order, tool.parameters, whole=back or _object_of(order))
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", ())
    found = {}
    for name, schema in properties.items():
        value = filler.said(schema, name, 1)
        if value is MISSING and name in required:
            if not forced and "default" not in schema:
                value = _only_string(schema, required, back or _object_of(order))
                if value is MISSING:
                    return None
            else:
                value = filler.filled(schema, name, 1)
        if value is not MISSING:
            found[name] = value
    return found


def _only_string(schema: Mapping[str, Any], required: Sequence[str], whole: str) -> Any:
    """A tool with one required text gets what the order is about."""
    return whole if schema.get("type", "string") == "string" and len(required) == 1 and whole else MISSING


def _object_of(order: str) -> str:
    """What an order is about: without `please search the web for`."""
    text = re.sub(
        r"^\s*(?:please|can you|could you|would you|will you|i want you to|now)\s+", "", order.strip(), flags=re.I
    )
    found = re.match(r"(?:\w+\s+){1,5}?(?:for|about|on|that|of|up)\s+(.+)$|\w+\s+(.+)$", text, re.DOTALL)
    whole = (found[1] or found[2]) if found and not text.rstrip().endswith("?") else text
    return whole.strip().rstrip(".!")


def _forbids(order: str) -> bool:
    return re.search(r"\b(?:do not|don't|without) (?:use|using|call|calling)\b.*\btools?\b", order, re.I) is not None


def _tool(entry: Mapping[str, Any]) -> Tool | None:
    function = entry.get("function") or entry
    name = function.get("name")
    if not isinstance(name, str):
        return None
    return Tool(name, str(function.get("description") or ""), function.get("parameters") or {})


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)


def _meanings(text: str) -> list[str]:
    return [_meaning(stem) for stem in stems(text)] + [_meaning(stem(word)) for word in words(text) if word == "find"]


def _meaning(word: str) -> str:
    return _SAME.get(word, word)
