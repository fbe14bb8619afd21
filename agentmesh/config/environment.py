"""What the environment alone decides. Imports nothing, so that every command may ask at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


def broker_url(environ: Mapping[str, str] | None = None) -> str | None:
    """The broker's URL if the environment names one: `$AGENTMESH_BROKER_URL`, else `$NATS_URL`."""
    environ = os.environ if environ is None else environ
    return environ.get("AGENTMESH_BROKER_URL") or environ.get("NATS_URL") or None


@dataclass(frozen=True)
class TerminalVariables:
    """What the environment says about the terminal; conventions shared with other programs."""

    no_color: bool
    """`$NO_COLOR` is set, or `$TERM` is `dumb`."""

    force_color: bool
    """`$FORCE_COLOR` is set."""

    ci: bool
    """`$CI` is set: nobody watches, so nothing moves."""


def terminal_variables(environ: Mapping[str, str] | None = None) -> TerminalVariables:
    """See `TerminalVariables`."""
    environ = os.environ if environ is None else environ
    return TerminalVariables(
        no_color=bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb",
        force_color=bool(environ.get("FORCE_COLOR")),
        ci=bool(environ.get("CI")),
    )


STREAM_PREFIX = "AGENTMESH_STREAM_"


def stream_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the environment says for `agentmesh.streams.Config`: `$AGENTMESH_STREAM_RETENTION_HOURS` and the like, by
    the names behind the prefix in small letters. What is empty counts as not set."""
    environ = os.environ if environ is None else environ
    names = [name for name in environ if name.startswith(STREAM_PREFIX) and environ[name]]
    return {name.removeprefix(STREAM_PREFIX).lower(): environ[name] for name in names}
