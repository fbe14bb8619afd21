"""Who may come in: tokens, tenants, addresses, pages; and what they are told."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.requests import Request

from agentmesh import Agent, AgentRef, Context, Prompt, handler
from agentmesh.errors import ConfigError
from agentmesh.gateway import GatewayOptions
from agentmesh.gateway.calls import Meta, meta_of
from agentmesh.gateway.gateway import CALL, Call, Caller
from agentmesh.gateway.keys import KeyRing, digest, new_token, stored
from agentmesh.gateway.limits import Usage
from tests.core.hostile import TOKENS
from tests.gateway.conftest import TOKEN, Running, StartGateway, bearer, key

AGENTS = "/api/v1/agents"


class Traced(Agent):
    @handler
    async def prompt(self, message: Prompt, ctx: Context) -> str:
        return ctx.trace_id


CODES = {400, 401, 403, 404, 409, 412, 429, 500, 501, 503, 504}


def typed(answer: httpx.Response, status: int, code: str) -> None:
    """It is the error, as every error is."""
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], set(error)) == (
        status,
        code,
        {"code", "message", "details", "request_id"},
    )
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in answer.headers


async def test_i1_only_the_right_token_lets_in(start_gateway: StartGateway) -> None:
    http = (await start_gateway(keys=(key(), key("other", "am_the-token-of-another")))).http

    wrong = ["", "a", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ü" * 20, "x" * 10_000]
    tried: list[dict[str, str | bytes]] = [{"X-API-Key": one.encode()} for one in wrong]
    for headers in [*tried, {}, {"Authorization": f"Basic {TOKEN}"}]:
        answer = await http.get(AGENTS, headers=httpx.Headers(headers))  # type: ignore[arg-type]
        typed(answer, 401, "UNAUTHENTICATED")
        assert answer.headers["www-authenticate"] == "Bearer"
    for headers in (bearer(), {"X-API-Key": TOKEN}, {"authorization": f"bearer {TOKEN}"}):
        assert (await http.get(AGENTS, headers=headers)).status_code == 200
    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/ready")).status_code == 200
    typed(await http.get("/metrics"), 401, "UNAUTHENTICATED")


def test_i1_every_key_is_compared_in_constant_time_whatever_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    constant = hmac.compare_digest

    def compare(given: str, known: str) -> bool:
        compared.append((given, known))
        return constant(given, known)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring = KeyRing((key("a", "am_first-token-of-all"), key("b", "am_second-token"), key("c", "am_third-token-of")))

    for token in ("am_first-token-of-all", "am_third-token-of", "", "x"):
        compared.clear()
        found = ring.find(token)
        assert (found is not None) == (len(token) > 1)
        assert [known for _, known in compared] == [one.digest for one in ring._keys]
        assert {len(given) for given, _ in compared} == {64}  # never the token itself


def test_tokens_are_kept_as_digests_and_short_ones_refused() -> None:
    token = new_token()
    plain = hashlib.sha256(token.encode()).hexdigest()

    assert stored("http.token", token) == stored("http.token", f"sha256:{plain}") == digest(token) == plain
    assert token not in repr(GatewayOptions(keys=(key(token=token),)))
    for bad in ("short", "sha256:abc", "sha256:" + "g" * 64):
        with pytest.raises(ConfigError, match="agentmesh keys new"):
            stored("http.token", bad)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com", ""])
def test_an_address_off_loopback_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.host.*agentmesh keys new"):
        GatewayOptions(host=host)

    assert GatewayOptions(host=host, keys=(key(),)).keys
    assert GatewayOptions(host="::1").open


async def test_i2_the_tenant_is_that_of_the_key(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(keys=(key(tenant="acme"),))
    http, ask = gateway.http, f"{AGENTS}/greeter/ask"

    typed(await http.get(AGENTS, headers={**bearer(), "X-Tenant-ID": "globex"}), 403, "PERMISSION_DENIED")
    body = {"text": "hi", "tenant_id": "globex"}
    typed(await http.post(ask, headers=bearer(), json=body), 403, "PERMISSION_DENIED")
    same = await http.post(ask, headers={**bearer(), "X-Tenant-ID": "acme"}, json={**body, "tenant_id": "acme"})
    typed(same, 404, "NOT_FOUND")  # let in, and there is no such agent


async def test_i5_pages_of_other_origins_are_told_nothing(start_gateway: StartGateway) -> None:
    closed = await start_gateway(keys=(key(),))
    some = await start_gateway(keys=(key(),), cors=("https://app.example",))
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}

    for gateway in (closed, some):
        for origin in ("https://evil.example", "null", "https://app.example.evil.com", "http://app.example"):
            for answer in (
                await gateway.http.options(AGENTS, headers={"Origin": origin, **ask}),
                await gateway.http.get(AGENTS, headers={"Origin": origin, **bearer()}),
            ):
                assert not [name for name in answer.headers if name.startswith("access-control-")]
    friend = {"Origin": "https://app.example"}
    preflight = await some.http.options(AGENTS, headers={**friend, **ask})
    answer = await some.http.get(AGENTS, headers={**friend, **bearer()})
    assert preflight.status_code == 204
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers
    refused = await some.http.get(AGENTS, headers=friend)
    assert refused.headers["access-control-allow-origin"] == "https://app.example"  # so that the page can read why


def test_i5_origins_are_exact() -> None:
    for origin in ("*", "https://*.example", "app.example", "https://app.example/path", "null"):
        with pytest.raises(ConfigError, match=r"http\.cors"):
            GatewayOptions(cors=(origin,))


async def test_without_keys_a_page_of_somebody_else_cannot_call_through_the_browser(gateway: Running) -> None:
    http, own = gateway.http, f"http://127.0.0.1:{gateway.port}"

    for origin in ("https://evil.example", "null", f"http://localhost:{gateway.port + 1}"):
        plain = {"Origin": origin, "Content-Type": "text/plain"}  # what browsers send without asking first
        typed(await http.post(f"{AGENTS}/a/ask", headers=plain, content="hi"), 403, "PERMISSION_DENIED")
    typed(await http.post(f"{AGENTS}/a/ask", headers={"Origin": own}, json={"text": "hi"}), 404, "NOT_FOUND")


async def test_i6_on_loopback_only_its_own_names_are_known(gateway: Running, start_gateway: StartGateway) -> None:
    http, port = gateway.http, gateway.port

    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", f"localhost.evil.example:{port}"):
        typed(await http.get("/health", headers={"Host": host}), 421, "PERMISSION_DENIED")
    for host in (f"127.0.0.1:{port}", "localhost", f"LOCALHOST:{port}", f"[::1]:{port}", "127.0.0.2"):
        assert (await http.get("/health", headers={"Host": host})).status_code == 200
    behind = await start_gateway(hosts=("mesh.example",))
    assert (await behind.http.get("/health", headers={"Host": "mesh.example"})).status_code == 200
    typed(await behind.http.get("/health", headers={"Host": "evil.example"}), 421, "PERMISSION_DENIED")


async def test_i8_more_requests_than_the_key_may_are_429_and_say_when(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(keys=(key(rate=0.05), key("other", "am_the-token-of-another")))
    http = gateway.http

    assert (await http.get("/api/v1/tasks/x", headers=bearer())).status_code == 404
    refused = await http.get("/api/v1/tasks/x", headers=bearer())
    typed(refused, 429, "RESOURCE_EXHAUSTED")
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert (await http.get("/api/v1/tasks/x", headers=bearer("am_the-token-of-another"))).status_code == 404
    assert (await http.get("/health", headers=bearer())).status_code == 200


async def test_streams_and_requests_of_a_key_are_counted_apart(start_gateway: StartGateway) -> None:
    gateway = (await start_gateway(keys=(key(concurrency=1, streams=2),))).gateway
    caller = gateway.holder(gateway.options.keys[0])

    with caller.usage.request():
        async with gateway.stream_slot(caller):
            assert (caller.usage.running, caller.usage.streams) == (0, 1)
            with caller.usage.request():
                async with gateway.stream_slot(caller):
                    with caller.usage.request(), pytest.raises(Exception, match="2 streams are open") as refused:
                        async with gateway.stream_slot(caller):
                            raise AssertionError
                with pytest.raises(Exception, match="1 requests are under way"), caller.usage.request():
                    raise AssertionError
    assert refused.value.headers == {"Retry-After": "10"}  # type: ignore[attr-defined]
    assert (caller.usage.running, caller.usage.streams) == (0, 0)


async def test_ids_are_taken_over_when_they_are_good_for_a_log_and_given_back(gateway: Running) -> None:
    good = await gateway.http.get(
        "/nothing", headers={"X-Request-ID": "r-1:a.b", "X-Trace-ID": "7f3a", "X-Correlation-ID": "c1"}
    )
    assert good.headers["x-request-id"] == good.json()["error"]["request_id"] == "r-1:a.b"
    assert (good.headers["x-trace-id"], good.headers["x-correlation-id"]) == ("7f3a", "c1")
    assert (await gateway.http.get("/health", headers={"X-Correlation-ID": "c1"})).headers["x-request-id"] == "c1"
    bad: list[str | bytes] = ["a b", "a" * 129, "<script>", "a	b", "é".encode("latin-1")]
    for given in bad:
        headers = httpx.Headers({"X-Request-ID": given})  # type: ignore[arg-type]
        answer = await gateway.http.get("/health", headers=headers)
        assert answer.headers["x-request-id"] not in ("", given)


async def test_the_log_has_neither_credentials_nor_what_was_said(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start_gateway(keys=(key(),), access_log=True)

    with caplog.at_level(logging.DEBUG):
        body = {"text": "planted-payload"}
        headers = {**bearer(), "X-User-ID": "planted-user", "Cookie": "planted-cookie"}
        await gateway.http.post(f"{AGENTS}/no%0aone/ask?q=planted-query", json=body, headers=headers)
        await gateway.http.get(AGENTS, headers=bearer("planted-wrong-token-of-nobody"))

    lines = [record.getMessage() for record in caplog.records if record.name == "agentmesh.gateway.access"]
    assert lines[0].startswith(f"POST {AGENTS}/no%0Aone/ask 400 ")
    assert " tests@" in lines[0]
    assert lines[1].startswith(f"GET {AGENTS} 401 ")
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("agentmesh"))
    assert "planted" not in ours
    assert TOKEN not in ours


async def test_a_trace_goes_on_from_the_request_to_the_agents(
    start_gateway: StartGateway, spawn: Callable[..., Awaitable[AgentRef]]
) -> None:
    await spawn(Traced)
    http, trace = (await start_gateway()).http, "4bf92f3577b34da6a3ce929d0e0e4736"

    async def asked(**headers: str) -> str:
        answer = await http.post(f"{AGENTS}/traced/ask", json={"text": ""}, headers=headers)
        return str(answer.json()["reply"])

    assert await asked(traceparent=f"00-{trace}-00f067aa0ba902b7-01") == trace
    assert await asked(**{"X-Trace-ID": trace}) == trace
    assert len(await asked()) == 32


async def test_who_and_what_a_request_is_for_models_comes_from_its_headers_and_its_tenant_from_the_key() -> None:
    given = {"X-Client-ID": "web", "X-User-ID": "ada", "X-Custom-Color": "red", "X-Tenant-ID": "acme", "X-Other": "no"}
    headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    request = Request({"type": "http", "headers": [*headers, (b"idempotency-key", b"k-1")], CALL: Call("r-1", "t-1")})

    meta = meta_of(request, Caller("mobile", "acme", Usage(key())))

    assert meta == Meta("r-1", "t-1", "web", "ada", "acme", "k-1", {"color": "red"})


async def test_g2_idempotency_keys_that_cannot_be_are_refused(
    gateway: Running, spawn: Callable[..., Awaitable[AgentRef]]
) -> None:
    await spawn(Traced)
    typed(
        await gateway.http.post(f"{AGENTS}/traced/ask", json={"text": ""}, headers={"Idempotency-Key": "x" * 300}),
        400,
        "INVALID_ARGUMENT",
    )


PATHS = (
    ("GET", "/api/v1/agents/{}"),
    ("POST", "/api/v1/agents/{}/ask"),
    ("POST", "/api/v1/agents/{}/tell"),
    ("POST", "/api/v1/agents/{}/tasks"),
    ("POST", "/api/v1/agents/{}/execute"),
    ("GET", "/api/v1/tasks/{}"),
    ("DELETE", "/api/v1/tasks/{}"),
    ("POST", "/api/v1/tasks/{}/cancel"),
)


async def test_g1_hostile_names_in_paths_and_bodies_are_refused(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    publish = type(gateway.gateway.transport.connection).publish

    async def noted(self: object, subject: str, *arguments: object, **more: object) -> None:
        sent.append(subject)
        await publish(self, subject, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(gateway.gateway.transport.connection), "publish", noted)
    for method, path in PATHS:
        for name in TOKENS:
            url = path.format("".join(f"%{byte:02X}" for byte in name.encode()))
            if name == "":
                continue  # another path: no route has it
            body = None if method != "POST" or path.endswith("cancel") else {"text": "x"}
            if path.endswith(("tasks", "execute")):
                body = {"type": "Add"}
            answer = await gateway.http.request(method, url, json=body)
            assert answer.status_code in (400, 404, 431), (url, answer.text)
            assert answer.json()["error"]["code"] in ("INVALID_ARGUMENT", "NOT_FOUND"), url
    for name in TOKENS[1:]:
        for body in ({"type": name}, {"type": "Add", "task_id": name}):
            assert (await gateway.http.post("/api/v1/agents/adder/tasks", json=body)).status_code == 400, name
        assert (await gateway.http.post("/api/v1/agents/adder/ask", json={"type": name})).status_code == 400, name
    assert sent == []
