"""Declaring agents: what can be wrong is found when the class is made, and the error says what to change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentmesh.agent import Agent, behaviour, default_name, handler
from agentmesh.context import Context
from agentmesh.errors import DefinitionError
from agentmesh.messages import Event, Prompt, Request, Task, Text


class Count(Task[int]):
    path: str


class Stored(Event, durable=True):
    n: int = 0


class MaybeName(Request[str | None]): ...


def test_names_are_lower_case_words_with_hyphens() -> None:
    class CodeReviewer(Agent): ...

    class HTTPGateway(Agent): ...

    class Custom(Agent):
        name = "front-desk"

    assert [default_name(cls) for cls in (CodeReviewer, HTTPGateway, Custom)] == [
        "code-reviewer",
        "http-gateway",
        "front-desk",
    ]


def test_handlers_are_chosen_by_annotation() -> None:
    class Worker(Agent):
        """Counts words.

        More text.
        """

        @handler
        async def heard(self, event: Text) -> None: ...

        @handler
        async def asked(self, request: Prompt, ctx: Context) -> str:
            return ctx.agent

        @handler
        async def count(self, task: Count) -> int:
            return 1

        @handler(topic="news.*")
        async def read(self, event: Event2) -> None: ...

    compiled = behaviour(Worker)
    assert compiled.description == "Counts words."
    assert {name: entry.kind for name, entry in compiled.handlers.items()} == {
        "Text": "event",
        "Prompt": "request",
        "Count": "task",
        "Event2": "event",
    }
    assert compiled.handlers["Prompt"].takes_context
    assert list(compiled.tasks) == ["Count"]
    assert compiled.topics == ["news.*"]


class Event2(Event): ...


def test_a_subclass_inherits_and_overrides_handlers() -> None:
    class Base(Agent):
        @handler
        async def asked(self, request: Prompt) -> str:
            return "base"

        @handler
        async def heard(self, event: Text) -> None: ...

    class Derived(Base):
        @handler
        async def asked(self, request: Prompt) -> str:
            return "derived"

    assert set(behaviour(Derived).handlers) == {"Prompt", "Text"}


def test_a_streaming_handler_is_recognised() -> None:
    class Streams(Agent):
        @handler
        async def asked(self, request: Prompt) -> AsyncIterator[str]:
            yield "a"

    assert behaviour(Streams).handlers["Prompt"].kind == "stream"


def test_a_reply_may_be_one_member_of_a_promised_union() -> None:
    class Names(Agent):
        @handler
        async def asked(self, request: MaybeName) -> str:
            return "a"

    assert behaviour(Names).handlers["MaybeName"].kind == "request"


def _not_async(self: Agent, request: Prompt) -> str:
    return ""


async def _wrong_reply(self: Agent, request: Prompt) -> int:
    return 1


async def _no_reply_annotation(self: Agent, request: Prompt):  # type: ignore[no-untyped-def]
    return ""


async def _not_a_message(self: Agent, request: str) -> str:
    return request


async def _event_with_reply(self: Agent, event: Text) -> str:
    return ""


async def _too_many(self: Agent, request: Prompt, ctx: Context, more: int) -> str:
    return ""


async def _streaming_task(self: Agent, task: Count) -> AsyncIterator[int]:
    yield 1


async def _wrong_chunks(self: Agent, request: Prompt) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (_not_async, "must be 'async def'"),
        (_wrong_reply, "returns int, but Prompt promises str"),
        (_no_reply_annotation, "annotate what it returns"),
        (_not_a_message, "annotate 'request' with the Event, Request or Task"),
        (_event_with_reply, "nobody answers"),
        (_too_many, r"\(self, message, ctx\)"),
        (_streaming_task, r"ctx\.chunk"),
        (_wrong_chunks, "returns int, but Prompt promises str"),
    ],
)
def test_a_handler_that_breaks_its_promise_is_refused(function: Any, problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem):
        type("Bad", (Agent,), {"asked": handler(function)})


def test_a_topic_only_carries_ordinary_events() -> None:
    async def asked(self: Agent, request: Prompt) -> str:
        return ""

    async def stored(self: Agent, event: Stored) -> None: ...

    for function in (asked, stored):
        with pytest.raises(DefinitionError, match="topic"):
            type("Bad", (Agent,), {"asked": handler(topic="a.b")(function)})


def test_two_handlers_for_one_message_are_refused() -> None:
    with pytest.raises(DefinitionError, match="one handler per message type"):

        class Twice(Agent):
            @handler
            async def first(self, event: Text) -> None: ...

            @handler
            async def second(self, event: Text) -> None: ...


@pytest.mark.parametrize(
    "settings",
    [{"concurrency": 0}, {"name": "a.b"}, {"mailbox_size": 0}, {"overflow": "x"}, {"restart": "x"}, {"prefetch": -1}],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        type("Bad", (Agent,), settings)


def test_the_description_for_the_registry_has_schemas() -> None:
    class Describes(Agent):
        @handler
        async def asked(self, request: Prompt) -> str:
            return ""

    (entry,) = behaviour(Describes).describe()
    assert entry["name"] == "Prompt"
    assert entry["schema"]["required"] == ["text"]
    assert entry["reply_schema"] == {"type": "string"}


def _made_in_a_function() -> type[Agent]:
    class Local(Request[int]):
        n: int

    class Base(Agent):
        @handler
        async def local(self, request: Local) -> int:
            return request.n

    return Base


def test_a_handler_is_inherited_although_its_annotations_name_what_only_existed_elsewhere() -> None:
    base = _made_in_a_function()

    class Derived(base):  # type: ignore[misc, valid-type]
        @handler
        async def asked(self, request: Prompt) -> str:
            return ""

    class Silent(Derived):
        async def asked(self, request: Prompt) -> str:  # no handler any more
            return ""

    assert set(behaviour(Derived).handlers) == {"Local", "Prompt"}
    assert set(behaviour(Silent).handlers) == {"Local"}


def test_a_name_that_is_not_defined_says_so() -> None:
    with pytest.raises(DefinitionError, match="not defined"):

        class Early(Agent):
            @handler
            async def asked(self, request: NotYet) -> str:  # type: ignore[name-defined]  # noqa: F821
                return ""


@pytest.mark.parametrize("name", ["mesh", "memory", "tools", "on_start"])
def test_a_handler_may_not_be_called_like_an_attribute_of_every_agent(name: str) -> None:
    async def asked(self: Agent, request: Prompt) -> str:
        return ""

    with pytest.raises(DefinitionError, match="call it something else"):
        type("Bad", (Agent,), {name: handler(asked)})


def test_a_handler_takes_its_context_by_position() -> None:
    async def asked(self: Agent, request: Prompt, *, ctx: Context) -> str:
        return ""

    with pytest.raises(DefinitionError, match=r"\(self, message, ctx\)"):
        type("Bad", (Agent,), {"asked": handler(asked)})
