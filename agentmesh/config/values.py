"""Kinds of values in settings: durations, sizes, names of classes and modules."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

from agentmesh.errors import InvalidNameError
from agentmesh.subjects import token

_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(rf"{_NUMBER}|(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?")
_UNITS = (3600.0, 60.0, 1.0, 0.001)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?B)?", re.IGNORECASE)
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_TOOLS = re.compile(r"[A-Za-z0-9_*?-]+")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?")


def parse_duration(value: object) -> float:
    """Seconds in `value`: a number, or a string such as "30s", "500ms", "1m30s", "2h".

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        found = _DURATION.fullmatch(value.replace(" ", "")) if isinstance(value, str) and value.strip() else None
        if found is None:
            raise ValueError("expected a duration: seconds, or a string such as '30s', '500ms', '1m30s'")
        plain, *units = found.groups()
        seconds = float(plain or 0) + sum(float(n) * unit for n, unit in zip(units, _UNITS, strict=True) if n)
    if not 0 <= seconds < float("inf"):
        raise ValueError("expected a duration of 0 or more seconds")
    return seconds


def parse_size(value: object) -> int:
    """Bytes in `value`: a whole number, or a string as nats-server reads it ("1K" is 1000, "1KB" and "1KiB" are 1024).

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError("expected a size: bytes, or a string such as '1MB', '512KB', '10GB'")
    number, letter, byte = found.groups()
    return int(float(number) * (1024 if byte else 1000) ** " KMGT".index(letter.upper() or " "))


def _checked_target(value: str) -> str:
    if _TARGET.fullmatch(value) is None:
        raise ValueError("expected module:Class, such as 'hello.agents:Greeter'")
    return value


def _checked_module(value: str) -> str:
    if _MODULE.fullmatch(value) is None:
        raise ValueError("expected a module, or module:function, such as 'hello.tools'")
    return value


def _checked_tenant(value: str) -> str:
    try:
        return token("tenant", value)
    except InvalidNameError as error:
        raise ValueError(str(error)) from None


def _checked_tools(value: str) -> str:
    if _TOOLS.fullmatch(value) is None:
        raise ValueError("expected the name of a tool, or a pattern such as 'read_*'")
    return value


def _checked_caller(value: str) -> str:
    return value if value == "*" else _checked_agent(value)


def _checked_agent(value: str) -> str:
    try:
        return token("agent", value)
    except InvalidNameError as error:
        raise ValueError(str(error)) from None


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Target = Annotated[str, AfterValidator(_checked_target)]
ModuleTarget = Annotated[str, AfterValidator(_checked_module)]
AgentName = Annotated[str, AfterValidator(_checked_agent)]
Caller = Annotated[str, AfterValidator(_checked_caller)]
ToolPattern = Annotated[str, AfterValidator(_checked_tools)]
Tenant = Annotated[str, AfterValidator(_checked_tenant)]
Overflow = Literal["reject", "drop_oldest", "block"]
