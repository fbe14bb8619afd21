"""The relay: conversations are answered, whatever happens to the worker, and every run has an end."""

from __future__ import annotations

import pytest

from tests.chat.agents import tokens
from tests.chat.conftest import Door, text_of


@pytest.mark.seed("D15", "D13")
async def test_a_message_is_answered_token_by_token(door: Door) -> None:
    said = await door.say("tokens=20", conversation_id="c1")

    events = await door.read(said["stream"])

    assert text_of([event.chunk for event in events if event.name == "message"]) == "".join(tokens(20))
    assert events[-1].name == "end"
