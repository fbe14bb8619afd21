"""The subject grammar: every name is checked, in one place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.errors import InvalidNameError
from agentmesh.subjects import Subjects, token
from tests.core.hostile import TOKENS

GOOD = Subjects("acme")

BUILDERS: dict[str, Callable[[str], object]] = {
    "tenant": Subjects,
    "mailbox": GOOD.mailbox,
    "mailbox group": GOOD.mailbox_group,
    "durable mailbox": GOOD.durable_mailbox,
    "topic": GOOD.topic,
    "task queue": lambda name: GOOD.tasks(name, "normal"),
    "priority": lambda name: GOOD.tasks("a", name),
    "schedule": GOOD.schedule,
    "result": GOOD.result,
    "dead letter": GOOD.dead,
    "idempotency key": GOOD.once,
    "attempts": GOOD.attempts,
    "budget": GOOD.budget,
    "stream": GOOD.stream,
    "live stream": GOOD.live_stream,
    "control": GOOD.control,
    "node": GOOD.node_control,
    "memory": GOOD.memory,
    "tool": GOOD.tool,
    "task consumer": lambda name: GOOD.task_consumer(name, "high"),
    "mailbox consumer": GOOD.mailbox_consumer,
}


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", TOKENS)
def test_g1_a_hostile_name_is_refused_by_every_subject(builder: str, name: str) -> None:
    if builder == "topic" and name == "a.b":
        return  # topics may have several tokens
    with pytest.raises(InvalidNameError):
        BUILDERS[builder](name)


@given(st.text(max_size=80))
def test_whatever_is_accepted_is_one_token_of_safe_characters(name: str) -> None:
    try:
        accepted = token("agent", name)
    except InvalidNameError:
        return
    assert accepted.isascii()
    assert accepted.replace("_", "").replace("-", "").isalnum()
    assert 1 <= len(accepted) <= 64


@pytest.mark.parametrize("pattern", ["a", "a.*", "*.b", "a.>", ">", "a.*.c.>"])
def test_a_topic_pattern_may_have_wildcards(pattern: str) -> None:
    assert GOOD.topic_pattern(pattern) == f"ai.agent.topic.acme.{pattern}"


@pytest.mark.parametrize("pattern", ["", ">.a", "a.>.b", "a..b", "a*", "a>", "a b", "*\n"])
def test_a_malformed_topic_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidNameError):
        GOOD.topic_pattern(pattern)


def test_consumer_names_of_different_pairs_never_collide() -> None:
    assert Subjects("a-b").mailbox_consumer("c") != Subjects("a").mailbox_consumer("b-c")
