"""Find, read and merge the settings."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from agentmesh.config.checks import VARIABLE, check_file, check_models, check_names, explained, meant, table_of
from agentmesh.config.environment import STREAM_PREFIX
from agentmesh.config.model import Settings
from agentmesh.errors import ConfigError

FILE_NAME = "mesh.toml"
PREFIX = "AGENTMESH_"

_ADDRESS = re.compile(r"localhost|[\d.]+|\[?[0-9a-fA-F:]*:[0-9a-fA-F:]*\]?")

# Variables that start like settings and belong to other parts.
_NOT_SETTINGS = frozenset({"AGENTMESH_NATS_SERVER", "AGENTMESH_LIFELINE", "AGENTMESH_CONFIG", "AGENTMESH_PROFILE"})


def load(
    *,
    config: Path | None = None,
    profile: str | None = None,
    overrides: Sequence[Override] = (),
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Settings:
    """Read, merge and check all settings.

    Args:
        config: The file, or None: `$AGENTMESH_CONFIG`, else `mesh.toml` or a pyproject.toml with `[tool.agentmesh]`
            in `directory` or the nearest of its parents; there may be none.
        profile: Which `[profiles.…]` table to lay over the file; None: `$AGENTMESH_PROFILE`, else none.
        overrides: Values from the command line.
        environ: Instead of the process's environment.
        directory: Instead of the current directory.

    Raises:
        ConfigError: A file cannot be read, or a key or value is wrong.
    """
    environ = os.environ if environ is None else environ
    directory = (directory or Path.cwd()).absolute()
    chosen = config or (Path(environ["AGENTMESH_CONFIG"]) if environ.get("AGENTMESH_CONFIG") else None)
    file = directory / chosen if chosen else find_file(directory)
    document = read_file(file) if file else {}
    source = file.name if file else FILE_NAME
    profile = profile or environ.get("AGENTMESH_PROFILE") or ""

    layers = _Layers(environ)
    profiles = document.pop("profiles", {})
    check_file(document, profiles, source)
    layers.add(document, source)
    if profile:
        layers.add(_profile(profiles, profile, source), f"{source} [profiles.{profile}]")
    for variable, key in _variables(environ):
        layers.put(key, _from_text(key, environ[variable]), f"${variable}")
    for override in overrides:
        layers.put(override.key, override.value, override.flag)

    root = file.parent if file else directory
    layers.values.setdefault("name", re.sub(r"[^A-Za-z0-9_-]+", "-", root.name).strip("-") or "mesh")
    try:
        settings = Settings.model_validate(layers.values)
    except ValidationError as error:
        raise explained(error, layers.origins) from None
    check_names("agent", "agents", settings.agents, layers.origins)
    check_names("schedule id", "schedules", settings.schedules, layers.origins)
    check_names("model", "models", settings.models, layers.origins)
    check_names("route", "llm.routes", settings.llm.routes, layers.origins)
    check_models(settings, layers.origins)
    settings._file, settings._root, settings._profile = file, root, profile
    settings._origins, settings._written = layers.origins, layers.written
    return settings


def find_file(directory: Path) -> Path | None:
    """`mesh.toml`, or a pyproject.toml with our table, in `directory` or the nearest of its parents.

    Raises:
        ConfigError: A directory has both: which one counts would be a guess.
    """
    for folder in (directory, *directory.parents):
        found = [path for path in (folder / FILE_NAME, folder / "pyproject.toml") if _is_ours(path)]
        if len(found) == 2:
            raise ConfigError(
                "tool.agentmesh", f"{FILE_NAME} in the same directory has settings too; keep one", "pyproject.toml"
            )
        if found:
            return found[0]
    return None


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.name == FILE_NAME:
        return True
    try:
        return "agentmesh" in tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError):  # somebody else's broken pyproject.toml says nothing about us
        return False


def read_file(file: Path) -> dict[str, Any]:
    """The settings in `file`, unchecked.

    Raises:
        ConfigError: It is not there, not readable, or not TOML.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise ConfigError(str(file), f"cannot be read: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(file), f"is not TOML: {error}") from error
    if file.name != "pyproject.toml":
        return document
    table: dict[str, Any] = document.get("tool", {}).get("agentmesh", {})
    return table


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Variables that start with `AGENTMESH_` and are no settings, each with the name that was perhaps meant."""
    environ = os.environ if environ is None else environ
    known = {*_SCALARS, *_NOT_SETTINGS, "AGENTMESH_LEDGER"}
    strangers = sorted(
        name for name in environ if name.startswith(PREFIX) and not name.startswith(STREAM_PREFIX) and name not in known
    )
    return [(name, "".join(difflib.get_close_matches(name, known, n=1))) for name in strangers]


# ---------------------------------------------------------------- layers


@dataclass(frozen=True)
class Override:
    """One value from the command line."""

    key: str
    value: Any
    flag: str
    """What the user typed, for messages."""


@dataclass
class _Layers:
    """Values laid over each other, with where each came from."""

    environ: Mapping[str, str]
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    """Strings as they stand in the file, where `${…}` was filled in."""

    def add(self, table: Mapping[str, Any], source: str) -> None:
        """Lay a table of the file over what is there; strings get their variables filled in."""
        self._merge(table, self.values, "", source)

    def _merge(self, table: Mapping[str, Any], into: dict[str, Any], path: str, source: str) -> None:
        for name, value in table.items():
            key = f"{path}{name}"
            self.origins[key] = source
            if isinstance(value, Mapping):
                self._merge(value, into.setdefault(name, {}), f"{key}.", source)
            else:
                into[name] = self._filled(key, value, source)

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set one value by its dotted key."""
        *path, name = key.split(".")
        table = self.values
        for part in path:
            table = table.setdefault(part, {})
        table[name] = value
        self.origins[key] = origin
        self.written.pop(key, None)

    def _filled(self, key: str, value: Any, source: str) -> Any:
        if isinstance(value, list):
            return [self._filled(key, item, source) for item in value]
        if not isinstance(value, str) or "${" not in value:
            self.written.pop(key, None)
            return value
        self.written[key] = value
        return VARIABLE.sub(lambda found: self._variable(found, key, source), value)

    def _variable(self, found: re.Match[str], key: str, source: str) -> str:
        if found["escaped"]:
            return found[0][1:]
        value = self.environ.get(found["name"], found["default"])
        if value is None:
            raise ConfigError(key, f"{found[0]}: the environment variable {found['name']} is not set", source)
        return value


def _profile(profiles: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    if name not in profiles:
        raise ConfigError("profiles", f"there is no profile {name!r}{meant(name, profiles)}", source)
    table: Mapping[str, Any] = profiles[name]
    return table


# ---------------------------------------------------------------- the environment


def _scalars(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of the settings that one variable can hold, with their types."""
    for name, info in model.model_fields.items():
        table = table_of(info.annotation)
        if table is not None:
            yield from _scalars(table, f"{path}{name}.")
        elif get_origin(info.annotation) is not dict:
            yield f"{path}{name}", info.annotation


_TYPES = dict(_scalars(Settings))
_SCALARS = {PREFIX + key.upper().replace(".", "_"): key for key in _TYPES}


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables that are set, with their dotted keys; the more specific one of two for the same key comes last."""
    for variable, key in (("NATS_URL", "broker.url"), ("AGENTMESH_LEDGER", "ledger.path"), ("PORT", "http.port")):
        if environ.get(variable):
            yield variable, key
    if _ADDRESS.fullmatch(environ.get("HOST", "")):  # some shells put the name of the machine there
        yield "HOST", "http.host"
    for variable, key in _SCALARS.items():
        if environ.get(variable):
            yield variable, key


def _from_text(key: str, text: str) -> Any:
    is_list = get_origin(_TYPES[key]) is list
    return [part.strip() for part in text.split(",") if part.strip()] if is_list else text
