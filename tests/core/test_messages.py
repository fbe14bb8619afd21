"""Messages: the type states the promise, and mistakes are found when the class is made."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from agentmesh.errors import DefinitionError
from agentmesh.messages import Event, Prompt, Request, Task, TaskPolicy, schema, wire_name


class Summarise(Request[list[str]]):
    text: str


class Review(Task[int], max_attempts=2, priority="high"):
    path: str


class UrgentReview(Review, time_limit=5.0): ...


class Renamed(Event, name="renamed-event", durable=True): ...


def test_the_reply_type_is_part_of_the_request() -> None:
    assert Summarise.reply_type() == list[str]
    assert Prompt.reply_type() is str


def test_a_task_policy_is_inherited_and_overridden_by_keyword() -> None:
    assert Review.policy() == TaskPolicy(max_attempts=2, priority="high")
    assert UrgentReview.policy() == TaskPolicy(max_attempts=2, priority="high", time_limit=5.0)
    assert UrgentReview.result_type() is int


def test_a_wire_name_is_the_class_name_unless_given() -> None:
    assert wire_name(Summarise) == "Summarise"
    assert wire_name(Renamed) == "renamed-event"
    assert Renamed.durable
    assert not Event.durable


def test_messages_are_immutable_and_refuse_unknown_fields() -> None:
    message = Summarise(text="a")
    with pytest.raises(ValidationError):
        message.text = "b"
    with pytest.raises(ValidationError, match="txt"):
        Summarise(text="a", txt="b")  # type: ignore[call-arg]


def test_a_request_without_a_reply_type_says_what_to_write() -> None:
    class Bare(Request):  # type: ignore[type-arg]
        text: str

    with pytest.raises(DefinitionError, match=r"class Bare\(Request\[SomeType\]\)"):
        Bare.reply_type()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"time_limit": 0}, "time_limit"),
        ({"priority": "urgent"}, "high, normal, low"),
        ({"backoff": 5.0, "max_backoff": 1.0}, "max_backoff"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_when_the_class_is_made(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem):
        type("Bad", (Task[int],), {"__module__": __name__}, **settings)


def test_delays_double_up_to_the_limit() -> None:
    policy = TaskPolicy(backoff=0.5, max_backoff=3.0)
    assert [policy.delay_after(attempt) for attempt in (1, 2, 3, 4, 9)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_schema_names_the_fields() -> None:
    assert schema(Summarise)["required"] == ["text"]
    assert schema(list[str])["type"] == "array"
