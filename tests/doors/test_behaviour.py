"""One behaviour, whatever the way in: every test here runs once for each."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh import Mesh
from agentmesh.agents.llm import LLMRequest
from tests.doors.conftest import Model, OpenHouse
from tests.doors.ways import Way, all_pieces


@pytest.mark.seed("A7", "A10", "A19", "A21", "A23", "B22", "B34")
async def test_the_same_request_gets_the_same_answer_as_from_an_agent(mesh: Mesh, model: Model, way: Way) -> None:
    told = await way.ask("say one two three")
    parts = [part async for part in mesh.stream("llm", LLMRequest(prompt="say one two three"))]

    expected = parts[-1].response()
    assert (told.text, told.finish, told.code) == ("one two three", "stop", "")
    assert told.text == expected.text
    assert told.finish == expected.finish_reason
    assert told.usage == (1, 3, 4) == tuple(expected.usage.model_dump().values())
    assert told.meta["request_id"]
    assert told.generation_id


@pytest.mark.seed("A24")
async def test_messages_are_answered_too(model: Model, way: Way) -> None:
    told = await way.ask(messages=[("system", "Be brief."), ("user", "say yes")])

    assert told.text == "yes"
    assert [(one.role, one.content) for one in model.calls[0].messages] == [
        ("system", "Be brief."),
        ("user", "say yes"),
    ]


@pytest.mark.seed("A6", "A12")
async def test_what_is_set_to_zero_is_not_unset(model: Model, way: Way) -> None:
    await way.ask("say a", params={"temperature": 0.0, "max_tokens": 7, "presence_penalty": -0.5, "stop": ["\n"]})
    await way.ask("say b")

    said, unsaid = (call.params for call in model.calls)
    assert (said.temperature, said.max_tokens, said.presence_penalty, said.stop) == (0.0, 7, -0.5, ["\n"])
    assert (said.top_p, said.top_k, said.frequency_penalty) == (None, None, None)
    assert (unsaid.temperature, unsaid.max_tokens, unsaid.presence_penalty, unsaid.stop) == (None, None, None, [])


@pytest.mark.seed("A5", "B32")
async def test_the_id_of_a_request_comes_back(model: Model, way: Way) -> None:
    told = await way.ask("say a", meta={"request_id": "r-1", "trace_id": "t-1"})

    assert told.meta["request_id"] == "r-1"
    assert told.meta.get("trace_id", "t-1") == "t-1"
    assert model.calls[0].request_id in ("r-1", "")  # the backend sees it, once the pipeline hands it on


@pytest.mark.seed("A11", "B35")
async def test_an_error_of_the_model_is_told_by_its_code(model: Model, way: Way) -> None:
    for code in ("INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION", "UNIMPLEMENTED"):
        told = await way.ask(f"fail {code}")

        assert told.code == code
        assert "as told" in told.message
        assert told.finish == "error"


@pytest.mark.seed("A11")
async def test_a_request_for_nothing_is_refused(model: Model, way: Way) -> None:
    empty = await way.ask("  ")
    none = await way.ask(messages=[])

    assert (empty.code, none.code) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert not model.calls


@pytest.mark.seed("A11", "A23")
async def test_a_parameter_that_cannot_be_is_refused_by_its_name(model: Model, way: Way) -> None:
    told = await way.ask("say a", params={"top_p": 1.5})

    assert told.code == "INVALID_ARGUMENT"
    assert "top_p" in told.message
    assert not model.calls


@pytest.mark.seed("A23")
async def test_an_unknown_field_is_refused_and_the_one_that_was_meant_is_named(model: Model, way: Way) -> None:
    if way.name == "protobuf":
        pytest.skip("a protobuf message has no field that is not in its contract")

    told = await way.ask("say a", params={"temprature": 0.5})

    assert told.code == "INVALID_ARGUMENT"
    assert "temprature" in told.message
    assert "'temperature'" in told.message
    assert not model.calls


async def test_an_unknown_model_is_not_found(house: OpenHouse, way: Way) -> None:
    await house()

    told = await way.ask("say a", model="nonesuch")

    assert told.code == "NOT_FOUND"
    assert "nonesuch" in told.message


@pytest.mark.seed("A12", "A13", "A14")
async def test_a_stream_has_every_piece_once_and_one_end(model: Model, way: Way) -> None:
    pieces = await all_pieces(way, "say one two three")

    assert [piece.index for piece in pieces] == list(range(4))
    assert [piece.is_final for piece in pieces] == [False, False, False, True]
    assert [piece.told.text for piece in pieces[:-1]] == ["one", " two", " three"]
    assert (pieces[-1].told.finish, pieces[-1].told.usage, pieces[-1].told.code) == ("stop", (1, 3, 4), "")
    assert len({piece.told.generation_id for piece in pieces if piece.told.generation_id}) <= 1


@pytest.mark.seed("A11", "A14")
async def test_a_stream_that_fails_on_the_way_says_so_in_its_last_piece(model: Model, way: Way) -> None:
    pieces = await all_pieces(way, "fail PERMISSION_DENIED after 3")

    assert "".join(piece.told.text for piece in pieces) == "0 1 2 "
    assert [piece.index for piece in pieces] == list(range(4))
    assert [piece.is_final for piece in pieces] == [False, False, False, True]
    assert (pieces[-1].told.code, pieces[-1].told.finish) == ("PERMISSION_DENIED", "error")


async def test_a_stream_that_cannot_begin_is_one_last_piece(model: Model, way: Way) -> None:
    pieces = await all_pieces(way, "fail FAILED_PRECONDITION")

    assert [(piece.index, piece.is_final, piece.told.code) for piece in pieces] == [(0, True, "FAILED_PRECONDITION")]


@pytest.mark.seed("A9", "A11")
async def test_a_stream_that_is_refused_is_one_last_piece_too(house: OpenHouse, way: Way) -> None:
    model = await house(capacity=1)
    empty = await all_pieces(way, "  ")
    holding = asyncio.create_task(way.ask("wait here"))
    await model.until_waiting(1)

    full = await all_pieces(way, "say a")
    model.go.set()
    await holding

    assert [(piece.index, piece.is_final, piece.told.code) for piece in empty] == [(0, True, "INVALID_ARGUMENT")]
    assert [(piece.index, piece.is_final, piece.told.code) for piece in full] == [(0, True, "RESOURCE_EXHAUSTED")]


@pytest.mark.seed("A5", "B32")
async def test_with_the_same_key_the_model_is_asked_once(model: Model, way: Way) -> None:
    first = await way.ask("say one two", key="key-1")
    again = await way.ask("say one two", key="key-1")

    assert (again.text, again.usage, again.finish) == (first.text, first.usage, first.finish)
    assert again.generation_id == first.generation_id
    assert len(model.calls) == 1


async def test_requests_with_the_same_key_at_the_same_time_share_the_answer(model: Model, way: Way) -> None:
    asking = [asyncio.create_task(way.ask("wait here", key="key-2")) for _ in range(4)]
    await model.until_waiting(1)
    model.go.set()

    answers = await asyncio.gather(*asking)

    assert {answer.text for answer in answers} == {"here"}
    assert len({answer.generation_id for answer in answers}) == 1
    assert len(model.calls) == 1


async def test_the_same_key_for_something_else_is_a_conflict(model: Model, way: Way) -> None:
    await way.ask("say one", key="key-3")

    told = await way.ask("say two", key="key-3")

    assert told.code == "CONFLICT"
    assert "key-3" in told.message
    assert len(model.calls) == 1


async def test_what_may_pass_is_tried_again_under_the_same_key(model: Model, way: Way) -> None:
    failed = await way.ask("fail UNAVAILABLE", key="key-4")
    await way.ask("fail UNAVAILABLE", key="key-4")

    assert failed.code == "UNAVAILABLE"
    assert len(model.calls) >= 2


async def test_a_stream_with_a_known_key_is_told_again(model: Model, way: Way) -> None:
    first = await all_pieces(way, "say one two", key="key-5")
    again = await all_pieces(way, "say one two", key="key-5")
    whole = await way.ask("say one two", key="key-5")

    text = "".join(piece.told.text for piece in again)
    assert text == "".join(piece.told.text for piece in first) == whole.text == "one two"
    assert again[-1].told.usage == first[-1].told.usage
    assert again[-1].told.generation_id == first[-1].told.generation_id
    assert [piece.index for piece in again] == list(range(len(again)))
    assert len(model.calls) == 1


@pytest.mark.seed("A14")
async def test_a_client_that_leaves_a_stream_stops_the_model(model: Model, way: Way) -> None:
    async with asyncio.timeout(30), way.stream("count 1000000") as pieces:
        async for piece in pieces:
            if piece.index == 5:
                break

    async with asyncio.timeout(20):
        await model.cancelled.wait()
    assert model.under_way == 0


@pytest.mark.seed("A7")
async def test_requests_are_under_way_together(model: Model, way: Way) -> None:
    asking = [asyncio.create_task(way.ask(f"wait {number}")) for number in range(5)]

    await model.until_waiting(5)
    assert model.under_way == 5
    model.go.set()

    assert sorted([(await told).text for told in asking]) == ["0", "1", "2", "3", "4"]


@pytest.mark.seed("A7", "A14", "B33")
async def test_an_answer_that_is_not_there_by_the_deadline_is_given_up(model: Model, way: Way) -> None:
    told = await way.ask("wait for ever", timeout=0.3)
    pieces = await all_pieces(way, "say a then wait", timeout=0.3)

    assert told.code == "DEADLINE_EXCEEDED"
    assert (pieces[-1].is_final, pieces[-1].told.code) == (True, "DEADLINE_EXCEEDED")
    assert model.under_way == 0


@pytest.mark.seed("A9")
async def test_a_gateway_that_is_full_says_so(house: OpenHouse, way: Way) -> None:
    model = await house(capacity=1)
    holding = asyncio.create_task(way.ask("wait here"))
    await model.until_waiting(1)

    told = await way.ask("say a")
    model.go.set()

    assert told.code == "RESOURCE_EXHAUSTED"
    assert (await holding).text == "here"
