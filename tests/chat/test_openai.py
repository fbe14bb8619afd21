"""The OpenAI door, judged by the client of OpenAI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentmesh import Agent, Mesh, handler
from agentmesh.chat import Chat, ChatPart
from agentmesh.gateway import KeyOptions
from agentmesh.gateway.keys import digest
from tests.chat.agents import Calculator, Counter, Parrot, Stuck, tokens
from tests.chat.conftest import Door, StartDoor
from tests.harness.waiting import eventually

openai: Any = pytest.importorskip("openai")
Client = Any
"""`openai.AsyncOpenAI`."""

USER = "user"
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def client_of(door: Door, **more: object) -> openai.AsyncOpenAI:
    """The client, which tries once unless told otherwise."""
    options = {"api_key": "none", "max_retries": 0, **more}
    return openai.AsyncOpenAI(base_url=f"{door.url}/v1", **options)


@pytest.fixture
async def door(mesh: Mesh, start_door: StartDoor) -> Door:
    """A gateway, and agents of all kinds."""
    for agent in (Counter, Parrot, Stuck, Calculator):
        await mesh.spawn(agent)
    return await start_door()


@pytest.fixture
async def client(door: Door) -> AsyncIterator[openai.AsyncOpenAI]:
    """Of OpenAI."""
    async with client_of(door) as one:
        yield one


def said(text: str) -> list[dict[str, str]]:
    return [{"role": USER, "content": text}]


async def test_models_are_the_agents_that_can_be_chatted_with(client: openai.AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]

    assert [model.id for model in models] == ["calculator", "counter", "parrot", "stuck"]
    assert {model.owned_by for model in models} == {"agentmesh"}
    assert (await client.models.retrieve("counter")).created > 1_600_000_000
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


async def test_a_completion_is_the_whole_answer_with_its_usage(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="counter", messages=said("tokens=5"))

    assert answer.choices[0].message.content == "".join(tokens(5))
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.model, answer.object) == ("counter", "chat.completion")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 5, 8)


async def test_tokens_are_streamed_as_they_come(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="counter", messages=said("tokens=5"), stream=True)

    pieces = [piece async for piece in stream]

    assert [piece.choices[0].delta.content for piece in pieces[1:-1]] == tokens(5)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert len({piece.id for piece in pieces}) == 1


async def test_usage_comes_last_where_it_is_asked_for(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="counter", messages=said("tokens=2"), stream=True, stream_options={"include_usage": True}
    )

    pieces = [piece async for piece in stream]

    assert [piece.usage for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices == []
    assert pieces[-1].usage.total_tokens == 5


async def test_an_agent_that_counts_no_tokens_is_counted(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="parrot", messages=said("one, two"))

    assert answer.choices[0].message.content == "ONE, TWO"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)


async def test_tool_calls_are_passed_through_and_back(client: openai.AsyncOpenAI) -> None:
    first = await client.chat.completions.create(model="calculator", messages=said("1+2?"), tools=[ADD])

    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert [(call.id, call.function.name) for call in message.tool_calls] == [("call_0", "add"), ("call_1", "add")]
    assert message.tool_calls[0].function.arguments == '{"a": 1, "b": 2}'
    assert message.reasoning_content == "Let me see. "

    second = await client.chat.completions.create(
        model="calculator",
        messages=[*said("1+2?"), message, {"role": "tool", "tool_call_id": "call_0", "content": "3"}],
        tools=[ADD],
    )
    assert second.choices[0].message.content == "It is 3."


async def test_tool_calls_are_streamed(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="calculator", messages=said("1+2?"), tools=[ADD]) as stream:
        final = await stream.get_final_completion()

    calls = final.choices[0].message.tool_calls
    assert [call.function.arguments for call in calls] == ['{"a": 1, "b": 2}', '{"a": 3, "b": 4}']
    assert final.choices[0].finish_reason == "tool_calls"


async def test_calls_of_tools_that_were_not_offered_stay_with_the_agent(mesh: Mesh, door: Door) -> None:
    class Own(Agent):
        @handler
        async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
            yield ChatPart(type="tool_call", data={"id": "1", "name": "secret", "arguments": {}})
            yield ChatPart(type="tool_result", data={"id": "1", "result": "x"})
            yield ChatPart(content="done")

    await mesh.spawn(Own)
    async with client_of(door) as client:
        answer = await client.chat.completions.create(model="own", messages=said("go"))

    assert answer.choices[0].message.tool_calls is None
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("done", "stop")


async def test_the_response_format_reaches_the_agent(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="calculator", messages=said("1+2?"), response_format={"type": "json_object"}
    )

    assert answer.choices[0].message.content == '{"sum": 3}'


async def test_content_in_parts_is_put_together(client: openai.AsyncOpenAI) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    answer = await client.chat.completions.create(model="parrot", messages=[{"role": USER, "content": parts}])

    assert answer.choices[0].message.content == "ONE TWO"


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 2}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": USER, "content": [{"type": "image_url"}]}]}, "messages.0"),
    ],
)
async def test_what_cannot_be_is_a_bad_request_that_names_the_parameter(
    client: openai.AsyncOpenAI, fields: dict[str, object], parameter: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{"model": "parrot", "messages": said("x"), **fields})

    assert caught.value.param == parameter
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_is_not_there_is_not_found(client: openai.AsyncOpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="nobody", messages=said("x"), stream=stream)

    assert caught.value.code == "model_not_found"


async def test_a_failing_agent_is_an_internal_error_without_its_words(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="counter", messages=said("tokens=3 fail=0"))

    assert "ValueError" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_failure_in_the_middle_of_a_stream_is_raised(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="counter", messages=said("tokens=9 fail=3"), stream=True)
    seen = [(await anext(stream)).choices[0].delta.content for _ in range(4)]

    with pytest.raises(openai.APIError, match="failed with ValueError"):
        await anext(stream)
    assert "".join(seen) == "t0 t1 t2 "


async def test_a_wrong_key_is_an_authentication_error(mesh: Mesh, start_door: StartDoor) -> None:
    door = await start_door(keys=(KeyOptions("ours", digest("token-of-ours")),))
    async with client_of(door) as wrong, client_of(door, api_key="token-of-ours") as right:
        assert [model async for model in right.models.list()] == []
        with pytest.raises(openai.AuthenticationError) as caught:
            await wrong.models.list()
    assert caught.value.type == "authentication_error"


async def test_the_client_tries_again_after_as_long_as_it_is_told(mesh: Mesh, start_door: StartDoor) -> None:
    await mesh.spawn(Parrot)
    door = await start_door(keys=(KeyOptions("slow", digest("token-of-slow"), rate=1.0),))
    async with client_of(door, api_key="token-of-slow", max_retries=0) as once:
        await once.chat.completions.create(model="parrot", messages=said("a"))
        with pytest.raises(openai.RateLimitError) as caught:
            await once.chat.completions.create(model="parrot", messages=said("b"))
    assert caught.value.response.headers["retry-after"] == "1"
    async with client_of(door, api_key="token-of-slow", max_retries=5) as patient:
        answer = await patient.chat.completions.create(model="parrot", messages=said("c"))
    assert answer.choices[0].message.content == "C"


async def test_a_client_that_gives_up_stops_the_agent(mesh: Mesh, start_door: StartDoor) -> None:
    stopped = asyncio.Event()
    await mesh.spawn(Stuck, stopped)
    door = await start_door()
    async with client_of(door, timeout=0.5) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="stuck", messages=said("x"))
    await asyncio.wait_for(stopped.wait(), 10)


async def test_a_reader_that_leaves_a_stream_stops_the_agent(mesh: Mesh, start_door: StartDoor) -> None:
    stopped = asyncio.Event()
    await mesh.spawn(Stuck, stopped)
    door = await start_door()
    async with client_of(door) as client:
        stream = await client.chat.completions.create(model="stuck", messages=said("x"), stream=True)
        async for piece in stream:
            if piece.choices[0].delta.content:
                break
        await stream.close()
    await asyncio.wait_for(stopped.wait(), 10)
    await eventually(lambda: door.streams == 0, 10)


async def test_signs_of_life_between_tokens_do_not_disturb_the_client(
    mesh: Mesh, start_door: StartDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.gateway.sse.HEARTBEAT", 0.03)
    await mesh.spawn(Counter)
    door = await start_door()
    async with client_of(door) as client:
        stream = await client.chat.completions.create(model="counter", messages=said("tokens=3 pace=150"), stream=True)
        text = "".join([piece.choices[0].delta.content or "" async for piece in stream])
    body = {"model": "counter", "messages": said("tokens=3 pace=150"), "stream": True}
    raw = (await door.http.post("/v1/chat/completions", json=body)).text

    assert text == "".join(tokens(3))
    assert ": still here" in raw
    assert "id:" not in [line[:3] for line in raw.splitlines()]


async def test_part_of_the_name_of_a_model_chooses_among_those_of_an_agent(mesh: Mesh, door: Door) -> None:
    class Several(Agent):
        @handler
        async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
            yield ChatPart(content=f"{chat.model} {sorted(chat.params)}")

    await mesh.spawn(Several)
    async with client_of(door) as client:
        answer = await client.chat.completions.create(
            model="several/small", messages=said("x"), temperature=0.5, max_tokens=7, seed=1
        )

    assert answer.choices[0].message.content == "small ['max_tokens', 'seed', 'temperature']"
