"""What is recorded can be read and followed, and never harms what it is about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentmesh import happenings
from agentmesh.broker import EmbeddedBroker
from agentmesh.errors import InvalidNameError
from agentmesh.ids import new_id
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import MAX_BODY
from agentmesh.transport import Transport, TransportOptions


@pytest.fixture
async def transport(nats_server: EmbeddedBroker) -> AsyncIterator[Transport]:
    async with await Transport.connect(TransportOptions(url=nats_server.url)) as connected:
        yield connected


@pytest.fixture
def subjects() -> Subjects:
    return Subjects(f"t-{new_id()}")


async def test_what_is_recorded_is_read_by_kind_and_name_oldest_first(transport: Transport, subjects: Subjects) -> None:
    for number in range(3):
        assert await happenings.record(transport, subjects, "crash", "greeter", {"number": number})
    assert await happenings.record(transport, subjects, "failover", "lease", {"to": "b"})

    crashes = await happenings.recent(transport, subjects, kind="crash")
    last = await happenings.recent(transport, subjects, limit=1)

    assert [one.document["number"] for one in crashes] == [0, 1, 2]
    assert {one.name for one in crashes} == {"greeter"}
    assert [(one.kind, one.name, one.document) for one in last] == [("failover", "lease", {"to": "b"})]
    assert await happenings.recent(transport, subjects, name="nobody") == []
    assert await happenings.recent(transport, Subjects(f"t-{new_id()}")) == []


async def test_a_follower_sees_the_past_and_then_each_as_it_happens(transport: Transport, subjects: Subjects) -> None:
    await happenings.record(transport, subjects, "crash", "a", {"n": 1})
    following = happenings.follow(transport, subjects)

    async with asyncio.timeout(5):
        assert (await anext(following)).document == {"n": 1}
        coming = asyncio.ensure_future(anext(following))
        await happenings.record(transport, subjects, "crash", "b", {"n": 2})
        assert (await coming).document == {"n": 2}
    await following.aclose()


async def test_one_fact_told_twice_with_the_same_id_is_kept_once(transport: Transport, subjects: Subjects) -> None:
    for _ in range(2):
        assert await happenings.record(transport, subjects, "terminated", "a", {}, msg_id="a-1")

    assert len(await happenings.recent(transport, subjects)) == 1


async def test_what_cannot_be_kept_is_said_and_not_raised(transport: Transport, subjects: Subjects) -> None:
    assert not await happenings.record(transport, subjects, "crash", "a", {"text": "x" * MAX_BODY})
    assert await happenings.recent(transport, subjects) == []
    with pytest.raises(InvalidNameError):
        await happenings.record(transport, subjects, "crash", "a.b", {})
