"""Promises of `@tool`: schema, names, strict arguments, typed results."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import cloudpickle  # type: ignore[import-untyped]
import pytest
from pydantic import Field

from agentmesh.errors import (
    DefinitionError,
    InvalidMessageError,
    InvalidNameError,
    ToolArgumentsError,
    ToolFailedError,
)
from agentmesh.tooling import Limits, Setting, tool
from tests.core.hostile import TOKENS
from tests.tools import samples


class Colour(Enum):
    RED = "red"


def test_a_tool_is_still_the_function() -> None:
    assert samples.add(1) == 3
    assert samples.add(1, b=5) == 6
    assert samples.add.__doc__ is not None


def test_the_schema_comes_from_the_signature_and_the_docstring() -> None:
    @tool
    def search(
        query: str,
        top: Annotated[int, Field(ge=1, le=10)] = 3,
        kind: Literal["text", "code"] | None = None,
        *,
        json: bool = False,
    ) -> list[str]:
        """Find documents.

        The best ones first.

        Args:
            query: What to look for,
                in plain words.
            top (int): How many.
            json: Whether as JSON.

        Returns:
            Their names.
        """
        return [query]

    assert search.name == "search"
    assert search.description == "Find documents.\n\nThe best ones first."
    assert search.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["query"],
        "properties": {
            "query": {"type": "string", "description": "What to look for, in plain words."},
            "top": {"type": "integer", "minimum": 1, "maximum": 10, "default": 3, "description": "How many."},
            "kind": {"anyOf": [{"enum": ["text", "code"], "type": "string"}, {"type": "null"}], "default": None},
            "json": {"type": "boolean", "default": False, "description": "Whether as JSON."},
        },
    }
    assert search.returns == {"type": "array", "items": {"type": "string"}}


def test_a_tool_without_arguments_has_an_empty_schema() -> None:
    assert samples.thread_name.parameters == {"type": "object", "additionalProperties": False, "properties": {}}


def test_options_replace_what_comes_from_the_function() -> None:
    @tool(name="other", description="Something else.", isolation="thread", timeout=2.5, memory_bytes=10, effect=True)
    def function() -> None:
        """Ignored."""

    assert (function.name, function.description, function.isolation) == ("other", "Something else.", "thread")
    assert function.limits == Limits(timeout=2.5, memory_bytes=10)
    assert function.effect


def test_plain_functions_run_in_processes_and_async_ones_on_the_loop() -> None:
    assert samples.add.isolation == "subprocess"
    assert samples.slow_add.isolation == "async"


@pytest.mark.parametrize("name", TOKENS)
def test_g1_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        tool(name=name)(lambda: None)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (b'{"a": "1"}', "a: Input should be a valid integer"),
        (b'{"a": 1.5}', "a: Input should be a valid integer"),
        (b'{"a": true}', "a: Input should be a valid integer"),
        (b'{"a": null}', "a: Input should be a valid integer"),
        (b"{}", "a: Field required"),
        (b'{"a": 1, "c": 2}', "c: there is no such argument"),
        (b'{"a": 1, "b": "x"}', "b: Input should be a valid integer"),
        (b"[1, 2]", "Input should be an object"),
        (b"null", "Input should be an object"),
        (b'{"a": 1', "Invalid JSON"),
        (b"", "Invalid JSON"),
        (b'{"a": ' + b"[" * 100_000, "recursion limit"),
        (b'{"a": NaN}', "a: Input should be a valid integer"),
        (b'{"a": "\xff"}', "Invalid JSON"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(arguments: bytes, problem: str) -> None:
    with pytest.raises(ToolArgumentsError, match="tool 'add' was not run") as raised:
        samples.add.decode_arguments(arguments)

    assert problem in str(raised.value)


def test_arguments_become_the_types_of_the_signature() -> None:
    @tool
    def paint(at: datetime, where: tuple[int, int], colour: Colour, ratio: float, path: Path | None = None) -> None:
        """Paint."""

    paint_arguments = {"at": datetime(2026, 1, 2, tzinfo=UTC), "where": (1, 2), "colour": Colour.RED, "ratio": 1}
    decoded = paint.decode_arguments(paint.encode_arguments(paint_arguments))

    assert decoded == {"at": datetime(2026, 1, 2, tzinfo=UTC), "where": (1, 2), "colour": Colour.RED, "ratio": 1.0}


def test_an_argument_without_a_json_form_is_refused() -> None:
    with pytest.raises(ToolArgumentsError, match="no JSON form"):
        samples.add.encode_arguments({"a": object()})


def test_bind_turns_positions_into_names() -> None:
    assert samples.add.bind(1, b=3) == {"a": 1, "b": 3}


def test_results_have_the_annotated_type_on_both_sides() -> None:
    point = samples.Point(x=1, y=2)
    assert samples.mirror.decode_result(samples.mirror.encode_result(point)) == point
    with pytest.raises(InvalidMessageError, match="result of tool 'mirror'"):
        samples.mirror.decode_result(b'{"x": "no"}')
    with pytest.raises(ToolFailedError, match="annotated to return"):
        samples.add.encode_result("text")


def _bad_declarations() -> dict[str, Callable[[], object]]:
    def no_hint(a) -> None:  # type: ignore[no-untyped-def]
        pass

    def rest(*values: int) -> None:
        pass

    def keywords(**values: int) -> None:
        pass

    def position(a: int, /) -> None:
        pass

    def unknown(a: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    def no_form(a: Callable[[], int]) -> None:
        pass

    def no_default(*, root: Annotated[Path, Setting()]) -> None:
        pass

    async def coroutine() -> None:
        pass

    def plain() -> None:
        pass

    return {
        "no type hint": lambda: tool(no_hint),
        "arguments go by name, so write each": lambda: tool(rest),
        "parameter 'values'": lambda: tool(keywords),
        "parameter 'a': arguments": lambda: tool(position),
        "type hint cannot be resolved": lambda: tool(unknown),
        "JSON form": lambda: tool(no_form),
        "needs a default": lambda: tool(no_default),
        "needs a plain function": lambda: tool(isolation="thread")(coroutine),
        "needs an 'async def'": lambda: tool(isolation="async")(plain),
        "must be async, thread or subprocess": lambda: tool(isolation="vm")(plain),  # type: ignore[call-overload]
        "timeout must be above 0": lambda: tool(timeout=0)(plain),
    }


@pytest.mark.parametrize(("problem", "declare"), _bad_declarations().items(), ids=_bad_declarations())
def test_a_function_that_cannot_be_a_tool_is_refused_when_it_is_declared(
    problem: str, declare: Callable[[], object]
) -> None:
    with pytest.raises(DefinitionError) as raised:
        declare()

    assert problem in str(raised.value)


def test_settings_are_no_arguments_and_are_checked_when_they_are_set() -> None:
    assert samples.under_root.parameters["properties"] == {}
    assert samples.under_root.settings == {"root": Path.cwd(), "limit": 3}
    with pytest.raises(ToolArgumentsError, match="root: there is no such argument"):
        samples.under_root.encode_arguments({"root": "/"})

    configured = samples.under_root.configure(root="/srv", limit=7)

    assert configured() == "/srv 7"
    assert samples.under_root() == ". 3"
    assert configured.configure(limit=8).settings == {"root": Path("/srv"), "limit": 8}
    assert configured.decode_settings(configured.settings_json()) == configured.settings
    with pytest.raises(DefinitionError, match="no setting 'folder'"):
        samples.under_root.configure(folder="/")
    with pytest.raises(DefinitionError, match="setting 'limit'"):
        samples.under_root.configure(limit="many")


def test_a_tool_can_be_shipped_with_the_function_it_is_made_of() -> None:
    factor = 3

    @tool(timeout=5.0)
    def scale(point: samples.Point) -> samples.Point:
        """Make it larger."""
        return samples.Point(x=point.x * factor, y=point.y * factor)

    copy: Any = pickle.loads(cloudpickle.dumps(scale))

    assert copy(samples.Point(x=1, y=2)) == samples.Point(x=3, y=6)
    assert (copy.parameters, copy.limits, copy.description) == (scale.parameters, scale.limits, "Make it larger.")
