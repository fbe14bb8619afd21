"""Messages: the base class states the promise.

| base class                | verb            | promise                                                             |
| ------------------------- | --------------- | ------------------------------------------------------------------- |
| `Event`                   | `tell`, publish | at most once                                                        |
| `Event`, `durable=True`   | `tell`          | at least once, in order per agent, bounded, refused when full        |
| `Request[Reply]`          | `ask`, `stream` | at most once; one typed reply (or a stream) or a typed error in time |
| `Task[Result]`            | `submit`        | accepted = survives anything; exactly one terminal result            |

The reply type is part of the message class, so type checkers know what `ask` returns:

    class Summarise(Request[str]):
        text: str

    summary = await mesh.ask("writer", Summarise(text=text))      # a str
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import new_class
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from agentmesh.codec import adapter
from agentmesh.errors import DefinitionError
from agentmesh.limits import Limit, rules
from agentmesh.subjects import PRIORITIES, token

R = TypeVar("R")
M = TypeVar("M", bound="Message")


class Message(BaseModel):
    """What all messages share: they are immutable, and unknown fields are errors, so that a typo is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    _wire_name: ClassVar[str] = ""
    _redacted: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, *, name: str | None = None, redact: Iterable[str] = (), **kwargs: Any) -> None:
        """Class keywords.

        Args:
            name: The type's name on the wire; by default the class name.
            redact: Fields whose values are left out of crash reports; those of base classes are too.
            kwargs: For pydantic.
        """
        super().__init_subclass__(**kwargs)
        cls._redacted = cls._redacted | ({redact} if isinstance(redact, str) else frozenset(redact))
        # `Request[str]` is itself a class, made by subscription; it is no message of the user's and has no wire name.
        cls._wire_name = token("message type", name or cls.__name__) if "[" not in cls.__name__ else ""


class Event(Message):
    """Something that happened. Nobody answers."""

    durable: ClassVar[bool] = False

    def __init_subclass__(cls, *, durable: bool | None = None, **kwargs: Any) -> None:
        """`durable=True`: kept in the agent's durable mailbox until it is handled."""
        super().__init_subclass__(**kwargs)
        if durable is not None:
            cls.durable = durable


class Request(Message, Generic[R]):
    """A question; `R` is the type of the reply, or of each chunk when the handler streams."""

    @classmethod
    def reply_type(cls) -> Any:
        """The type between the brackets of `Request[...]`."""
        return _parameter(cls, Request)


@dataclass(frozen=True)
class TaskPolicy:
    """How a task is tried. Durations in seconds."""

    max_attempts: int = 4
    """Attempts before the task becomes a dead letter; 1 never retries."""

    time_limit: float = 300.0
    """Seconds one attempt may run; longer decides the task `failed`."""

    priority: str = "normal"
    """`high`, `normal` or `low`, unless `submit` says otherwise."""

    backoff: float = 0.2
    """Delay before the second attempt; doubles with each further one."""

    max_backoff: float = 30.0
    """The longest delay between attempts."""

    limits: tuple[Limit, ...] = ()
    """Bounds on how many run and start, over all workers on all hosts."""

    def delay_after(self, attempt: int) -> float:
        """Seconds to wait after `attempt` (from 1) failed."""
        return min(self.max_backoff, self.backoff * 2.0 ** (attempt - 1))


class Task(Message, Generic[R]):
    """Work that must not be lost; `R` is the type of the result.

    Class keywords set the policy: `class Review(Task[Report], max_attempts=2, time_limit=60): ...`.
    """

    _policy: ClassVar[TaskPolicy] = TaskPolicy()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        chosen = {key: kwargs.pop(key) for key in _POLICY_KEYS if key in kwargs}
        super().__init_subclass__(**kwargs)
        if chosen:
            inherited = {key: getattr(cls._policy, key) for key in _POLICY_KEYS}
            chosen["limits"] = tuple(chosen.get("limits", inherited["limits"]))
            cls._policy = _checked(cls, TaskPolicy(**{**inherited, **chosen}))

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Now the fields are known."""
        for limit in cls._policy.limits:
            field = limit.key.partition(".")[0]
            if field and field not in cls.model_fields and not hasattr(cls, field):
                known = ", ".join(cls.model_fields) or "none"
                raise DefinitionError(cls.__name__, f"limit {str(limit)!r}: it has no {field!r}; its fields: {known}")

    @classmethod
    def result_type(cls) -> Any:
        """The type between the brackets of `Task[...]`."""
        return _parameter(cls, Task)

    @classmethod
    def policy(cls) -> TaskPolicy:
        return cls._policy


class Prompt(Request[str]):
    """Plain text that wants an answer: what `agentmesh ask AGENT "text"` and foreign clients send."""

    text: str


class Text(Event):
    """Plain text that wants none: what `agentmesh tell AGENT "text"` sends."""

    text: str


class Terminated(Event):
    """A replica of a watched agent has ended for good: see `Client.watch`."""

    agent: str
    replica: int = 0
    """0: the agent was not there when the watch began."""
    node: str = ""
    reason: str = ""
    left: int = 0
    """Replicas of the agent that there still were."""


def wire_name(message_type: type[Message]) -> str:
    """The name of a message type on the wire."""
    return message_type._wire_name


def untyped(base: type[M], kind: str, content: Mapping[str, Any], **keywords: Any) -> M:
    """A message of a type that only the receiver knows; the receiver checks the fields.

    Args:
        base: `Event`, `Request[Any]` or `Task[Any]`.
        kind: Its name on the wire.
        content: Its fields.
        keywords: Of the class, such as `durable`.

    Raises:
        InvalidNameError: No message can be called that.
    """
    made: type[M] = _untyped(base, token("message type", kind), tuple(keywords.items()))
    return made.model_validate(content)


@lru_cache(maxsize=256)
def _untyped(base: type[M], kind: str, keywords: tuple[tuple[str, Any], ...]) -> type[M]:
    any_field = ConfigDict(extra="allow")
    more = {"name": kind, **dict(keywords)}
    made: type[M] = new_class(kind, (base,), more, lambda body: body.update(model_config=any_field))
    return made


def schema(kind: Any) -> dict[str, Any]:
    """JSON Schema of a message class, or of any reply or result type."""
    return dict(adapter(kind).json_schema())


_POLICY_KEYS = ("max_attempts", "time_limit", "priority", "backoff", "max_backoff", "limits")


def _checked(cls: type, policy: TaskPolicy) -> TaskPolicy:
    if policy.max_attempts < 1:
        raise DefinitionError(cls.__name__, f"max_attempts must be 1 or more, not {policy.max_attempts}")
    if policy.time_limit <= 0:
        raise DefinitionError(cls.__name__, f"time_limit must be more than 0 seconds, not {policy.time_limit}")
    if policy.priority not in PRIORITIES:
        raise DefinitionError(cls.__name__, f"priority must be one of {', '.join(PRIORITIES)}, not {policy.priority!r}")
    if policy.backoff < 0 or policy.max_backoff < policy.backoff:
        raise DefinitionError(cls.__name__, "backoff must be 0 or more, and max_backoff at least backoff")
    rules("task", cls.__name__, policy.limits)
    return policy


@cache
def _parameter(cls: type[BaseModel], base: type[BaseModel]) -> Any:
    """What `cls` put between the brackets of `base[...]`, found on its nearest ancestor that says so."""
    for ancestor in cls.__mro__:
        generic = getattr(ancestor, "__pydantic_generic_metadata__", None)
        if generic and generic["origin"] is base and generic["args"]:
            argument = generic["args"][0]
            if not isinstance(argument, typing.TypeVar):
                return argument
    raise DefinitionError(cls.__name__, f"say what comes back: class {cls.__name__}({base.__name__}[SomeType])")
