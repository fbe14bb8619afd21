"""Tools: plain functions that agents call by name, run by tool executors under limits.

    @tool
    def word_count(text: str, minimum: int = 1) -> int:
        \"\"\"Count the words of a text.

        Args:
            text: What to count in.
            minimum: Shortest word that counts, in letters.
        \"\"\"
        return sum(len(word) >= minimum for word in text.split())

The signature and the docstring are the JSON Schema of the arguments. A tool is still the function: `word_count("a b")`
runs it here. `await tools.call(word_count, text="a b")`, or `tools.call("word_count", …)`, runs it in an executor
(`python -m agentmesh.tools`), with the arguments checked before anything runs.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, ParamSpec, TypeVar, get_args, get_origin, overload

import pydantic_core
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PydanticSchemaGenerationError,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError

from agentmesh.errors import (
    DefinitionError,
    InvalidMessageError,
    ToolArgumentsError,
    ToolFailedError,
)
from agentmesh.subjects import token
from agentmesh.tooling.wire import ToolInfo

if TYPE_CHECKING:  # child processes need this module, and no connection
    pass

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

Isolation = Literal["async", "thread", "subprocess"]


class Setting:
    """Marks a parameter that whoever serves the tool sets, and callers neither see nor send.

    def read_file(path: str, *, root: Annotated[Path, Setting()] = Path()) -> str: ...

    tools = [read_file.configure(root="/srv/docs")]
    """


@dataclass(frozen=True)
class Limits:
    """What one call may use. All but `timeout` and `output_bytes` bind only tools with `isolation="subprocess"`."""

    timeout: float = 30.0
    """Seconds of wall clock."""

    cpu_seconds: float | None = None
    """Seconds of CPU time of each process, rounded up; None: only `timeout` ends it."""

    memory_bytes: int = 1 << 30
    """Address space of each process."""

    output_bytes: int = 64_000
    """Size of the result as JSON, and of what the tool prints."""

    file_bytes: int = 64 << 20
    """Size of each file it writes."""

    open_files: int = 256
    """Files each process may have open."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not value > 0:
                raise DefinitionError("tool", f"{limit.name} must be above 0, not {value!r}")


class Tool(Generic[P, R_co]):
    """A function with a name, a schema and limits. Made by `@tool`; calling it runs the function here and now."""

    name: str
    description: str
    isolation: Isolation
    limits: Limits
    effect: bool
    """Whether it changes something outside itself, so that repeating a call, or approving it, matters."""
    once: bool
    """Whether a call that the handler of a task makes is run once, however often the task is tried."""
    parameters: dict[str, Any]
    """JSON Schema of the arguments: an object."""
    returns: dict[str, Any]
    """JSON Schema of the result."""

    def __init__(
        self,
        function: Callable[P, R_co],
        *,
        name: str | None = None,
        description: str | None = None,
        isolation: Isolation | None = None,
        limits: Limits | None = None,
        effect: bool = False,
        once: bool = False,
        settings: Mapping[str, Any] | None = None,
        hints: Mapping[str, Any] | None = None,
    ) -> None:
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.name = token("tool", function.__name__ if name is None else name)
        self.isolation = isolation or ("async" if self.is_async else "subprocess")
        self.limits = limits or Limits()
        self.effect = effect or once
        self.once = once
        self.hints = dict(hints) if hints is not None else _hints(function, self.name)
        about, argument_docs = _docstring(inspect.getdoc(function) or "")
        self.description = about if description is None else description
        self._check_isolation()
        self._configured = dict(settings or {})
        self._arguments, self._setting_types = _models(function, self.name, self.hints, argument_docs)
        self._result: TypeAdapter[Any] = _adapter(self.hints.get("return", Any), self.name)
        self.parameters, self.returns = self._schemas()
        self.settings = self._check_settings()
        """Values of the parameters marked with `Setting`, defaults included; paths are absolute."""
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.function(*args, **{**self._configured, **kwargs})

    def __repr__(self) -> str:
        return f"<Tool {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # With resolved type hints: where it is unpickled, the names in its annotations may mean nothing.
        return _rebuild, (self.function, self._options(), self.hints)

    def configure(self, **settings: Any) -> Tool[P, R_co]:
        """The same tool with other values for its parameters marked with `Setting`.

        Raises:
            DefinitionError: There is no such setting, or its value does not fit.
        """
        options = self._options()
        options["settings"] = {**self._configured, **settings}
        return Tool(self.function, **options, hints=self.hints)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """The arguments of a call by name: `tool.bind("a", n=2) == {"text": "a", "n": 2}`. Nothing is checked."""
        return dict(inspect.signature(self.function).bind(*args, **kwargs).arguments)

    # -- what executors and clients need

    def encode_arguments(self, arguments: Mapping[str, Any]) -> bytes:
        """The arguments as JSON, checked.

        Raises:
            ToolArgumentsError: They do not fit; names the argument.
        """
        data = encode_arguments(self.name, arguments)
        self.decode_arguments(data)
        return data

    def decode_arguments(self, data: bytes) -> dict[str, Any]:
        """Arguments as Python values, from JSON; a number in a string is not a number.

        Raises:
            ToolArgumentsError: They do not fit; names the argument.
        """
        try:
            model = self._arguments.model_validate_json(data, strict=True)
        except ValidationError as error:
            raise ToolArgumentsError(self.name, _problems(error)) from None
        return {
            str(field.alias): getattr(model, key)
            for key, field in self._arguments.model_fields.items()
            if key in model.model_fields_set  # the rest keeps the function's own defaults
        }

    def encode_result(self, value: Any) -> bytes:
        """The result as JSON.

        Raises:
            ToolFailedError: It is not what the function is annotated to return, or has no JSON form.
        """
        try:
            return self._result.dump_json(value, warnings="error")
        except (pydantic_core.PydanticSerializationError, ValueError) as error:
            what = str(error).removeprefix("Pydantic serializer warnings:").strip().splitlines()[0]
            problem = f"its result is not what it is annotated to return: {what.strip()}"
            raise ToolFailedError(self.name, type(value).__name__, problem) from error

    def decode_result(self, data: bytes) -> Any:
        """The result as the type the function is annotated to return.

        Raises:
            InvalidMessageError: It is something else; the executor may run another version of the tool.
        """
        try:
            return self._result.validate_json(data)
        except ValidationError as error:
            raise InvalidMessageError(f"result of tool {self.name!r}: {_problems(error)}") from None

    def settings_json(self) -> bytes:
        """`settings` as JSON, to send them to another process."""
        return pydantic_core.to_json(self.settings)

    def decode_settings(self, data: bytes) -> dict[str, Any]:
        """The reverse of `settings_json`."""
        values = pydantic_core.from_json(data)
        return {key: self._setting_types[key][0].validate_python(value) for key, value in values.items()}

    def info(self) -> ToolInfo:
        """What others get to know about it."""
        return ToolInfo(
            name=self.name,
            description=self.description,
            parameters=self.parameters,
            returns=self.returns,
            isolation=self.isolation,
            timeout=self.limits.timeout,
            effect=self.effect,
            once=self.once,
        )

    # -- how it is made

    def _options(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": self.description,
            "isolation": self.isolation,
            "limits": self.limits,
            "effect": self.effect,
            "once": self.once,
            "settings": self._configured,
        }

    def _check_isolation(self) -> None:
        if self.isolation not in get_args(Isolation):
            raise DefinitionError(
                f"tool {self.name}", f"isolation must be async, thread or subprocess, not {self.isolation!r}"
            )
        if self.isolation == "async" and not self.is_async:
            raise DefinitionError(
                f"tool {self.name}", "isolation='async' needs an 'async def' function; it would block everything else"
            )
        if self.isolation == "thread" and self.is_async:
            raise DefinitionError(f"tool {self.name}", "isolation='thread' needs a plain function, not 'async def'")

    def _check_settings(self) -> dict[str, Any]:
        where = f"tool {self.name}"
        unknown = sorted(set(self._configured) - set(self._setting_types))
        if unknown:
            known = ", ".join(self._setting_types) or "none"
            raise DefinitionError(where, f"no setting {unknown[0]!r} (it has: {known})")
        values = {}
        for key, (adapter, default) in self._setting_types.items():
            try:
                value = adapter.validate_python(self._configured.get(key, default))
            except ValidationError as error:
                raise DefinitionError(where, f"setting {key!r}: {_problems(error)}") from None
            values[key] = value.absolute() if isinstance(value, Path) else value
        self._configured = {key: values[key] for key in self._configured}
        return values

    def _schemas(self) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            parameters = self._arguments.model_json_schema(by_alias=True)
            returns = self._result.json_schema(mode="serialization")
        except PydanticInvalidForJsonSchema as error:
            raise DefinitionError(f"tool {self.name}", f"has no JSON form: {_first_line(error)}") from error
        parameters.pop("title", None)
        for schema in parameters.get("properties", {}).values():
            schema.pop("title", None)
        parameters.setdefault("properties", {})
        return parameters, returns


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    isolation: Isolation | None = None,
    timeout: float = 30.0,
    cpu_seconds: float | None = None,
    memory_bytes: int = 1 << 30,
    output_bytes: int = 64_000,
    file_bytes: int = 64 << 20,
    open_files: int = 256,
    effect: bool = False,
    once: bool = False,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    isolation: Isolation | None = None,
    effect: bool = False,
    once: bool = False,
    **limits: Any,
) -> Tool[P, R] | Callable[[Callable[P, R]], Tool[P, R]]:
    """Make a tool of a function: `@tool` or `@tool(timeout=5.0, …)`.

    Every parameter needs a type hint; the docstring's `Args:` describe them. The limits are the fields of `Limits`.

    Args:
        function: The function, when used without parentheses.
        name: How it is called; None: the function's name.
        description: What it does; None: the docstring up to its first section.
        isolation: `async`: in the executor, on its event loop. `thread`: in the executor, and what hangs cannot be
            ended. `subprocess`: in a process of its own, under all limits, ended for good on timeout and cancel.
            None: `async` for `async def`, else `subprocess`.
        effect: Whether it changes something outside itself.
        once: A call that the handler of a task makes is run at most once, however often the task is tried: the next
            attempt gets what came of it. Implies `effect`. See `ToolClient.invoke` for keys of your own.

    Raises:
        DefinitionError: It cannot be a tool; says why.
        InvalidNameError: The name cannot be part of a subject.
    """

    def make(target: Callable[P, R]) -> Tool[P, R]:
        return Tool(
            target,
            name=name,
            description=description,
            isolation=isolation,
            limits=Limits(**limits),
            effect=effect,
            once=once,
        )

    return make if function is None else make(function)


def encode_arguments(name: str, arguments: Mapping[str, Any]) -> bytes:
    """Arguments as JSON.

    Raises:
        ToolArgumentsError: One has no JSON form.
    """
    try:
        return pydantic_core.to_json(dict(arguments))
    except (pydantic_core.PydanticSerializationError, ValueError) as error:
        raise ToolArgumentsError(name, f"the arguments have no JSON form: {_first_line(error)}") from None


# ---------------------------------------------------------------- signature and docstring


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise DefinitionError(
            f"tool {name}", f"a type hint cannot be resolved: {error}; define it outside of any function"
        ) from error


def _models(
    function: Callable[..., Any], name: str, hints: Mapping[str, Any], docs: Mapping[str, str]
) -> tuple[type[BaseModel], dict[str, tuple[TypeAdapter[Any], Any]]]:
    """A model of the arguments, and type and default of each setting."""
    where = f"tool {name}"
    arguments: dict[str, Any] = {}
    settings: dict[str, tuple[TypeAdapter[Any], Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DefinitionError(where, f"parameter {parameter.name!r}: arguments go by name, so write each one out")
        if parameter.name not in hints:
            raise DefinitionError(where, f"parameter {parameter.name!r} has no type hint")
        hint = hints[parameter.name]
        if _is_setting(hint):
            if parameter.default is parameter.empty:
                raise DefinitionError(where, f"setting {parameter.name!r} needs a default")
            settings[parameter.name] = _adapter(hint, name), parameter.default
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        # A neutral field name: a parameter may be called `json` or `_x`, which a model does not take.
        about = Field(default, alias=parameter.name, description=docs.get(parameter.name))
        arguments[f"argument_{len(arguments)}"] = (hint, about)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    try:
        model: type[BaseModel] = create_model(name, __config__=config, **arguments)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise DefinitionError(where, f"a parameter's type has no JSON form: {_first_line(error)}") from error
    return model, settings


def _is_setting(hint: Any) -> bool:
    return get_origin(hint) is Annotated and any(
        mark is Setting or isinstance(mark, Setting) for mark in get_args(hint)[1:]
    )


def _adapter(hint: Any, name: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise DefinitionError(f"tool {name}", f"a type has no JSON form: {_first_line(error)}") from error


def _rebuild(function: Callable[..., Any], options: dict[str, Any], hints: dict[str, Any]) -> Tool[..., Any]:
    return Tool(function, **options, hints=hints)


_SECTION = re.compile(r"(Args|Arguments|Returns|Yields|Raises|Note|Notes|Example|Examples|Source|Attributes):\s*")
_ARGUMENT = re.compile(r"(\*{0,2}\w+)\s*(?:\([^)]*\))?:\s*(.*)")


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """What comes before the first section of a Google-style docstring, and the description of each argument."""
    about: list[str] = []
    section, docs, last = "", dict[str, list[str]](), ""
    for line in text.splitlines():
        heading = _SECTION.fullmatch(line)
        if heading:
            section = heading[1]
        elif not section:
            about.append(line)
        elif section in ("Args", "Arguments") and line.strip():
            entry = _ARGUMENT.fullmatch(line.strip())
            indent = len(line) - len(line.lstrip())
            if entry and indent <= 4:
                last = entry[1]
                docs[last] = [entry[2]]
            elif last:
                docs[last].append(line.strip())
    return "\n".join(about).strip(), {name: " ".join(lines).strip() for name, lines in docs.items()}


def _problems(error: ValidationError) -> str:
    """`minimum: Input should be a valid integer; text: Field required`, at most three of them."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['msg']}" for problem in found[:3]]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(shown).replace("Extra inputs are not permitted", "there is no such argument") + more


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
