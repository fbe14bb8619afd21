"""What there is to answer from: documents, the conversation, results of tools, and the question itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentmesh.agents.llm.backends.base import ModelCall
from agentmesh.agents.llm.backends.offline.rank import Piece, pieces_of
from agentmesh.agents.llm.backends.offline.text import sentences, tidied
from agentmesh.chat import ChatMessage

_INSTRUCTION = re.compile(
    r"^(?:you(?:'re| are| must| should| will| can| may| have)\b|your (?:task|job|role|goal|name)|answer\b|respond\b|"
    r"reply\b|do not\b|don't\b|never\b|always\b|be \w+|use (?:the|only|these)\b|if (?:you|the user)\b|act as\b|"
    r"please\b|keep (?:it|your|answers?)\b|only (?:answer|use|return)\b|return\b|output\b|think\b|write\b|"
    r"(?:here|below) (?:is|are)\b|based on\b|given the\b|context\s*:?\s*$|documents?\s*:?\s*$)",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:^|\n)\s*(?:question|query|user question|task|q)\s*:\s*(.+?)\s*(?:\n\s*(?:answer|a)\s*:?\s*)?$",
                    re.IGNORECASE | re.DOTALL)  # fmt: skip
_LABEL = re.compile(r"^(?:context|document|text|passage|article|background|source)s?\s*:\s*", re.IGNORECASE)
LONGEST_ASK = 4000
"""Characters of a question."""

LONGEST_ORDER = 120
"""Characters before the colon of an order such as `Summarise this: …`."""

_TEXT_KEYS = ("text", "content", "page_content", "body", "snippet", "passage", "value")
_TITLE_KEYS = ("title", "name", "source", "document_id", "id", "url")


@dataclass(frozen=True)
class Material:
    """A call, sorted."""

    ask: str
    """What is wanted: the question itself, or all of the last message."""
    said: list[ChatMessage]
    """The conversation before it, without system messages."""
    given: list[Piece]
    """Documents: of the context, system messages and the last message."""
    results: list[str]
    """What tools have answered since the last user message."""
    rounds: int
    """How often tools have been called since then."""

    @property
    def told(self) -> list[Piece]:
        """What the user said before."""
        return [piece for message in self.said if message.role == "user" for piece in pieces_of(message.content)]


def sort_out(call: ModelCall) -> Material:
    """What is asked, and what there is to answer it from."""
    messages = call.messages
    last = max((n for n, message in enumerate(messages) if message.role == "user"), default=len(messages) - 1)
    after = messages[last + 1 :]
    ask, rest = split_ask(tidied(messages[last].content))
    if len(ask) > LONGEST_ASK:  # no question, but a text without one
        ask, rest = ask[:LONGEST_ASK], f"{ask} {rest}"
    given = [*documents(call.context)]
    for message in messages:
        if message.role == "system":
            given += [piece for piece in pieces_of(tidied(message.content)) if not _INSTRUCTION.match(piece.text)]
    given += pieces_of(rest)
    return Material(
        ask=ask,
        said=[message for message in messages[:last] if message.role in ("user", "assistant")],
        given=given,
        results=[message.content for message in after if message.role == "tool"],
        rounds=sum(1 for message in after if message.role == "assistant" and message.tool_calls),
    )


def split_ask(text: str) -> tuple[str, str]:
    """The question or order in a message, and the text that comes with it."""
    marked = _ASKED.search(text)
    if marked is not None and marked.start() > 0:
        return marked[1].strip(), _LABEL.sub("", text[: marked.start()].strip())
    head, colon, tail = text.partition(": ") if ":\n" not in text[:LONGEST_ORDER] else text.partition(":\n")
    if colon and len(head) <= LONGEST_ORDER and len(tail.split()) >= 8 and "\n" not in head.strip():
        return head.strip(), tail.strip()
    parts = [part.strip() for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]
    if len(parts) > 1:
        short = min((parts[0], parts[-1]), key=len)
        asks = next((part for part in (parts[0], parts[-1]) if part.rstrip().endswith("?")), short)
        return asks, _LABEL.sub("", "\n\n".join(part for part in parts if part is not asks))
    whole = sentences(text)
    if len(whole) > 3:
        asks = next((one for one in (whole[-1], whole[0]) if one.rstrip().endswith("?")), "")
        if asks:
            return asks, " ".join(one for one in whole if one is not asks)
    return text.strip(), ""


def documents(context: Mapping[str, Any]) -> Iterator[Piece]:
    """The sentences of what was given as data."""
    for name, value in context.items():
        yield from _pieces(value, "" if name in (*_TEXT_KEYS, "documents", "context", "chunks", "passages") else name)


def plain(result: str) -> str:
    """A result of a tool as text."""
    try:
        return _plain(json.loads(result))
    except ValueError:
        return result.strip()


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        if len(value) == 1 and not isinstance(only := next(iter(value.values())), bool):
            return _plain(only)
        return ", ".join(f"{name}: {_plain(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return "; ".join(_plain(entry) for entry in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "nothing"}[value]
    return str(value)


def _pieces(value: Any, source: str) -> Iterator[Piece]:
    if isinstance(value, str):
        yield from pieces_of(value, source)
    elif isinstance(value, Mapping):
        text = next((value[key] for key in _TEXT_KEYS if isinstance(value.get(key), str)), None)
        if text is not None:
            title = next((str(value[key]) for key in _TITLE_KEYS if isinstance(value.get(key), str | int)), source)
            yield from pieces_of(text, title)
            return
        for name, entry in value.items():
            yield from _pieces(entry, name)
    elif isinstance(value, Sequence):
        for entry in value:
            yield from _pieces(entry, source)
    elif value is not None:
        yield Piece(f"{source}: {value}" if source else str(value))
