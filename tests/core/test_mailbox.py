"""The mailbox: bounded, in order, and clear about what does not fit."""

from __future__ import annotations

import pytest

from agentmesh.errors import DefinitionError
from agentmesh.mailbox import WAITING_FACTOR, Mailbox, Overflow


def test_a_full_mailbox_refuses_the_newest() -> None:
    mailbox: Mailbox[int] = Mailbox(2)
    assert [mailbox.put(n) for n in (1, 2, 3)] == [(True, None), (True, None), (False, 3)]
    assert mailbox.clear() == [1, 2]


def test_drop_oldest_makes_room_and_says_what_it_dropped() -> None:
    mailbox: Mailbox[int] = Mailbox(2, "drop_oldest")
    assert [mailbox.put(n) for n in (1, 2, 3)] == [(True, None), (True, None), (True, 1)]
    assert mailbox.clear() == [2, 3]


def test_block_keeps_the_order_and_says_when_one_comes_inside() -> None:
    mailbox: Mailbox[int] = Mailbox(1, "block")
    assert [mailbox.put(n) for n in (1, 2, 3)] == [(True, None), (False, None), (False, None)]
    assert [mailbox.pop() for _ in range(3)] == [(1, 2), (2, 3), (3, None)]


def test_block_is_bounded_too() -> None:
    mailbox: Mailbox[int] = Mailbox(1, "block")
    for n in range(1 + WAITING_FACTOR):
        assert mailbox.put(n)[1] is None
    assert mailbox.put(99) == (False, 99)
    assert len(mailbox) == 1 + WAITING_FACTOR


@pytest.mark.parametrize("overflow", ["reject", "drop_oldest", "block"])
def test_messages_leave_in_the_order_they_came(overflow: Overflow) -> None:
    mailbox: Mailbox[int] = Mailbox(100, overflow)
    for n in range(50):
        mailbox.put(n)
    assert [mailbox.pop()[0] for _ in range(50)] == list(range(50))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(DefinitionError, match="capacity"):
        Mailbox(0)
    with pytest.raises(DefinitionError, match="reject, drop_oldest, block"):
        Mailbox(1, "explode")  # type: ignore[arg-type]
