"""What routes do with a request beside answering it: read its model, notice when the caller goes, pass on its ids."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from agentmesh.codes import ErrorCode
from agentmesh.errors import HttpError
from agentmesh.gateway.body import check_media_type, media_type, read_object
from agentmesh.gateway.errors import refused
from agentmesh.gateway.gateway import CALL, Call, Caller

T = TypeVar("T")
B = TypeVar("B", bound="Body")

CUSTOM = "x-custom-"


class Body(BaseModel):
    """The body of a request: unknown fields are errors, so that a typo is noticed."""

    # No `use_attribute_docstrings`: `docs.py` reads the sources for them, once somebody asks for the document.
    model_config = ConfigDict(extra="forbid")

    tenant_id: str | None = None
    """May be repeated here; another one than the key's is refused."""


@dataclass(frozen=True)
class Meta:
    """Who and what a request is, as its header fields say; the fields of `common.v1.Meta`."""

    request_id: str
    trace_id: str = ""
    client_id: str = ""
    user_id: str = ""
    tenant_id: str = ""
    idempotency_key: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    """`X-Custom-Color: red` is `color`."""


def meta_of(request: Request, caller: Caller) -> Meta:
    """The meta data of a request. Its tenant is the caller's, whatever the request says."""
    call: Call = request.scope[CALL]
    return Meta(
        request_id=call.request_id,
        trace_id=call.trace_id,
        client_id=request.headers.get("x-client-id", ""),
        user_id=request.headers.get("x-user-id", ""),
        tenant_id=caller.tenant,
        idempotency_key=request.headers.get("idempotency-key", ""),
        labels={name.removeprefix(CUSTOM): value for name, value in request.headers.items() if name.startswith(CUSTOM)},
    )


async def read_model(request: Request, kind: type[B], caller: Caller, *, text: bool = False) -> B:
    """The body of a request as a model.

    Args:
        request: The request.
        kind: Its class.
        caller: Whose tenant the body may repeat.
        text: Plain text is the field `text`.

    Raises:
        HttpError: 400, it does not fit; says which fields. 403, it names another tenant. 415, it is something else.
    """
    if text and media_type(request) == "text/plain":
        document: dict[str, Any] = {"text": _decoded(await request.body())}
    else:
        check_media_type(request, "application/json", *(["text/plain"] if text else []))
        document = await read_object(request)
    try:
        model = kind.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from None
    caller.check_tenant(model.tenant_id)
    return model


def invalid(error: ValidationError) -> HttpError:
    """What is wrong with which fields; not what they hold."""
    problems = [
        {"field": ".".join(map(str, one["loc"])), "problem": one["msg"].removeprefix("Value error, ")}
        for one in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    first = problems[0]
    where = f"{first['field']}: " if first["field"] else ""
    return refused(ErrorCode.INVALID_ARGUMENT, f"{where}{first['problem']}", fields=problems[:20])


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work for as long as the caller is there; when it goes, the work is cancelled.

    The body must have been read.

    Raises:
        ClientDisconnect: The caller has gone.
    """
    loop = asyncio.get_running_loop()
    working = loop.create_task(work)
    leaving = loop.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def query_number(request: Request, name: str, *, least: float = 0.0) -> float | None:
    """A number behind the `?`; None if it is not there.

    Raises:
        HttpError: 400, it is no number, or too small.
    """
    given = request.query_params.get(name)
    if given is None:
        return None
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        raise refused(ErrorCode.INVALID_ARGUMENT, f"{name}={given[:40]!r}: expected a number of {least:g} or more")
    return number


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise refused(ErrorCode.INVALID_ARGUMENT, "the body is not UTF-8 text") from None
