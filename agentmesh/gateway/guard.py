"""The way of a request through the gateway: checked, counted, answered, and noted in the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentmesh.codes import ErrorCode
from agentmesh.errors import AgentMeshError, HttpError
from agentmesh.gateway.access import Access, check_head, headers_of, is_public
from agentmesh.gateway.body import Body
from agentmesh.gateway.errors import explained, openai_document, refused
from agentmesh.gateway.gateway import CALL, Call, Gateway, unauthenticated
from agentmesh.ids import new_id
from agentmesh.logs import about
from agentmesh.trace import continued

log = logging.getLogger("agentmesh.gateway")
access_log = logging.getLogger("agentmesh.gateway.access")

QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Asked by machines every few seconds; not worth a line."""

STOPPING = refused(ErrorCode.UNAVAILABLE, "the gateway stops, and there was no time for this", retry_after=5.0)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")


class Guard:
    """See the module. The one ASGI application the server knows; `app` has the routes."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway
        self._access = Access(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.monotonic()
        headers = headers_of(scope)
        call = scope[CALL] = _call(headers)
        call.path = scope["path"]
        options = self._gateway.options
        body = Body(scope, receive, limit=options.max_body, timeout=options.body_timeout)
        answer = Answer(send, {**_echoed(call, headers), **self._access.cors(headers)})
        try:
            await self._pass(scope, headers, call, body, answer)
        except asyncio.CancelledError:
            if not self._gateway.abandoned:
                raise
            await self._refuse(answer, call, STOPPING, body)
        except ClientDisconnect:
            answer.status = answer.status or 499
        except HttpError as error:
            await self._refuse(answer, call, error, body)
        except (AgentMeshError, HTTPException) as error:
            await self._refuse(answer, call, explained(error, debug=options.debug), body)
        except Exception as error:  # an edge: whatever it was, the caller gets an answer, and the log the trace
            log.exception("request %s failed", call.request_id)
            await self._refuse(answer, call, explained(error), body)
        finally:
            self._note(scope, call, answer.status, time.monotonic() - began)

    async def _pass(self, scope: Scope, headers: Mapping[str, str], call: Call, body: Body, answer: Answer) -> None:
        """All checks in order, then the route."""
        access = self._access
        check_head(scope)
        access.check_host(headers)
        if (allowed := access.preflight(scope, headers)) is not None:
            await answer.whole(204, allowed)
            return
        access.check_origin(headers)
        public = is_public(scope["path"])
        call.caller = access.authenticate(headers)
        if call.caller is None and not public:
            raise unauthenticated()
        if call.caller is not None:
            call.caller.check_tenant(headers.get("x-tenant-id"))
        body.check()
        counted = call.caller.usage.request() if call.caller and not public else contextlib.nullcontext()
        said = {"request_id": call.request_id, "tenant": call.caller.tenant if call.caller else self._gateway.tenant}
        with counted, continued(headers, trace_id=call.trace_id), about(**said), self._gateway.under_way():
            call.rejected = False
            await self._app(scope, body.receive, answer.send)

    async def _refuse(self, answer: Answer, call: Call, error: HttpError, body: Body) -> None:
        if answer.status:
            # It has begun: all that is left is to break it off, so that nobody takes it for complete.
            log.error("request %s broke off: %s", call.request_id, error)
            return
        if call.rejected:
            self._gateway.metrics.rejected(error.code)
        document = openai_document(error) if call.path.startswith("/v1/") else _document(error, call)
        headers = {"content-type": "application/json", **{k.lower(): v for k, v in error.headers.items()}}
        is_last = body.endless or error.status in (408, 413, 415, 431) or (error.status == 400 and call.rejected)
        if is_last:  # who sends such things may not know where they end
            headers["connection"] = "close"
        if is_last and body.pending:
            await answer.begin(error.status, headers, json.dumps(document, default=str).encode(), more=True)
            await body.linger()
            await answer.send({"type": "http.response.body", "body": b""})
        else:
            await answer.whole(error.status, headers, json.dumps(document, default=str).encode())

    def _note(self, scope: Scope, call: Call, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "(none)")
        self._gateway.metrics.request(f"{_method(scope)} {route}", status, seconds)
        if not self._gateway.options.access_log or scope["path"] in QUIET:
            return
        caller = call.caller
        who = f"{caller.name}@{caller.tenant}" if caller else "-"
        path, ms = quote(scope["path"][:200], safe="/"), round(seconds * 1000, 1)
        with about(request_id=call.request_id, route=route, status=status, ms=ms, caller=who):
            access_log.info("%s %s %d %.1f ms %s %s", _method(scope), path, status, ms, who, call.request_id)


class Answer:
    """What is sent back: every answer has the same header fields, whoever makes it."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self.status = 0
        """0: it has not begun."""
        self._send = send
        self._headers = {
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            **headers,
        }

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            there = {name.lower() for name, _ in message.get("headers", ())}
            added = {"cache-control": "no-store", **self._headers}
            message["headers"] = [
                *message.get("headers", ()),
                *((k.encode(), v.encode("latin-1")) for k, v in added.items() if k.encode() not in there),
            ]
        await self._send(message)

    async def begin(self, status: int, headers: Mapping[str, str], body: bytes, *, more: bool) -> None:
        """The head and a first part."""
        length = [] if more else [(b"content-length", str(len(body)).encode())]
        fields = [*((k.encode(), v.encode("latin-1", "replace")) for k, v in headers.items()), *length]
        await self.send({"type": "http.response.start", "status": status, "headers": fields})
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """All of it."""
        await self.begin(status, headers, body, more=False)


def _document(error: HttpError, call: Call) -> dict[str, Any]:
    return {
        "error": {
            "code": str(error.code),
            "message": error.message,
            "details": error.details,
            "request_id": call.request_id,
        }
    }


def _call(headers: Mapping[str, str]) -> Call:
    """A request with the ids its sender gave it, if they are good for a log; else with a new one."""
    request_id = headers.get("x-request-id") or headers.get("x-correlation-id") or ""
    trace_id = headers.get("x-trace-id", "")
    return Call(request_id if _ID.fullmatch(request_id) else new_id(), trace_id if _ID.fullmatch(trace_id) else "")


def _echoed(call: Call, headers: Mapping[str, str]) -> dict[str, str]:
    echoed = {"x-request-id": call.request_id}
    if call.trace_id:
        echoed["x-trace-id"] = call.trace_id
    if _ID.fullmatch(headers.get("x-correlation-id", "")):
        echoed["x-correlation-id"] = headers["x-correlation-id"]
    return echoed


def _method(scope: Scope) -> str:
    """The method, for counting: a caller may make up any."""
    method: str = scope["method"]
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "OTHER"
