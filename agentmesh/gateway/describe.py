"""What a route says about itself, for `/openapi.json` and `/docs`.

    @operation(tags=["agents"], body=AskBody, reply=AskReply, errors=(404, 504))
    async def ask(request: Request) -> Response:
        '''Ask an agent and wait for its reply.'''

The first line of the docstring is the summary, the rest the description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE = "agentmesh_operation"


@dataclass(frozen=True)
class Operation:
    """What is not in the route itself."""

    tags: Sequence[str] = ()
    body: type[BaseModel] | None = None
    """What is sent as JSON."""
    text: bool = False
    """The body may be plain text, too."""
    reply: type[BaseModel] | Mapping[str, Any] | None = None
    """What is sent back: a model, or a JSON Schema."""
    media: str = "application/json"
    """What is sent back is."""
    status: int = 200
    query: Mapping[str, str] = field(default_factory=dict)
    """Parameters behind the `?`, with what each is."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Header fields that change something, with what each is."""
    errors: Sequence[int] = ()
    """Statuses of errors beside those that any request may get."""
    example: Any = None
    """A body that works."""
    public: bool = False
    """No key is needed."""


def operation(**says: Any) -> Callable[[F], F]:
    """See the module; the arguments are the fields of `Operation`."""

    def note(endpoint: F) -> F:
        setattr(endpoint, _ATTRIBUTE, Operation(**says))
        return endpoint

    return note


def operation_of(endpoint: Any) -> Operation:
    """What was said about an endpoint; nothing, if nothing was."""
    found: Operation = getattr(endpoint, _ATTRIBUTE, Operation())
    return found
