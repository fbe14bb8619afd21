"""What becomes of a task after an attempt."""

from __future__ import annotations

from dataclasses import dataclass

from agentmesh.tasks.line import Line
from agentmesh.tasks.wire import Failure, ResultBody


@dataclass(frozen=True)
class Decided:
    """`body` is ours, to be written; None if the slot is written already."""

    body: ResultBody | None = None
    status: str = ""
    """What the slot says, if it is written already."""


@dataclass(frozen=True)
class Again:
    delay: float
    failure: Failure


@dataclass(frozen=True)
class Dead:
    reason: str
    failure: Failure | None = None


@dataclass(frozen=True)
class Return:
    reason: str
    delay: float = 0.0


@dataclass(frozen=True)
class Wait:
    line: Line


@dataclass(frozen=True)
class Leave:
    reason: str


Outcome = Decided | Again | Dead | Return | Wait | Leave


def inside(error: BaseException, *kinds: type[Exception]) -> Exception | None:
    """The error of one of these kinds that `error` is about: itself, one of its group, or its declared cause."""
    if isinstance(error, kinds):
        return error
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    found = (inside(part, *kinds) for part in (*parts, error.__cause__) if part is not None)
    return next((one for one in found if one is not None), None)
