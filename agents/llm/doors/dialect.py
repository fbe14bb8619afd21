"""What a door needs of a dialect: to read requests and to write answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from agentmesh.agents.llm.doors.inquiry import Inquiry
from agentmesh.agents.llm.messages import LLMResponse

Headers = Mapping[str, str] | None


class Pieces(Protocol):
    """Writes the pieces of one streamed answer."""

    def text(self, index: int, text: str) -> bytes:
        """A piece of the text."""
        ...

    def last(self, index: int, response: LLMResponse) -> bytes:
        """The piece that ends it: how, and what it used."""
        ...


class Dialect(Protocol):
    """One way to write requests and answers."""

    content_type: str

    def document(self, data: bytes, headers: Headers) -> dict[str, Any]:
        """The fields of a request.

        Raises:
            ModelError: These bytes are none.
        """
        ...

    def meta(self, document: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
        """What comes back with every answer, `request_id` at least; of a request that is wrong, as far as it goes."""
        ...

    def inquiry(self, document: Mapping[str, Any], meta: Mapping[str, Any], headers: Headers) -> Inquiry:
        """The request.

        Raises:
            ModelError: It cannot be understood; says which field is wrong.
        """
        ...

    def whole(self, meta: Mapping[str, Any], response: LLMResponse, inquiry: Inquiry | None) -> bytes:
        """The one answer. `inquiry` is None if the request could not be understood."""
        ...

    def accepted(self, meta: Mapping[str, Any], job_id: str) -> bytes:
        """The answer to who asked for a job."""
        ...

    def pieces(self, meta: Mapping[str, Any], generation_id: str) -> Pieces:
        """For an answer in pieces."""
        ...
