"""`/ui/`: the agents there are; `/ui/chat/{agent}`: the chat page.

The pages hold no data and so need no key; what they show they ask for, with the key of whoever looks at them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

if TYPE_CHECKING:
    from agentmesh.gateway.gateway import Gateway

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

HEADERS = {
    # Nothing inline, nothing from elsewhere, not in a frame: what an agent says cannot become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def routes(gateway: Gateway) -> list[BaseRoute]:
    """The pages and their files."""
    assets = {
        item.name: item.read_bytes() for item in files(__package__).joinpath("assets").iterdir() if item.is_file()
    }

    def page(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request) -> Response:
            return _file(name, assets[name])

        return show

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in assets:
            raise HTTPException(404, "there is no such file")
        return _file(name, assets[name])

    async def to_agents(request: Request) -> Response:
        return RedirectResponse("/ui/")

    return [
        Route("/ui", to_agents),
        Route("/ui/", page("index.html")),
        Route("/ui/chat/{agent}", page("chat.html")),
        Route("/ui/assets/{name}", asset),
    ]


def _file(name: str, content: bytes) -> Response:
    return Response(content, media_type=_KINDS[name.rpartition(".")[2]], headers=HEADERS)
