"""The figures the founding documents promise, measured, with raw nats-py doing the same beside each.

    python -m benchmarks.seeds [--pairs 7] [--quick] [--json FILE] [--sync always|default] [CASE ...]

Two processes: this one calls, a child answers. A promise holds if the median over all runs does; the margin says how
many times better it is. Ends with 1 if one does not hold, except with `--quick`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import uvicorn
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agentmesh import Mesh, codec, connect
from agentmesh.agents.llm import CachePolicy, Generate, LLMGateway, LLMPart, LLMRequest, ModelCall
from agentmesh.gateway import Gateway, GatewayOptions, HttpServer, KeyOptions
from agentmesh.ids import new_id, now
from agentmesh.lifeline import die_with_parent
from benchmarks import raw
from benchmarks.compare import PAYLOAD, Bench, MeshCaller, Ping
from benchmarks.pairs import Case, Outcome, answering, heading, parser, run_pairs, shown, write

LATER = """
Not measured here: queuing of RAG queries (P95 < 5 ms, > 100/s) and of documents (P95 < 10 ms), and RAG payloads
(codec < 2 ms): there is no RAG yet. Fan-out of streams to 100 readers: `python -m benchmarks.streams`.
"""


@dataclass
class Promise:
    """A figure of the founding documents: at most so many milliseconds, or at least so many a second."""

    case: Case
    target: float


class Instant:
    """A model that answers with the time at which it was asked: what comes before it is the gateway's."""

    name = "instant"

    async def generate(self, call: ModelCall) -> AsyncIterator[LLMPart]:
        yield LLMPart(content=repr(time.monotonic()))
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        yield LLMPart(type="finish", data={"finish_reason": "stop", "usage": usage})

    async def close(self) -> None:
        pass


# ---------------------------------------------------------------- the child: answers


async def serve(url: str) -> None:
    nc = await raw.connect(url)
    await raw.RawPeer(nc).start()

    async def stamp(message: Msg) -> None:
        json.loads(message.data)
        await nc.publish(message.reply, json.dumps({"text": repr(time.monotonic())}).encode())

    await nc.subscribe("raw.infer", queue="q", cb=stamp)
    model: Any = Instant()
    async with connect(url, own_thread=False) as mesh:
        await mesh.spawn(Bench)
        await mesh.spawn(LLMGateway, models={"default": model})
        plain, port = await _plain_http(nc)
        server = HttpServer(
            Gateway(
                GatewayOptions(port=0, access_log=False, anonymous=KeyOptions("bench", rate=0.0, concurrency=0)),
                mesh.transport,
                mesh.subjects.tenant,
            )
        )
        await server.start()
        addresses = {"raw": port, "mesh": int(server.url.rpartition(":")[2])}

        async def where(message: Msg) -> None:
            await nc.publish(message.reply, json.dumps(addresses).encode())

        await nc.subscribe("bench.http", cb=where)
        print("ready", flush=True)
        await plain


async def _plain_http(nc: NatsClient) -> tuple[asyncio.Task[None], int]:
    """An HTTP server that passes a body on to a NATS subject, and does nothing else."""

    async def ask(request: Request) -> JSONResponse:
        body = json.loads(await request.body())
        answer = await nc.request(f"raw.{request.path_params['what']}", json.dumps(body).encode(), timeout=10)
        return JSONResponse(json.loads(answer.data))

    app = Starlette(routes=[Route("/{what}", ask, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
        await asyncio.sleep(0.01)
    return serving, server.servers[0].sockets[0].getsockname()[1]


# ---------------------------------------------------------------- this process: calls


class Http:
    """One connection, one request at a time; as little as possible, for it is not what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._used = 0.0
        self._writer: asyncio.StreamWriter | None = None

    async def _open(self) -> asyncio.StreamWriter:
        """The connection; another one when it has lain idle, for then the server closes it."""
        if self._writer is not None and time.monotonic() - self._used > 3.0:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._used = time.monotonic()
        return self._writer

    async def post(self, path: str, document: Any) -> Any:
        body = json.dumps(document).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer = await self._open()
        writer.write(head.encode() + body)
        head_of_answer = await self._reader.readuntil(b"\r\n\r\n")
        status, _, fields = head_of_answer.decode("latin-1").partition("\r\n")
        length = next(
            int(line.partition(":")[2]) for line in fields.split("\r\n") if line.lower().startswith("content-length:")
        )
        answer = json.loads(await self._reader.readexactly(length))
        if " 200 " not in status:
            raise SystemExit(f"{path}: {status} {answer}")
        return answer


class Caller:
    """Both sides of each promise."""

    def __init__(self, nc: NatsClient, mesh: Mesh, scale: float) -> None:
        self._nc = nc
        self._mesh = mesh
        self._scale = scale
        self._raw = raw.RawCaller(nc, PAYLOAD)
        self._ours = MeshCaller(mesh)
        self._numbers = itertools.count()

    async def start(self) -> None:
        await self._raw.start()
        ports = json.loads((await self._nc.request("bench.http", b"", timeout=30)).data)
        self._http, self._plain = Http(ports["mesh"]), Http(ports["raw"])

    def n(self, full: int) -> int:
        return max(20, int(full * self._scale))

    async def latency(self, operation: Callable[[], Awaitable[Any]], full: int, percentile: int) -> float:
        """Milliseconds, one at a time: that percentile of them."""
        found = []
        for _ in range(self.n(full)):
            began = time.perf_counter()
            await operation()
            found.append((time.perf_counter() - began) * 1000)
        return _percentile(found, percentile)

    async def rate(self, operation: Callable[[], Awaitable[Any]], full: int, in_flight: int) -> float:
        """A second, with so many under way."""
        left = total = self.n(full)

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await operation()

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return total / (time.perf_counter() - began)

    # -- the gateway to models

    async def waited_raw(self, full: int) -> float:
        """Milliseconds, P95, from sending until the other process has it."""
        found = []
        for _ in range(self.n(full)):
            began = time.monotonic()
            body = json.dumps({"request_id": new_id(), "prompt": PAYLOAD}).encode()
            answer = await self._nc.request("raw.infer", body, timeout=10)
            found.append((float(json.loads(answer.data)["text"]) - began) * 1000)
        return _percentile(found, 95)

    async def waited(self, full: int) -> float:
        """The same until the model is asked, the gateway's work and its waiting lines included."""
        found = []
        for _ in range(self.n(full)):
            began = time.monotonic()
            found.append((float(await self._asked(LLMRequest(prompt=PAYLOAD))) - began) * 1000)
        return _percentile(found, 95)

    async def _asked(self, request: LLMRequest) -> str:
        text = ""
        async for part in self._mesh.stream("llm", request):
            text += part.content
            if part.is_final:
                part.response().raise_for_error()
        return text

    async def generated_raw(self) -> None:
        body = json.dumps({"request_id": new_id(), "prompt": f"{PAYLOAD} {next(self._numbers)}"}).encode()
        json.loads((await self._nc.request("raw.infer", body, timeout=10)).data)

    async def generated(self) -> None:
        await self._asked(LLMRequest(prompt=f"{PAYLOAD} {next(self._numbers)}"))

    async def job(self) -> None:
        await (await self._mesh.submit(Generate(prompt=f"{PAYLOAD} {next(self._numbers)}"), to="llm")).result()

    async def cached(self) -> None:
        await self._asked(LLMRequest(prompt=PAYLOAD, cache=CachePolicy(ttl=600.0)))

    # -- HTTP

    async def http_ask(self) -> None:
        await self._http.post("/api/v1/agents/bench/ask", {"type": "Ping", "data": {"text": PAYLOAD}})

    async def http_ask_raw(self) -> None:
        await self._plain.post("/ask", {"text": PAYLOAD})

    async def http_infer(self) -> None:
        await self._http.post("/ai/llm/infer", {"input": {"prompt": PAYLOAD}})

    async def http_infer_raw(self) -> None:
        await self._plain.post("/infer", {"prompt": PAYLOAD})

    # -- codec, without a broker

    async def codec_raw(self) -> float:
        """Milliseconds, P95, to write and read the document of a message with json."""
        document = {
            "message_id": new_id(),
            "message_type": "Ping",
            "timestamp": "2026-11-28T14:00:00.000000Z",
            "source_agent_id": "a",
            "target_agent_id": "b",
            "schema_version": "1.0",
            "content": {"text": PAYLOAD},
        }
        return self._timed(lambda: json.loads(json.dumps(document).encode()))

    async def codec_ours(self) -> float:
        message = Ping(text=PAYLOAD)

        def there_and_back() -> None:
            envelope = codec.Envelope(
                message_id=new_id(),
                message_type="Ping",
                timestamp=now(),
                source_agent_id="a",
                target_agent_id="b",
                schema_version=codec.SCHEMA_VERSION,
                content=msgspec.Raw(codec.encode_body(message)),
            )
            codec.decode_body(Ping, codec.decode(codec.encode(envelope)).content)

        return self._timed(there_and_back)

    async def validated_raw(self) -> float:
        body = json.dumps({"text": PAYLOAD}).encode()
        return self._timed(lambda: isinstance(json.loads(body)["text"], str))

    async def validated(self) -> float:
        body = msgspec.Raw(codec.encode_body(Ping(text=PAYLOAD)))
        return self._timed(lambda: codec.decode_body(Ping, body))

    def _timed(self, operation: Callable[[], object]) -> float:
        found = []
        for _ in range(self.n(5_000)):
            began = time.perf_counter()
            operation()
            found.append((time.perf_counter() - began) * 1000)
        return _percentile(found, 95)

    # -- all of it

    def promises(self) -> list[Promise]:
        ask, raw_ask = self._ours.ask, self._raw.ask

        def latency(
            name: str, target: float, theirs: Any, ours: Any, full: int = 1_000, percentile: int = 95
        ) -> Promise:
            return Promise(
                Case(
                    name,
                    lambda: self.latency(theirs, full, percentile),
                    lambda: self.latency(ours, full, percentile),
                    "ms",
                ),
                target,
            )

        def rate(name: str, target: float, theirs: Any, ours: Any, full: int, in_flight: int) -> Promise:
            return Promise(
                Case(name, lambda: self.rate(theirs, full, in_flight), lambda: self.rate(ours, full, in_flight)), target
            )

        return [
            latency("agent messaging, P95 of an ask", 10.0, raw_ask, ask),
            rate("agent messaging, 1 at a time", 200.0, raw_ask, ask, 1_500, 1),
            latency("request, P50", 1.0, raw_ask, ask, percentile=50),
            latency("request, P99", 4.0, raw_ask, ask, percentile=99),
            rate("requests, 128 at a time", 10_000.0, raw_ask, ask, 15_000, 128),
            Promise(
                Case(
                    "gateway queuing, P95 until the model is asked",
                    self._with(self.waited_raw),
                    self._with(self.waited),
                    "ms",
                ),
                5.0,
            ),
            rate("gateway, requests, 16 at a time", 50.0, self.generated_raw, self.generated, 2_000, 16),
            rate("gateway, durable jobs, 16 at a time", 50.0, self._raw.task, self.job, 500, 16),
            latency("gateway, P50 of a cached answer", 1.0, self.generated_raw, self.cached, percentile=50),
            latency("gateway, P95 of a cached answer", 1.0, self.generated_raw, self.cached),
            latency("HTTP to an agent and back, P95", 5.0, self.http_ask_raw, self.http_ask, 500),
            latency("HTTP to a model and back, P95", 5.0, self.http_infer_raw, self.http_infer, 500),
            Promise(Case("codec, P95 of a message there and back", self.codec_raw, self.codec_ours, "ms"), 1.0),
            Promise(Case("validation, P95 of a body", self.validated_raw, self.validated, "ms"), 0.5),
        ]

    def _with(self, measure: Callable[[int], Awaitable[float]]) -> Callable[[], Awaitable[float]]:
        return lambda: measure(1_000)


def _percentile(found: Sequence[float], percentile: int) -> float:
    return statistics.quantiles(found, n=100, method="inclusive")[percentile - 1]


def promise_row(outcome: Outcome, target: float) -> tuple[str, bool]:
    """A line of the table, and whether the promise holds."""
    value = statistics.median(outcome.mesh)
    margin = target / value if outcome.unit == "ms" else value / target
    sign = "<" if outcome.unit == "ms" else ">"
    wanted = f"{sign} {target:g} ms" if outcome.unit == "ms" else f"{sign} {target:,.0f}/s"
    missed = "" if margin > 1 else " **missed**"
    row = (
        f"| {outcome.case} | {wanted} | {shown(value, outcome.unit)} | {margin:.1f} x{missed} "
        f"| {shown(statistics.median(outcome.raw), outcome.unit)} | {statistics.median(outcome.ratios):.2f} |"
    )
    return row, margin > 1


async def measure(options: argparse.Namespace) -> int:
    async with answering("benchmarks.seeds", options.sync) as (url, _):
        nc = await raw.connect(url)
        async with connect(url, own_thread=False) as mesh:
            caller = Caller(nc, mesh, 0.04 if options.quick else 1.0)
            await caller.start()
            promises = caller.promises()
            outcomes = await run_pairs(
                [promise.case for promise in promises], options.cases, 1 if options.quick else options.pairs
            )
        await nc.close()
    targets = {promise.case.name: promise.target for promise in promises}
    rows = [promise_row(outcome, targets[outcome.case]) for outcome in outcomes]
    print("\n| promise | target | agentmesh | margin | raw | agentmesh / raw |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(row for row, _ in rows))
    print(LATER)
    write(options.json, options.sync, outcomes)
    return 0 if options.quick or all(held for _, held in rows) else 1


def main() -> int:
    options = parser(__doc__).parse_args()
    if options.serve:
        die_with_parent()
        asyncio.run(serve(options.serve[0]))
        return 0
    heading(options.sync)
    return asyncio.run(measure(options))


if __name__ == "__main__":
    sys.exit(main())
