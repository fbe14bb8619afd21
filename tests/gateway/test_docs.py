"""`/openapi.json` and `/docs`: every route is in the document, and answers as the document says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agentmesh.gateway.docs import content_policy
from tests.gateway.conftest import Running, StartGateway, key


async def test_the_document_has_every_route_with_what_it_takes(gateway: Running) -> None:
    document = (await gateway.http.get("/openapi.json")).json()

    assert document["openapi"] == "3.1.0"
    ask = document["paths"]["/api/v1/agents/{agent}/ask"]["post"]
    assert ask["summary"] == "Ask an agent and wait for its reply."
    assert set(ask["requestBody"]["content"]) == {"application/json", "text/plain"}
    assert {"200", "400", "401", "404", "429", "500", "503", "504"} <= set(ask["responses"])
    body = document["components"]["schemas"]["MessageBody"]["properties"]
    assert body["type"]["description"] == "The name of the message type, such as `Greet`."
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references <= set(document["components"]["schemas"])
    operations = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(operations) == len(set(operations))
    assert all(one["summary"] for path in document["paths"].values() for one in path.values())


async def test_every_route_of_the_document_answers_as_it_says_and_errors_are_typed(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(timeout=0.5)
    document = (await gateway.http.get("/openapi.json")).json()

    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            url = re.sub(r"{\w+}", "nobody", path)
            for body in _bodies(operation):
                async with gateway.http.stream(method, url, json=body, timeout=30) as answer:
                    if answer.headers.get("content-type", "").startswith("text/event-stream"):
                        continue  # it goes on for as long as one listens
                    await answer.aread()
                assert answer.status_code != 500, (method, url, body, answer.text)
                if answer.status_code >= 400 and path != "/ready":
                    error = answer.json()["error"]
                    assert {"message", "code"} <= set(error), (method, url, answer.text)


def _bodies(operation: dict[str, Any]) -> list[Any]:
    """What works, and what does not."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    return [None] if content is None else [content.get("example"), {}, {"no-such-field": 1}, [], None]


async def test_the_page_needs_nothing_from_elsewhere(gateway: Running, start_gateway: StartGateway) -> None:
    page = await gateway.http.get("/docs")

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == content_policy(page.text)
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text)
    assert "<script>" in page.text
    locked = (await start_gateway(keys=(key(),))).http
    assert (await locked.get("/docs")).status_code == 200
    assert (await locked.get("/openapi.json")).json()["security"] == [{"token": []}, {"key": []}]


@pytest.mark.parametrize("page", ["<script>one</script><script>two</script>", ""])
def test_the_policy_names_each_script(page: str) -> None:
    assert content_policy(page).count("sha256-") == page.count("<script>")
