"""The offline model: what it answers, word for word, and how it counts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.agents.llm import GenerationParameters, LLMPart, ModelCall
from agentmesh.agents.llm.backends.offline import OfflineBackend, count_tokens, tokenize
from agentmesh.chat import ChatMessage

ANDES = (
    "The Andes are the longest continental mountain range in the world. They run along the western edge of South "
    "America for about 7,000 kilometres. Their highest peak is Aconcagua, at 6,961 metres. The range passes through "
    "seven countries: Venezuela, Colombia, Ecuador, Peru, Bolivia, Chile and Argentina. Potatoes and tomatoes were "
    "first grown there. Many rivers, the Amazon among them, rise in the Andes."
)


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def system(text: str) -> ChatMessage:
    return ChatMessage(role="system", content=text)


def assistant(text: str, calls: int = 0) -> ChatMessage:
    return ChatMessage(role="assistant", content=text, tool_calls=[{}] * calls or None)


async def parts(*messages: ChatMessage | str, **more: Any) -> list[LLMPart]:
    said = [user(message) if isinstance(message, str) else message for message in messages]
    return [part async for part in OfflineBackend().generate(ModelCall("offline", said, **more))]


async def answer(*messages: ChatMessage | str, **more: Any) -> str:
    return "".join(part.content for part in await parts(*messages, **more))


async def calls(*messages: ChatMessage | str, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    found = [part.data["function"] for part in await parts(*messages, **more) if part.type == "tool_call"]
    return [(one["name"], json.loads(one["arguments"])) for one in found]


DOG = (user("My dog is called Rex and he is five."), assistant("Noted."), user("I live in Lyon."), assistant("Noted."))

GOLDEN = [
    ("Summarise in one sentence:\n\n" + ANDES, "The Andes are the longest continental mountain range in the world."),
    (
        "Summarise: " + ANDES,
        "The Andes are the longest continental mountain range in the world. The range passes through seven countries: "
        "Venezuela, Colombia, Ecuador, Peru, Bolivia, Chile and Argentina. Many rivers, the Amazon among them, rise in "
        "the Andes.",
    ),
    (
        f"Context: {ANDES}\n\nQuestion: Which rivers rise there?\nAnswer:",
        "Many rivers, the Amazon among them, rise in the Andes.",
    ),
    ("How many words are there?\n\n" + ANDES, "There are 65 words."),
    ("What is 17 * 23?", "17 * 23 = 391"),
    ("How much is 12 times 3 plus 4?", "12 * 3 + 4 = 40"),
    ("What is 15% of 80?", "15 / 100 * 80 = 12"),
    ("What is the average of 3, 4 and 8?", "The average of 3, 4, 8 is 5."),
    ("What is 1/0?", "I do not know: I was given no text about this. (Asked: What is 1/0)"),
    ("Say hello world", "hello world"),
    ("Who won the cup in 1954?", "I do not know: I was given no text about this. (Asked: Who won the cup in 1954)"),
    ("What did I say about cats?", "You have said nothing before this in our conversation."),
    ("The deploy failed at 03:43 because the disk of db-2 was full. Ada fixed it.", "Noted. Ask me about it."),
]


@pytest.mark.parametrize(("asked", "answered"), GOLDEN, ids=[asked[:30] for asked, _ in GOLDEN])
async def test_a_question_has_its_answer(asked: str, answered: str) -> None:
    assert await answer(asked) == answered


IN_SYSTEM = [
    ("How high is the highest peak?", "Their highest peak is Aconcagua, at 6,961 metres."),
    ("List the countries", "- Venezuela\n- Colombia\n- Ecuador\n- Peru\n- Bolivia\n- Chile\n- Argentina"),
    ("Summarise the text in two bullet points", "- The Andes are the longest continental mountain range in the world.\n"
     "- Many rivers, the Amazon among them, rise in the Andes."),
    ("Who was the king of France in 1700?",
     "I do not know: the text I was given does not say. (Asked: Who was the king of France in 1700)"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "answered"), IN_SYSTEM, ids=[asked for asked, _ in IN_SYSTEM])
async def test_a_text_in_the_system_message_is_answered_from(asked: str, answered: str) -> None:
    assert await answer(system(f"You are a helper. Answer from the text.\n{ANDES}"), asked) == answered


SAID = [
    ("What did I say about my dog?", "About my dog you said: “My dog is called Rex and he is five.”"),
    ("What did I say about cats?", "You have said nothing about cats in this conversation."),
    ("Where do I live?", "You said: “I live in Lyon.”"),
    ("What did I say?", "You said: “My dog is called Rex and he is five.” “I live in Lyon.”"),
]


@pytest.mark.parametrize(("asked", "answered"), SAID, ids=[asked for asked, _ in SAID])
async def test_what_was_said_before_is_remembered(asked: str, answered: str) -> None:
    assert await answer(*DOG, asked) == answered


async def test_documents_of_the_context_are_answered_from_and_named() -> None:
    documents = [
        {"title": "Andes", "text": ANDES},
        {"title": "Alps", "text": "Mont Blanc is the highest peak of the Alps."},
    ]

    assert await answer("What is the highest peak of the Alps?", context={"documents": documents}) == (
        "Mont Blanc is the highest peak of the Alps. [Alps]"
    )


async def test_the_same_question_has_the_same_answer_whatever_the_temperature() -> None:
    asked = [
        await answer("Summarise: " + ANDES, params=GenerationParameters(temperature=value, seed=seed))
        for value, seed in ((None, None), (0, 1), (2, 99))
    ]
    assert len(set(asked)) == 1


@pytest.mark.seed("A18")
async def test_tokens_are_streamed_and_counted() -> None:
    said = await parts("Say one two three extraordinarily")

    assert [part.content for part in said[:-1]] == ["one", " two", " three", " extrao", "rdinar", "ily"]
    assert said[-1].data == {
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16},
    }


async def test_max_tokens_and_stop_end_an_answer() -> None:
    cut = await parts("Say one two three", params=GenerationParameters(max_tokens=2))
    stopped = await parts("Say one two three", params=GenerationParameters(stop=[" th"]))

    assert ("".join(part.content for part in cut), cut[-1].data["finish_reason"]) == ("one two", "length")
    assert ("".join(part.content for part in stopped), stopped[-1].data["finish_reason"]) == ("one two", "stop")


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text
    assert len(tokenize(text)) == count_tokens(text)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "mood": {"enum": ["happy", "sad"]},
        "active": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name", "age", "city", "email", "mood", "note"],
}


async def test_a_schema_is_filled_from_the_text() -> None:
    text = (
        "Extract: Ada Lovelace is 36 years old, lives in London and is happy. Her email is ada@example.org. "
        "Her account is active. Tags: math, poetry and engines."
    )
    written = await answer(text, response_format={"type": "json_schema", "json_schema": {"schema": PERSON}})

    assert json.loads(written) == {
        "name": "Ada Lovelace",
        "age": 36,
        "city": "London",
        "email": "ada@example.org",
        "tags": ["math", "poetry", "engines"],
        "mood": "happy",
        "active": True,
        "note": None,
    }


async def test_a_schema_that_the_text_says_nothing_about_is_still_kept_to() -> None:
    schema = {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 3}, "who": {"$ref": "#/$defs/who"}},
        "required": ["count", "who"],
        "$defs": {"who": {"type": "object", "properties": {"first": {"type": "string"}}, "required": ["first"]}},
    }
    written = await answer("Hm.", response_format={"type": "json_schema", "json_schema": {"schema": schema}})

    assert json.loads(written) == {"count": 3, "who": {"first": ""}}


async def test_a_summary_in_a_schema_is_a_summary_and_json_mode_is_json() -> None:
    schema = {"type": "object", "properties": {"summary": {"type": "string"}}, "required": ["summary"]}
    written = await answer(
        "Look at this: " + ANDES, response_format={"type": "json_schema", "json_schema": {"schema": schema}}
    )
    loose = await answer("What is 2 + 2?", response_format={"type": "json_object"})

    assert json.loads(written)["summary"].startswith("The Andes are the longest")
    assert json.loads(loose) == {"answer": "2 + 2 = 4"}


def tool(name: str, description: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TEXT = {"type": "string"}
TOOLS = [
    tool("get_weather", "Current weather in a city", ("city",), city=TEXT, unit={"enum": ["celsius", "fahrenheit"]}),
    tool("calculator", "Evaluate an arithmetic expression", ("expression",), expression=TEXT),
    tool("search_web", "Search the web", ("query",), query=TEXT, limit={"type": "integer", "default": 5}),
    tool("save_note", "Save a note", ("text",), text=TEXT),
]
SEARCH = "Search the web for durable actors, then save it as a note"

CALLED = [
    ("What is the weather in Paris?", [("get_weather", {"city": "Paris"})]),
    ("What is 6 * 7?", [("calculator", {"expression": "6 * 7"})]),
    ("What's the weather in New York in fahrenheit and what is 2+2?",
     [("get_weather", {"city": "New York", "unit": "fahrenheit"}), ("calculator", {"expression": "2+2"})]),
    (SEARCH, [("search_web", {"query": "durable actors"})]),
    ("Tell me a story", []),
    ("Hello there", []),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "called"), CALLED, ids=[asked for asked, _ in CALLED])
async def test_a_tool_that_fits_is_called(asked: str, called: list[tuple[str, dict[str, Any]]]) -> None:
    assert await calls(asked, tools=TOOLS) == called


async def test_one_tool_after_the_other_and_then_the_answer() -> None:
    first = (user(SEARCH), assistant("", 1), ChatMessage(role="tool", content="Actors that survive crashes."))
    second = (*first, assistant("", 1), ChatMessage(role="tool", content='{"saved": "note 7"}'))

    assert await calls(*first, tools=TOOLS) == [("save_note", {"text": "Actors that survive crashes."})]
    assert await answer(*second, tools=TOOLS) == "Actors that survive crashes.\nnote 7."


async def test_the_choice_of_tools_is_respected() -> None:
    named = {"type": "function", "function": {"name": "save_note"}}

    assert await calls("What is 6 * 7?", tools=TOOLS, tool_choice="none") == []
    assert await calls('Note "buy milk"', tools=TOOLS, tool_choice=named) == [("save_note", {"text": "buy milk"})]
    assert len(await calls("Tell me a story", tools=TOOLS, tool_choice="required")) == 1


HOSTILE = ["a", " ", "\n", "1", "1,", "1+", "(", "A. ", "Mr. A ", "a: ", "a@", "a/", "1-", "Ab ", "what did I say "]


@pytest.mark.slow
@pytest.mark.parametrize("piece", HOSTILE)
async def test_no_text_takes_for_ever(piece: str) -> None:
    """Rules that look again at everything for each character would need minutes."""
    text = piece * (60_000 // len(piece))
    wanted = {"type": "json_schema", "json_schema": {"schema": PERSON}}

    async with asyncio.timeout(60):
        await parts(f"Summarise: {text}")
        await parts(f"Extract: {text}", response_format=wanted)
        await parts(f"The weather {text}", tools=TOOLS)
        await parts(system(text), "What is said about it?")
