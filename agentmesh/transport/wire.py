"""Messages as they come, and the checks before bytes go: a mistake here would make the broker close the connection."""

from __future__ import annotations

import re
from collections.abc import Mapping

from agentmesh.errors import InvalidMessageError, InvalidSubjectError

MAX_SUBJECT = 512
HEADROOM = 1024
"""Bytes kept free below the broker's limit for what it adds itself."""

_TOKEN = r"[!-)+\-/-=?-~]+"  # printable ASCII without '*', '.', '>' and space
_SUBJECT = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*")
_HEADER_KEY = re.compile(r"[!-9;-~]+")


class Message:
    """One message as it came. `headers` is None without headers, a `ServerStatus` when the broker itself speaks."""

    __slots__ = ("data", "headers", "reply", "subject")

    def __init__(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        self.subject = subject
        self.data = data
        self.reply = reply
        self.headers = headers

    def __repr__(self) -> str:
        return f"Message({self.subject!r}, {len(self.data)} bytes)"


class ServerStatus(dict[str, str]):
    """Headers of a message with a status line, as only the broker sends it.

    A class of its own, so that a user's header called `Status` stays data.
    """

    @property
    def code(self) -> str:
        return self.get("Status", "")

    @property
    def description(self) -> str:
        return self.get("Description", "")


def is_no_responders(message: Message) -> bool:
    """Whether this is the broker's answer that nobody listens on the subject."""
    headers = message.headers
    return type(headers) is ServerStatus and headers.code == "503" and not message.data


def parse_headers(block: bytes) -> dict[str, str]:
    """Headers of a message; the last one wins where a name comes twice, so what the broker adds cannot be forged."""
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    headers: dict[str, str] = {}
    if len(first) > 8:  # "NATS/1.0 503 No Responders"
        headers = ServerStatus()
        headers["Status"], _, description = first[9:].partition(" ")
        if description:
            headers["Description"] = description
    for line in lines:
        if line:
            key, _, value = line.partition(":")
            headers[key] = value.strip()
    return headers


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """The header block of a message.

    Raises:
        InvalidMessageError: A name is not a header name, or a value contains a line break.
    """
    lines = ["NATS/1.0"]
    for key, value in headers.items():
        if _HEADER_KEY.fullmatch(key) is None:
            raise InvalidMessageError(f"{key!r} is not a header name: use printable ASCII without ':' and spaces")
        if "\r" in value or "\n" in value:
            raise InvalidMessageError(f"the value of header {key!r} contains a line break")
        lines.append(f"{key}: {value}")
    lines.append("\r\n")
    return "\r\n".join(lines).encode()


def check_subject(subject: str) -> None:
    """Raise InvalidSubjectError unless `subject` is one that a message can be sent to."""
    if len(subject) > MAX_SUBJECT or _SUBJECT.fullmatch(subject) is None:
        raise InvalidSubjectError(subject)


def check_pattern(subject: str) -> None:
    """Like `check_subject`, for subscribing: `*` as a whole token and a final `>` are allowed."""
    head = subject.removesuffix(">").removesuffix(".") if subject.endswith(".>") else subject
    if subject == ">":
        return
    if (
        len(subject) > MAX_SUBJECT
        or _SUBJECT.fullmatch(".".join(t if t != "*" else "x" for t in head.split("."))) is None
    ):
        raise InvalidSubjectError(subject)
