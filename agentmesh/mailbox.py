"""The mailbox of an agent: bounded, first in first out, and it says what it does when it is full.

| overflow      | a message that does not fit                                                             |
| ------------- | --------------------------------------------------------------------------------------- |
| `reject`      | is refused; the sender is told                                                           |
| `drop_oldest` | takes the place of the oldest one, whose sender is told                                  |
| `block`       | waits outside, in order; a sender that asked for confirmation is held until it is inside |

`block` holds at most `WAITING_FACTOR` mailboxes of messages outside and refuses more: memory stays bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Literal, TypeVar, get_args

from agentmesh.errors import DefinitionError

T = TypeVar("T")

Overflow = Literal["reject", "drop_oldest", "block"]

WAITING_FACTOR = 16


class Mailbox(Generic[T]):
    """Messages of one agent, in order of arrival.

    Args:
        capacity: How many messages it holds, 1 or more.
        overflow: What happens to one more.
    """

    def __init__(self, capacity: int = 1024, overflow: Overflow = "reject") -> None:
        if capacity < 1:
            raise DefinitionError("mailbox", f"capacity must be 1 or more, not {capacity}")
        if overflow not in get_args(Overflow):
            raise DefinitionError(
                "mailbox", f"overflow must be one of {', '.join(get_args(Overflow))}, not {overflow!r}"
            )
        self.capacity = capacity
        self.overflow = overflow
        self._inside: deque[T] = deque()
        self._outside: deque[T] = deque()

    def __len__(self) -> int:
        """Messages that wait, those outside included."""
        return len(self._inside) + len(self._outside)

    def __iter__(self) -> Iterator[T]:
        """What waits, oldest first."""
        yield from self._inside
        yield from self._outside

    def put(self, message: T) -> tuple[bool, T | None]:
        """Take `message`.

        Returns:
            Whether `message` is inside now, and the message that was refused for it: `message` itself when it does not
            fit, the oldest one under `drop_oldest`, or None. `(False, None)` means it waits outside.
        """
        if len(self._inside) < self.capacity:
            self._inside.append(message)
            return True, None
        if self.overflow == "drop_oldest":
            dropped = self._inside.popleft()
            self._inside.append(message)
            return True, dropped
        if self.overflow == "block" and len(self._outside) < self.capacity * WAITING_FACTOR:
            self._outside.append(message)
            return False, None
        return False, message

    def put_always(self, message: T) -> None:
        """Take `message` even if that is one more than fits: for the few that the runtime itself sends."""
        self._inside.append(message)

    def pop(self) -> tuple[T, T | None]:
        """The oldest message, and the one that came inside in its place, if any. IndexError when empty."""
        message = self._inside.popleft()
        if not self._outside:
            return message, None
        admitted = self._outside.popleft()
        self._inside.append(admitted)
        return message, admitted

    def clear(self) -> list[T]:
        """Empty it and return what was there, oldest first."""
        left = [*self._inside, *self._outside]
        self._inside.clear()
        self._outside.clear()
        return left
