"""Chunk streams: nothing is lost at a slow reader, gaps are noticed, and whoever leaves is noticed, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from agentmesh import Mesh, connect, proto
from agentmesh.agents.llm import LLMGateway
from agentmesh.agents.llm.client import LLMClient
from agentmesh.chaos import Server
from agentmesh.errors import (
    BrokerError,
    DeadlineExceededError,
    DeliveryError,
    InvalidMessageError,
    ModelError,
    NoRespondersError,
    StreamGapError,
    StreamIdleError,
)
from agentmesh.proto import LLMStreamChunk, inference_request
from tests.doors.conftest import Model
from tests.harness.waiting import eventually

SUBJECT = "svc.ai.llm.v1.infer"
LONG = 20.0


def _streamed(prompt: str) -> bytes:
    data: bytes = inference_request(prompt, stream=True).SerializeToString()
    return data


@pytest.mark.seed("A13", "A14", "A15")
async def test_our_client_gets_every_chunk_and_the_end(mesh: Mesh, model: Model) -> None:
    chunks = [chunk async for chunk in LLMClient(mesh).infer_stream(inference_request("count 1500"), timeout=60)]

    assert [chunk.index for chunk in chunks] == list(range(1501))
    assert "".join(chunk.output_text_delta for chunk in chunks) == "".join(f"{number} " for number in range(1500))
    assert (chunks[-1].is_final, chunks[-1].finish_reason, chunks[-1].usage.completion_tokens) == (True, "stop", 1500)
    assert not any(chunk.is_final or chunk.HasField("usage") for chunk in chunks[:-1])


@pytest.mark.seed("A15")
async def test_a_slow_reader_slows_the_model_down_and_loses_nothing(mesh: Mesh, model: Model) -> None:
    ahead = 0
    async with aclosing(LLMClient(mesh).infer_stream(inference_request("count 300"), window=8)) as chunks:
        async for chunk in chunks:
            for _ in range(20):  # whatever could be sent meanwhile is
                await asyncio.sleep(0)
            await mesh.transport.connection.nc.round_trip(5.0)
            ahead = max(ahead, model.said - chunk.index)

    assert chunk.is_final
    assert chunk.index == 300
    assert ahead <= 8 + 2  # the window, and what the model has in its hands


@pytest.mark.seed("A13", "A15")
async def test_a_plain_subscriber_that_reads_late_loses_nothing(model: Model, nc: NatsClient) -> None:
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)

    await nc.publish(SUBJECT, _streamed("count 3000"), reply=inbox)
    await eventually(lambda: subscription.pending_msgs == 3001, LONG)
    chunks = [LLMStreamChunk.FromString((await subscription.next_msg(timeout=LONG)).data) for _ in range(3001)]

    assert [chunk.index for chunk in chunks] == list(range(3001))
    assert chunks[-1].is_final


@pytest.mark.seed("A13")
async def test_a_plain_subscriber_with_a_small_buffer_keeps_up(model: Model, nc: NatsClient) -> None:
    """The one that lost 1,244 of 1,500 tokens when they came in one burst."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    indexes: list[int] = []

    async def take(message: Msg) -> None:
        chunk = LLMStreamChunk.FromString(message.data)
        indexes.append(chunk.index)
        if chunk.is_final:
            done.set_result(None)

    inbox = nc.new_inbox()
    await nc.subscribe(inbox, cb=take, pending_msgs_limit=256)
    await nc.publish(SUBJECT, _streamed("count 1500"), reply=inbox)

    async with asyncio.timeout(60):
        await done
    assert indexes == list(range(1501))


@pytest.mark.seed("A14")
async def test_a_client_may_cancel_by_a_message_and_is_told_that_it_did(model: Model, nc: NatsClient) -> None:
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish(SUBJECT, _streamed("say a b then wait"), reply=inbox)
    first = await subscription.next_msg(timeout=LONG)
    await subscription.next_msg(timeout=LONG)

    await nc.publish(first.reply, b"cancel")

    last = LLMStreamChunk.FromString((await subscription.next_msg(timeout=LONG)).data)
    assert (last.index, last.is_final, last.error.code) == (2, True, proto.Error.ABORTED)
    assert model.cancelled.is_set()


@pytest.mark.seed("A14")
async def test_a_client_may_cancel_by_the_id_of_its_request(mesh: Mesh, model: Model, nc: NatsClient) -> None:
    body = inference_request("wait for ever", meta={"request_id": "gone-1"}).SerializeToString()
    asking = asyncio.create_task(nc.request(SUBJECT, body, timeout=LONG))
    await model.until_waiting(1)

    await nc.publish(f"ai.agent.control.{mesh.subjects.tenant}.cancel-infer", b"gone-1")

    response = proto.LLMInferenceResponse.FromString((await asking).data)
    assert response.error.code == proto.Error.ABORTED
    assert model.cancelled.is_set()


@pytest.mark.seed("A14")
async def test_our_client_stops_the_model_when_it_is_left_or_cancelled(mesh: Mesh, model: Model) -> None:
    client = LLMClient(mesh)
    async with aclosing(client.infer_stream(inference_request("say a then wait"))) as chunks:
        async for _ in chunks:
            break
    async with asyncio.timeout(LONG):
        await model.cancelled.wait()
    model.cancelled.clear()

    unary = asyncio.create_task(client.infer(inference_request("wait for ever")))
    await model.until_waiting(2)
    unary.cancel()
    async with asyncio.timeout(LONG):
        await model.cancelled.wait()
    model.cancelled.clear()

    before_the_first = asyncio.create_task(anext(client.infer_stream(inference_request("wait for ever"))))
    await model.until_waiting(3)
    before_the_first.cancel()
    async with asyncio.timeout(LONG):
        await model.cancelled.wait()
    assert model.under_way == 0


async def test_errors_come_out_of_our_client_as_exceptions(mesh: Mesh, model: Model) -> None:
    client = LLMClient(mesh)

    with pytest.raises(ModelError, match="as told") as unary:
        await client.infer(inference_request("fail FAILED_PRECONDITION"))
    with pytest.raises(ModelError, match="as told") as streamed:
        _ = [chunk async for chunk in client.infer_stream(inference_request("fail FAILED_PRECONDITION after 2"))]

    assert unary.value.code == streamed.value.code == "FAILED_PRECONDITION"


@pytest.mark.seed("A34")
async def test_without_a_gateway_our_client_is_told_at_once(mesh: Mesh) -> None:
    client = LLMClient(mesh)

    with pytest.raises(NoRespondersError):
        await client.infer(inference_request("say a"))
    with pytest.raises(NoRespondersError):
        _ = [chunk async for chunk in client.infer_stream(inference_request("say a"))]
    with pytest.raises(NoRespondersError):
        await client.generate("say a")


# ---------------------------------------------------------------- at the other end, somebody who makes mistakes


Answer = Callable[[Msg], Awaitable[None]]


@asynccontextmanager
async def _stranger(mesh: Mesh, nc: NatsClient, answer: Answer) -> AsyncIterator[LLMClient]:
    """A client of ours, and somebody else's service."""
    subscription = await nc.subscribe(mesh.subjects.tenant_infer(), cb=answer)
    await nc.flush()
    await nc.flush()  # the first PING of nats-py may overtake what it is to confirm
    yield LLMClient(mesh)
    await subscription.unsubscribe()


def _chunk(index: int, **more: Any) -> bytes:
    data: bytes = LLMStreamChunk(index=index, output_text_delta=f"{index} ", **more).SerializeToString()
    return data


async def _read(chunks: AsyncIterator[LLMStreamChunk], got: list[int]) -> None:
    """The numbers of what comes."""
    async for chunk in chunks:
        got.append(chunk.index)  # noqa: PERF401  # what came before the error counts


@pytest.mark.seed("A13")
async def test_a_gap_is_noticed_and_the_producer_told(mesh: Mesh, nc: NatsClient) -> None:
    control = nc.new_inbox()
    told = await nc.subscribe(control)

    async def answer(message: Msg) -> None:
        for index in (0, 1, 3):
            await nc.publish(message.reply, _chunk(index), reply=control)

    got: list[int] = []
    async with _stranger(mesh, nc, answer) as client:
        with pytest.raises(StreamGapError) as caught:
            await _read(client.infer_stream(inference_request("x")), got)

    assert got == [0, 1]
    assert (caught.value.expected, caught.value.got) == (2, 3)
    assert (await told.next_msg(timeout=LONG)).data == b"cancel"


@pytest.mark.seed("A14")
async def test_silence_is_given_up_after_the_idle_timeout(mesh: Mesh, nc: NatsClient) -> None:
    async def answer(message: Msg) -> None:
        await nc.publish(message.reply, _chunk(0))

    async with _stranger(mesh, nc, answer) as client:
        with pytest.raises(StreamIdleError):
            _ = [chunk async for chunk in client.infer_stream(inference_request("x"), idle_timeout=0.1)]


@pytest.mark.seed("A7", "A14")
async def test_a_stream_that_never_ends_is_given_up_at_the_deadline(mesh: Mesh, nc: NatsClient) -> None:
    headers: dict[str, str] = {}

    async def answer(message: Msg) -> None:
        headers.update(message.headers or {})
        for index in range(1000):
            await nc.publish(message.reply, _chunk(index))
            await asyncio.sleep(0.01)

    got: list[int] = []
    async with _stranger(mesh, nc, answer) as client:
        with pytest.raises(DeadlineExceededError):
            await _read(client.infer_stream(inference_request("x"), timeout=0.3, idle_timeout=20), got)

    assert got == list(range(len(got)))
    assert {"Deadline", "Idle-Timeout", "Window"} <= set(headers)


@pytest.mark.seed("A36")
async def test_what_is_no_chunk_is_an_error(mesh: Mesh, nc: NatsClient) -> None:
    async def answer(message: Msg) -> None:
        await nc.publish(message.reply, b"\xff\xff")

    async with _stranger(mesh, nc, answer) as client:
        with pytest.raises(InvalidMessageError, match="LLMStreamChunk"):
            _ = [chunk async for chunk in client.infer_stream(inference_request("x"))]
        with pytest.raises(InvalidMessageError, match="LLMInferenceResponse"):
            await client.infer(inference_request("x"))


@pytest.mark.slow
@pytest.mark.seed("A14")
async def test_a_stream_of_a_hundred_thousand_tokens_is_complete(mesh: Mesh, model: Model, nc: NatsClient) -> None:
    count = 100_000
    expected = 0
    async with aclosing(LLMClient(mesh).infer_stream(inference_request(f"count {count}"), timeout=300)) as chunks:
        async for chunk in chunks:
            assert chunk.index == expected
            expected += 1
    assert (chunk.is_final, expected) == (True, count + 1)

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish(SUBJECT, _streamed(f"count {count}"), reply=inbox)
    for index in range(count + 1):
        chunk = LLMStreamChunk.FromString((await subscription.next_msg(timeout=60)).data)
        assert chunk.index == index
    assert chunk.is_final


@pytest.mark.slow
@pytest.mark.seed("A13", "A14")
async def test_chunks_over_a_restart_of_the_broker_go_on_or_break_and_are_never_fewer(server: Server) -> None:
    model = Model()
    async with connect(server.url, own_thread=False) as mesh, connect(server.url, own_thread=False) as other:
        await mesh.spawn(LLMGateway, {"default": model})
        got: list[int] = []
        reading = asyncio.create_task(
            _read(LLMClient(other).infer_stream(inference_request("count 50000"), idle_timeout=5), got)
        )
        await eventually(lambda: len(got) > 1000, 60)

        server.kill9()
        await server.start()

        (ended,) = await asyncio.gather(reading, return_exceptions=True)
        if ended is None:
            assert len(got) == 50_001
        else:
            assert isinstance(ended, (DeliveryError, BrokerError, ModelError))
        assert got == list(range(len(got)))
        await eventually(lambda: not model.under_way, 60, what="a reader that is gone is noticed")
