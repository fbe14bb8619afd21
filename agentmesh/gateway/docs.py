"""`/openapi.json` and `/docs`: what can be called here, made from the routes themselves."""

from __future__ import annotations

import ast
import base64
import hashlib
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from agentmesh.gateway.access import is_page
from agentmesh.gateway.describe import Operation, operation, operation_of
from agentmesh.gateway.gateway import Gateway
from agentmesh.version import __version__

MEANING = {
    400: "The request is wrong; says how.",
    401: "No key, or a wrong one.",
    403: "Not allowed with this key, or from this page.",
    404: "There is no such thing; says what may have been meant.",
    409: "It contradicts something that is already there.",
    412: "It is refused as things stand.",
    413: "The body is too large.",
    415: "The body is of another kind.",
    429: "Too much at once; `Retry-After` says when to try again.",
    500: "An agent, or the gateway, failed.",
    501: "It is not installed here.",
    503: "Not now; `Retry-After` says when to try again.",
    504: "It took too long.",
}
ALWAYS = (400, 401, 429, 500, 503)

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "details", "request_id"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "details": {"type": "object"},
                "request_id": {"type": "string"},
            },
        }
    },
}

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def routes(gateway: Gateway) -> list[BaseRoute]:
    """See the module."""
    page = files("agentmesh.gateway").joinpath("assets/docs.html").read_text(encoding="utf-8")
    policy = content_policy(page)
    documents: list[dict[str, Any]] = []

    @operation(tags=["about"], public=True, reply={"type": "object"})
    async def openapi(request: Request) -> Response:
        """This document."""
        if not documents:
            documents.append(document(request.scope["router"].routes, is_open=gateway.options.open))
        return JSONResponse(documents[0])

    @operation(tags=["about"], public=True, media="text/html")
    async def docs(request: Request) -> Response:
        """The same for people, to try it out."""
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return [Route("/openapi.json", openapi), Route("/docs", docs)]


def content_policy(page: str) -> str:
    """A Content-Security-Policy under which exactly the scripts inside a page run, and nothing is fetched elsewhere."""
    digests = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in _SCRIPT.findall(page))
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {scripts or 'none'}; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def document(all_routes: Iterable[BaseRoute], *, is_open: bool) -> dict[str, Any]:
    """The OpenAPI document of these routes.

    Args:
        all_routes: Of the gateway.
        is_open: No key is needed.
    """
    schemas: dict[str, Any] = {"Error": ERROR}
    paths: dict[str, dict[str, Any]] = {}
    for route in all_routes:
        if isinstance(route, Route) and route.include_in_schema and not is_page(route.path):
            path = _PARAMETER.sub(r"{\1}", route.path)
            paths.setdefault(path, {}).update(_operations(route, schemas))
    secured: list[dict[str, list[str]]] = [] if is_open else [{"token": []}, {"key": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "agentmesh", "version": __version__},
        "paths": paths,
        "security": secured,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operations(route: Route, schemas: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    says = operation_of(route.endpoint)
    text = inspect.cleandoc(route.endpoint.__doc__ or route.name)
    summary, _, description = text.partition("\n")
    for method in sorted((route.methods or set()) - {"HEAD"}):
        yield (
            method.lower(),
            {
                "operationId": _operation_id(method, route.path),
                "summary": summary,
                "description": " ".join(description.split()),
                "tags": list(says.tags),
                "parameters": list(_parameters(route, says)),
                **_body(says, schemas),
                "responses": _responses(says, schemas),
                **({"security": []} if says.public else {}),
            },
        )


def _operation_id(method: str, path: str) -> str:
    words = _PARAMETER.sub(r"by \1", path).lower()
    return "_".join(re.findall(r"[a-z0-9]+", f"{method.lower()} {words}"))


def _parameters(route: Route, says: Operation) -> Iterator[dict[str, Any]]:
    string = {"type": "string"}
    for name in _PARAMETER.findall(route.path):
        yield {"name": name, "in": "path", "required": True, "schema": string}
    for where, those in (("query", says.query), ("header", says.headers)):
        for name, description in those.items():
            yield {"name": name, "in": where, "description": description, "schema": string}


def _body(says: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    if says.body is None:
        return {}
    media: dict[str, Any] = {"schema": _reference(says.body, schemas)}
    if says.example is not None:
        media["example"] = says.example
    content: dict[str, Any] = {"application/json": media}
    if says.text:
        content["text/plain"] = {"schema": {"type": "string"}}
    return {"requestBody": {"required": True, "content": content}}


def _responses(says: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = says.reply if says.reply is None or not isinstance(says.reply, type) else _reference(says.reply, schemas)
    good: dict[str, Any] = {"description": "Done." if says.status == 200 else "Accepted.", "content": {says.media: {}}}
    if schema is not None:
        good["content"] = {says.media: {"schema": dict(schema)}}
    failed = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    statuses = sorted({*([] if says.public else ALWAYS), *says.errors, *([413, 415] if says.body else [])})
    return {
        str(says.status): good,
        **{str(status): {"description": MEANING[status], **failed} for status in statuses},
    }


def _reference(model: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to a model's schema, which is put among the components with those it refers to."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    for name, text in _docstrings(model).items():
        schema.get("properties", {}).get(name, {}).setdefault("description", text)
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _docstrings(model: type[Any]) -> dict[str, str]:
    """The string below each field in the sources of a model and of those it descends from."""
    found: dict[str, str] = {}
    for kind in model.__mro__:
        if not kind.__module__.startswith("agentmesh."):
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in itertools.pairwise(body.body):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant):
                found.setdefault(ast.unparse(field.target), " ".join(str(text.value).split()))
    return found
