"""How the schemas of a message differ between who sends it and who takes it: for errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

from agentmesh.messages import Request, schema, wire_name
from agentmesh.registry import AgentInfo, MessageInfo

_TEXTS = ("description", "title")


def fingerprint(document: Any) -> str:
    """8 hex digits; the same for the same fields, whatever their descriptions and their order."""
    return blake2b(json.dumps(_plain(document), sort_keys=True).encode(), digest_size=4).hexdigest()


def difference(request: type[Request[Any]], infos: Iterable[AgentInfo]) -> str:
    """What the replicas of an agent have otherwise about a request or its reply; empty if nothing."""
    name = wire_name(request)
    for info in infos:
        for message in info.messages:
            if message.name == name:
                told = "; ".join(_differences(request, message))
                if told:
                    return f"{info.name}.{info.replica} on {info.node} has another version of it: {told}"
    return ""


def _differences(request: type[Request[Any]], theirs: MessageInfo) -> Iterator[str]:
    sides = [(schema(request), theirs.schema, theirs.name)]
    if theirs.reply_schema is not None:
        sides.append((schema(request.reply_type()), theirs.reply_schema, f"reply to {theirs.name}"))
    for ours, other, what in sides:
        if (here := fingerprint(ours)) != (there := fingerprint(other)):
            fields = ", ".join(_fields(ours, other)) or "other types"
            yield f"schema of {what} is {here} here and {there} there ({fields})"


def _fields(ours: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    mine, theirs = ours.get("properties") or {}, other.get("properties") or {}
    for name in [name for name in theirs if name not in mine]:
        yield f"{name!r} is only there{', and required' if name in other.get('required', ()) else ''}"
    for name in [name for name in mine if name not in theirs]:
        yield f"{name!r} is only here"
    for name in [name for name in mine if name in theirs]:
        if _plain(mine[name]) != _plain(theirs[name]):
            yield f"{name!r} is {_type(mine[name])} here and {_type(theirs[name])} there"


def _type(schema: Mapping[str, Any]) -> str:
    return str(schema.get("type") or schema.get("$ref", "").rpartition("/")[2] or "of several types")


def _plain(schema: Any) -> Any:
    """Without what is only for people."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if key not in _TEXTS or not isinstance(value, str)}
    return [_plain(one) for one in schema] if isinstance(schema, list) else schema
