"""Tokens: words with the space before them, long words in pieces. Joined again they are the text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from agentmesh.chat import ChatMessage

PIECE = 6
"""Characters of a piece: of English words about three in four are one token."""

PER_MESSAGE = 3
"""Tokens that mark the beginning, the role and the end of a message."""

_WORD = re.compile(r"\s*(?:[^\W_]+|[^\w\s]|_)|\s+")


def tokenize(text: str) -> list[str]:
    """The tokens of a text; `"".join` of them is the text."""
    found: list[str] = []
    for word in _WORD.findall(text):
        bare = word.lstrip()
        if len(bare) <= PIECE:
            found.append(word)
            continue
        space = len(word) - len(bare)
        found.append(word[: space + PIECE])
        found += [word[start : start + PIECE] for start in range(space + PIECE, len(word), PIECE)]
    return found


def count_tokens(text: str) -> int:
    """How many tokens the text has."""
    count = 0
    for word in _WORD.finditer(text):
        size = len(word.group().lstrip())
        count += max(1, -(-size // PIECE))
    return count


def count_messages(messages: Iterable[ChatMessage]) -> int:
    """Tokens of a conversation, as it is sent to a model."""
    return sum(PER_MESSAGE + count_tokens(message.content) for message in messages)
