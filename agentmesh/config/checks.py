"""What is wrong with a file, said so that it can be put right: key, value, and what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from agentmesh.config.model import Settings
from agentmesh.errors import ConfigError, InvalidNameError
from agentmesh.subjects import token

VARIABLE = re.compile(r"(?P<escaped>\$)?\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}")
"""`${NAME}`, `${NAME:-default}`, and `$${`, which is a plain `${`."""


def check_file(document: Mapping[str, Any], profiles: Any, source: str) -> None:
    """Unknown keys and plain secrets, in the file and in all its profiles, chosen or not."""
    _check_keys(document, Settings, "", source, extra=("profiles",))
    _check_secrets(document, "", source)
    if not isinstance(profiles, Mapping):
        raise ConfigError("profiles", f"{profiles!r} is not a table such as [profiles.prod]", source)
    for name, table in profiles.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"profiles.{name}", f"{table!r} is not a table such as [profiles.{name}]", source)
        _check_keys(table, Settings, f"profiles.{name}.", source)
        _check_secrets(table, f"profiles.{name}.", source)


def _check_keys(
    table: Mapping[str, Any], model: type[BaseModel], path: str, source: str, extra: Iterable[str] = ()
) -> None:
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    for name, value in table.items():
        if name not in fields:
            known = [*fields, *extra]
            where = f"[{path.removesuffix('.')}]" if path else "the file"
            raise ConfigError(
                f"{path}{name}", f"unknown key{meant(name, known)} ({where} knows: {', '.join(known)})", source
            )
        inner = table_of(fields[name].annotation)
        if not isinstance(value, Mapping) and (inner or get_origin(fields[name].annotation) is dict):
            raise ConfigError(f"{path}{name}", f"{value!r}: expected a table", source)
        if inner is not None and isinstance(value, Mapping):
            _check_keys(value, inner, f"{path}{name}.", source)
        elif inner is None and get_origin(fields[name].annotation) is dict and isinstance(value, Mapping):
            kind = table_of(get_args(fields[name].annotation)[1])
            for key, entry in value.items() if kind else ():
                if kind and isinstance(entry, Mapping):
                    _check_keys(entry, kind, f"{path}{name}.{key}.", source)


def _check_secrets(table: Mapping[str, Any], path: str, source: str) -> None:
    broker = table.get("broker")
    for name in ("password", "token") if isinstance(broker, Mapping) else ():
        _check_secret(broker, name, f"NATS_{name.upper()}", f"{path}broker.", source)
    models = table.get("models")
    for model, entry in models.items() if isinstance(models, Mapping) else ():
        if isinstance(entry, Mapping):
            _check_secret(entry, "api_key", f"{model.upper()}_API_KEY", f"{path}models.{model}.", source)
    _check_tokens(table, path, source)


def _check_secret(table: Mapping[str, Any] | None, name: str, variable: str, path: str, source: str) -> None:
    written = table.get(name) if table else None
    if isinstance(written, str) and VARIABLE.fullmatch(written) is None:
        raise ConfigError(
            f"{path}{name}",
            f'secrets do not belong in a file: write {name} = "${{{variable}}}" and set that variable',
            source,
        )


def _check_tokens(table: Mapping[str, Any], path: str, source: str) -> None:
    """Those of the HTTP gateway, whose digests may stand in a file."""
    http = _inner(table, "http")
    keys = _inner(http, "keys")
    tables = {f"http.keys.{name}": (str(name).upper().replace("-", "_"), _inner(keys, name)) for name in keys}
    for key, (variable, entry) in {"http": ("AGENTMESH_HTTP", http), **tables}.items():
        if not str(entry.get("token", "")).startswith("sha256:"):
            _check_secret(entry, "token", f"{variable}_TOKEN", f"{path}{key}.", source)


def _inner(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = table.get(name)
    return inner if isinstance(inner, Mapping) else {}


def check_names(kind: str, table: str, names: Iterable[str], origins: Mapping[str, str]) -> None:
    """The names of the tables in `table`, each of which names a thing of that kind."""
    for name in names:
        try:
            token(kind, name)
        except InvalidNameError as error:
            raise ConfigError(f"{table}.{name}", str(error), origins.get(f"{table}.{name}", "")) from None


def check_models(settings: Settings, origins: Mapping[str, str]) -> None:
    """Routes and fallbacks lead to models that are there. `default` always is."""
    there = {*settings.models, "default"}
    uses = [(f"models.{name}.fallbacks", model.fallbacks) for name, model in settings.models.items()]
    uses += [(f"llm.routes.{name}.models", route.models) for name, route in settings.llm.routes.items()]
    for name, route in settings.llm.routes.items():
        if not route.models and name not in there:
            raise ConfigError(
                f"llm.routes.{name}.models",
                "is missing: no model has that name",
                _nearest(f"llm.routes.{name}", origins),
            )
    for key, names in uses:
        for name in names:
            if name not in there:
                raise ConfigError(key, f"there is no model {name!r}{meant(name, there)}", _nearest(key, origins))


def meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=2)
    return f"; did you mean {' or '.join(repr(word) for word in near)}?" if near else ""


def explained(error: ValidationError, origins: Mapping[str, str]) -> ConfigError:
    """The first problem pydantic found, in our words."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    source = _nearest(key, origins)
    if first["type"] == "missing":
        return ConfigError(key, "is missing", source)
    expected = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    value = "" if isinstance(first["input"], Mapping | BaseModel) else f"{first['input']!r}: "
    return ConfigError(key, f"{value}{expected}", source)


def _nearest(key: str, origins: Mapping[str, str]) -> str:
    """The origin of `key`, or of the nearest table around it."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return ""


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The table a field holds, also when it may be None; else None."""
    if get_origin(annotation) in (Union, UnionType):
        return next(filter(None, map(table_of, get_args(annotation))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
