"""What was typed becomes a message: plain text, `@FILE`, `-`, or `--type` with `--data`; and times become times."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agentmesh.errors import InvalidScheduleError, UsageError

if TYPE_CHECKING:
    from agentmesh.messages import Message

M = TypeVar("M", bound="Message")

At = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help="When it is due: 2030-12-24T18:00, local time unless it says another."),
]


def message(base: type[M], kind: str, content: dict[str, Any], **keywords: Any) -> M:
    """See `agentmesh.messages.untyped`; what it needs is imported when it is called."""
    from agentmesh.messages import untyped

    return untyped(base, kind, content, **keywords)


def content(text: str | None, kind: str | None, data: str | None, plain: str) -> tuple[str, dict[str, Any]]:
    """Type and fields of the message that was typed.

    Args:
        text: `TEXT|@FILE|-`.
        kind: `--type`.
        data: `--data`.
        plain: The type that carries plain text.

    Raises:
        UsageError: Neither or both ways were used, or `--data` is no JSON object.
    """
    if kind is None and data is None:
        if text is None:
            raise UsageError("say what to send: TEXT, @FILE, - for standard input, or --type with --data")
        return plain, {"text": read_text(text)}
    if text is not None:
        raise UsageError("TEXT and --type/--data exclude each other: put the text into --data")
    return kind or plain, read_object(data)


def read_text(given: str) -> str:
    """`given`, or what it points to: `@FILE`, or `-` for standard input; `@@x` is the text `@x`.

    Raises:
        UsageError: The file cannot be read as text.
    """
    try:
        if given == "-":
            return sys.stdin.read()
        if given.startswith("@") and not given.startswith("@@"):
            return Path(given[1:]).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {given[1:]}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"cannot read {given}: it is not UTF-8 text") from None
    if any("\ud800" <= character <= "\udfff" for character in given):
        raise UsageError("the text cannot be read: it is not in the encoding of the locale; try with LC_ALL=C.UTF-8")
    return given.removeprefix("@")


def read_value(given: str) -> Any:
    """The JSON value in `--data`.

    Raises:
        UsageError: It is no JSON.
    """
    try:
        return json.loads(read_text(given))
    except ValueError as error:
        raise UsageError(f"--data is not JSON: {error}") from None


def read_object(given: str | None) -> dict[str, Any]:
    """The JSON object in `--data`; nothing is an object without fields.

    Raises:
        UsageError: It is something else.
    """
    value = {} if given is None else read_value(given)
    if not isinstance(value, dict):
        raise UsageError(f'--data is {str(given)[:60]!r}; expected a JSON object such as {{"text": "hi"}}')
    return value


def seconds(option: str, given: str | None) -> float | None:
    """The duration given for an option, such as `5`, `30s` or `2m`.

    Raises:
        UsageError: It is none.
    """
    from agentmesh.config import parse_duration

    try:
        return None if given is None else parse_duration(given)
    except ValueError as error:
        raise UsageError(f"{option} {given!r}: {error}") from None


def moment(given: str | None, zone: str | None = None) -> datetime | None:
    """The time given with `--at`: in `zone`, or else in local time, unless it says itself where.

    Raises:
        UsageError: It is none.
        InvalidScheduleError: There is no such time zone here.
    """
    if given is None:
        return None
    try:
        time = datetime.fromisoformat(given)
    except ValueError:
        raise UsageError(f"--at {given!r}: expected a time such as 2030-12-24T18:00 or 2030-12-24T17:00Z") from None
    if time.tzinfo is not None:
        return time
    return time.astimezone() if zone is None else time.replace(tzinfo=_zone(zone))


def _zone(name: str) -> Any:
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise InvalidScheduleError("tz", name, "this machine knows no such time zone") from None
