"""How an agent is declared: the `Agent` base class, `@handler`, and the behaviour compiled from them.

Everything that can be wrong with a declaration is found when the class is made, with a `DefinitionError` that says
what to change. Nothing is looked up by name while messages flow: a `Behaviour` maps wire names to handlers.
"""

from __future__ import annotations

import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, overload

from agentmesh.client import Client
from agentmesh.errors import DefinitionError, InvalidNameError
from agentmesh.mailbox import Mailbox, Overflow
from agentmesh.memory import Memory
from agentmesh.messages import Event, Message, Request, Task, schema, wire_name
from agentmesh.subjects import token
from agentmesh.tooling import ToolClient

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__agentmesh_handler__"

_TAKEN = ("name", "mesh", "memory", "tools", "on_start", "on_stop", "on_failure", "remark")
"""Attributes of an agent that are no handlers."""

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

RESTART_TYPES = ("permanent", "transient", "temporary")


@overload
def handler(method: F) -> F: ...
@overload
def handler(*, topic: str) -> Callable[[F], F]: ...
def handler(method: F | None = None, *, topic: str = "") -> F | Callable[[F], F]:
    """Mark a method of an `Agent` as the handler of the message type its first parameter is annotated with.

    Args:
        method: The method, when used without brackets.
        topic: Also receive this event from a topic; `*` stands for one token, a final `>` for the rest. Each agent
            receives a published event once, whatever the number of its replicas.
    """

    def mark(function: F) -> F:
        setattr(function, _MARK, topic)
        return function

    return mark if method is None else mark(method)


@dataclass(frozen=True)
class Handler:
    """One compiled handler."""

    message_type: type[Message]
    kind: str
    """`event`, `request`, `stream` or `task`."""
    method: str
    takes_context: bool
    reply_type: Any = None
    """The declared reply, chunk or result type; None for events."""
    topic: str = ""

    def call(self, agent: Agent, message: Message, context: Any) -> Any:
        """Call the method; returns its coroutine, or its async generator if it streams."""
        method = getattr(agent, self.method)
        return method(message, context) if self.takes_context else method(message)


@dataclass(frozen=True)
class Behaviour:
    """What an agent class does with messages."""

    name: str
    description: str
    handlers: dict[str, Handler] = field(default_factory=dict)
    """By wire name of the message."""

    @property
    def tasks(self) -> dict[str, type[Task[Any]]]:
        """Task types by wire name."""
        return {
            name: typing.cast("type[Task[Any]]", entry.message_type)
            for name, entry in self.handlers.items()
            if entry.kind == "task"
        }

    @property
    def topics(self) -> list[str]:
        """Topic patterns that handlers listen on, each once."""
        return list(dict.fromkeys(entry.topic for entry in self.handlers.values() if entry.topic))

    @property
    def durable_events(self) -> bool:
        """Whether any handled event is kept in the durable mailbox."""
        return any(issubclass(h.message_type, Event) and h.message_type.durable for h in self.handlers.values())

    def describe(self) -> list[dict[str, Any]]:
        """Name, kind, schemas and topic of each message, for the registry."""
        return [
            {
                "name": name,
                "kind": entry.kind,
                "schema": schema(entry.message_type),
                "reply_schema": None if entry.kind == "event" else schema(entry.reply_type),
                "topic": entry.topic,
            }
            for name, entry in self.handlers.items()
        ]


class Agent:
    """An actor: private state, one message at a time, addressed by name.

    Subclass it, mark methods with `@handler`, and let a mesh `spawn` it. The first paragraph of the docstring is the
    description others see. `self.name`, `self.mesh`, `self.memory` and `self.tools` are there from `on_start` on, not
    in `__init__`.
    """

    name: str = ""
    """The agent's address; by default the class name in lower-case words joined by hyphens."""

    concurrency: ClassVar[int] = 1
    """Messages and tasks handled at the same time. With more than 1, guard state that spans an `await`."""

    prefetch: ClassVar[int] = 0
    """Tasks taken from the queue beyond `concurrency`, for many short tasks; they are late if this process dies."""

    mailbox_size: ClassVar[int] = 1024
    """Messages that may wait."""

    overflow: ClassVar[Overflow] = "reject"
    """What happens to one more: `reject` (the sender is told), `drop_oldest` or `block`."""

    restart: ClassVar[str] = "permanent"
    """When its supervisor restarts it: `permanent` always, `transient` after a failure, `temporary` never."""

    quarantine_after: ClassVar[int] = 3
    """How often an event with the same content may end the agent before it is refused for an hour; 0: never refused."""

    mesh: Client
    """The mesh as this agent sees it: tell, ask, stream, publish, submit, map."""
    memory: Memory
    """Durable records, in a namespace named like the agent."""
    tools: ToolClient
    """Calls tools, by name or by function."""

    _behaviour: ClassVar[Behaviour]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._behaviour = _compile(cls)

    async def on_start(self) -> None:
        """Called before the first message, and again after each restart. An error here counts as a failure."""

    async def on_stop(self) -> None:
        """Called after the last message and before a restart, for at most 5 seconds; not when the agent is killed."""

    def remark(self) -> str:
        """One line about how it is doing, such as what it cannot reach; `agentmesh ps` shows it. Must not block."""
        return ""

    async def on_failure(self, error: BaseException, message: object) -> None:
        """Called on the failed instance before `on_stop`; `message` is the event whose handler raised. At most 5 s."""


def behaviour(agent: type[Agent]) -> Behaviour:
    """The compiled behaviour of an agent class.

    Raises:
        DefinitionError: It is something else, such as an instance.
    """
    if not (isinstance(agent, type) and issubclass(agent, Agent)) or agent is Agent:
        raise DefinitionError(
            f"{agent!r:.80}",
            "pass a subclass of Agent, and its constructor's arguments beside it: spawn(Greeter, 'hi')",
        )
    return agent._behaviour


def check_settings(
    where: str, concurrency: int, prefetch: int, mailbox_size: int, overflow: Overflow, restart: str
) -> None:
    """Raise DefinitionError for settings that cannot work."""
    if concurrency < 1:
        raise DefinitionError(where, f"concurrency must be 1 or more, not {concurrency}")
    if prefetch < 0:
        raise DefinitionError(where, f"prefetch must be 0 or more, not {prefetch}")
    if restart not in RESTART_TYPES:
        raise DefinitionError(where, f"restart must be one of {', '.join(RESTART_TYPES)}, not {restart!r}")
    try:
        Mailbox(mailbox_size, overflow)
    except DefinitionError as error:
        raise DefinitionError(where, error.problem) from None


def default_name(agent: type[Agent]) -> str:
    """`CodeReviewer` -> `code-reviewer`, unless the class sets `name`."""
    return (
        agent.__dict__.get("name")
        or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", agent.__name__).lower()
    )


def _compile(cls: type[Agent]) -> Behaviour:
    check_settings(cls.__name__, cls.concurrency, cls.prefetch, cls.mailbox_size, cls.overflow, cls.restart)
    try:
        name = token("agent", default_name(cls))
    except InvalidNameError as error:
        raise DefinitionError(cls.__name__, str(error)) from error
    handlers: dict[str, Handler] = {}
    for method_name, function in _marked(cls).items():
        entry = _inherited(cls, method_name, function) or _handler(cls, method_name, function)
        key = wire_name(entry.message_type)
        if key in handlers:
            raise DefinitionError(
                f"{cls.__name__}.{method_name}",
                f"{handlers[key].method} already handles {key}; one handler per message type",
            )
        handlers[key] = entry
    return Behaviour(
        name, (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ") if cls.__doc__ else "", handlers
    )


def _marked(cls: type[Agent]) -> dict[str, Callable[..., Any]]:
    """Marked methods, in order of declaration, base classes first; an override without the mark is no handler."""
    names = dict.fromkeys(
        name for base in reversed(cls.__mro__) for name, value in vars(base).items() if hasattr(value, _MARK)
    )
    found = {name: getattr(cls, name) for name in names}
    return {name: function for name, function in found.items() if hasattr(function, _MARK)}


def _inherited(cls: type[Agent], method: str, function: Callable[..., Any]) -> Handler | None:
    """The handler as a base class compiled it: its annotations may name what only existed where that was declared."""
    for base in cls.__mro__[1:]:
        if issubclass(base, Agent) and base is not Agent and vars(base).get(method) is function:
            return next((entry for entry in base._behaviour.handlers.values() if entry.method == method), None)
    return None


def _handler(cls: type[Agent], method: str, function: Callable[..., Any]) -> Handler:
    where = f"{cls.__name__}.{method}"
    streams = inspect.isasyncgenfunction(function)
    if not streams and not inspect.iscoroutinefunction(function):
        raise DefinitionError(
            where, "a handler must be 'async def'; run blocking work with asyncio.to_thread or as a tool"
        )
    if method in _TAKEN:
        raise DefinitionError(where, f"call it something else: {method!r} is an attribute of every agent")
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if not 1 <= len(parameters) <= 2 or any(p.kind not in _BY_POSITION for p in parameters):
        raise DefinitionError(where, "a handler takes the message and, if wanted, the context: (self, message, ctx)")
    hints = _hints(cls, where, function)
    message_type = hints.get(parameters[0].name)
    if not (isinstance(message_type, type) and issubclass(message_type, (Event, Request, Task))):
        raise DefinitionError(
            where,
            f"annotate {parameters[0].name!r} with the Event, Request or Task class it handles (got {message_type!r})",
        )
    topic = getattr(function, _MARK)
    if topic and not issubclass(message_type, Event):
        raise DefinitionError(where, "only an Event can come from a topic")
    if issubclass(message_type, Event) and message_type.durable and topic:
        raise DefinitionError(where, "a durable event is told to one agent; it cannot come from a topic")
    returned = hints.get("return", inspect.Signature.empty)
    kind, reply = _kind_and_reply(where, message_type, streams, returned)
    return Handler(message_type, kind, method, len(parameters) == 2, reply, topic)


def _hints(cls: type[Agent], where: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations, evaluated; also those that name classes local to the function that declares the agent."""
    frame = inspect.currentframe()
    names: dict[str, Any] = {}
    while frame is not None:
        try:
            return typing.get_type_hints(function, localns=names)
        except NameError:
            frame = frame.f_back
            names = {**frame.f_locals} if frame is not None else names
        except (TypeError, AttributeError, SyntaxError) as error:
            raise DefinitionError(where, f"an annotation cannot be evaluated: {error}") from error
    raise DefinitionError(
        where, "an annotation names something that is not defined (yet); define messages before the agent"
    )


def _kind_and_reply(where: str, message_type: type[Message], streams: bool, returned: Any) -> tuple[str, Any]:
    if issubclass(message_type, Event):
        if streams or returned not in (inspect.Signature.empty, None, type(None)):
            raise DefinitionError(where, f"{message_type.__name__} is an Event: nobody answers, so return nothing")
        return "event", None
    promised = _promise(message_type)
    if streams and issubclass(message_type, Task):
        raise DefinitionError(where, "a task returns one result; send chunks with ctx.chunk(...)")
    if returned is inspect.Signature.empty:
        raise DefinitionError(where, f"annotate what it returns: {message_type.__name__} promises {_show(promised)}")
    given = returned
    if streams:
        arguments = typing.get_args(returned)
        origin = typing.get_origin(returned)
        if origin not in (collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable):
            raise DefinitionError(where, f"a streaming handler returns AsyncIterator[{_show(promised)}]")
        given = arguments[0]
    if not _fits(given, promised):
        raise DefinitionError(where, f"returns {_show(given)}, but {message_type.__name__} promises {_show(promised)}")
    return ("stream" if streams else "task" if issubclass(message_type, Task) else "request"), promised


def _promise(message_type: type[Message]) -> Any:
    if issubclass(message_type, Request):
        return message_type.reply_type()
    return message_type.result_type() if issubclass(message_type, Task) else None


def _fits(given: Any, promised: Any) -> bool:
    """Whether a value annotated `given` is one annotated `promised`; the type checker has the last word."""
    given, promised = (type(None) if kind is None else kind for kind in (given, promised))
    if given == promised or promised is Any or given is Any:
        return True
    if isinstance(given, type) and isinstance(promised, type):
        return issubclass(given, promised)
    members = typing.get_args(promised) if typing.get_origin(promised) in (typing.Union, types.UnionType) else ()
    if members:
        parts = typing.get_args(given) if typing.get_origin(given) in (typing.Union, types.UnionType) else (given,)
        return all(any(_fits(part, member) for member in members) for part in parts)
    return typing.get_origin(given) is not None and typing.get_origin(given) == promised


def _show(kind: Any) -> str:
    return (
        "None"
        if kind is type(None)
        else kind.__name__
        if isinstance(kind, type) and not typing.get_args(kind)
        else str(kind)
    )
