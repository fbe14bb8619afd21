"""`python_metrics`: sizes and risks of Python source, from its syntax tree."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NotRequired

from typing_extensions import TypedDict

from agentmesh.errors import ToolArgumentsError
from agentmesh.tooling import Setting, tool
from agentmesh.tools.paths import read_whole

_SOURCE_BYTES = 10_000_000

_RISKY = {
    "eval": "runs any code it is given",
    "exec": "runs any code it is given",
    "pickle.load": "runs code hidden in the data",
    "pickle.loads": "runs code hidden in the data",
    "pickle.Unpickler": "runs code hidden in the data",
    "marshal.load": "can crash or run code on crafted data",
    "marshal.loads": "can crash or run code on crafted data",
    "shelve.open": "unpickles, which runs code hidden in the data",
    "os.system": "passes its argument to a shell",
    "os.popen": "passes its argument to a shell",
    "subprocess.getoutput": "passes its argument to a shell",
    "subprocess.getstatusoutput": "passes its argument to a shell",
    "tempfile.mktemp": "somebody else can create the file first",
}
_SHELL = {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")}
_NESTING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.With, ast.AsyncWith, ast.Match)

Function = ast.FunctionDef | ast.AsyncFunctionDef


class RiskyCall(TypedDict):
    """A call worth a second look; line and column count from 1."""

    name: str
    line: int
    column: int
    reason: str


class SyntaxProblem(TypedDict):
    """Why the source cannot be parsed; line and column count from 1."""

    message: str
    line: int
    column: int


class Metrics(TypedDict):
    """What `python_metrics` returns. With `syntax_error`, only the line counts mean anything."""

    lines: int
    code_lines: int
    """Lines with code on them: neither blank nor only a comment."""
    functions: int
    """Functions and methods, nested ones too."""
    classes: int
    max_nesting: int
    """Deepest `if`, `for`, `while`, `try`, `with` and `match` inside each other; an `elif` is not deeper."""
    missing_docstrings: list[str]
    """Public classes, functions and methods without one; `module` for the file itself."""
    risky_calls: list[RiskyCall]
    syntax_error: NotRequired[SyntaxProblem]


@tool(timeout=30.0, output_bytes=1_000_000)
def python_metrics(
    path: str | None = None, source: str | None = None, *, root: Annotated[Path, Setting()] = Path()
) -> Metrics:
    """Measure Python source: sizes, nesting, missing docstrings, risky calls. Nothing of it is run.

    Source that cannot be parsed is a result with `syntax_error`.

    Args:
        path: A file, relative to the root.
        source: Or the source itself.
    """
    if (path is None) == (source is None):
        raise ToolArgumentsError("python_metrics", "give either path or source")
    data = read_whole("python_metrics", root, path, _SOURCE_BYTES) if path is not None else (source or "").encode()
    return measure(data)


def measure(source: bytes) -> Metrics:
    """The metrics of some source."""
    metrics = Metrics(
        lines=len(source.splitlines()),
        code_lines=_code_lines(source),
        functions=0,
        classes=0,
        max_nesting=0,
        missing_docstrings=[],
        risky_calls=[],
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape sequence is ruff's business
            tree = ast.parse(source)
    except SyntaxError as error:
        metrics["syntax_error"] = _problem(error.msg, error.lineno, error.offset)
        return metrics
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested too deeply
        metrics["syntax_error"] = _problem(str(error) or "nested too deeply", 1, 1)
        return metrics
    nodes = list(ast.walk(tree))
    metrics["functions"] = sum(isinstance(node, Function) for node in nodes)
    metrics["classes"] = sum(isinstance(node, ast.ClassDef) for node in nodes)
    metrics["max_nesting"] = _max_nesting(tree)
    metrics["missing_docstrings"] = list(_undocumented(tree))
    metrics["risky_calls"] = sorted(_risky_calls(nodes), key=lambda call: (call["line"], call["column"]))
    return metrics


def _problem(message: str, line: int | None, column: int | None) -> SyntaxProblem:
    return SyntaxProblem(message=message, line=max(line or 1, 1), column=max(column or 1, 1))


def _code_lines(source: bytes) -> int:
    """By tokens, as far as they go: a comment is not code, a line inside a long string is."""
    quiet = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
    lines: set[int] = set()
    try:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type not in quiet and token.type != tokenize.ENDMARKER:
                lines.update(range(token.start[0], token.end[0] + 1))
    except (tokenize.TokenError, SyntaxError, ValueError):
        pass
    return len(lines)


def _max_nesting(tree: ast.Module) -> int:
    """Walks with a list of its own: source may be nested more deeply than Python calls may."""
    deepest = 0
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, _NESTING):
            depth += 1
            deepest = max(deepest, depth)
        elif isinstance(node, Function | ast.ClassDef | ast.Lambda):
            depth = 0
        elif_ = node.orelse if isinstance(node, ast.If) and _is_elif(node.orelse) else []
        waiting.extend((child, depth - 1 if child in elif_ else depth) for child in ast.iter_child_nodes(node))
    return deepest


def _is_elif(orelse: list[ast.stmt]) -> bool:
    return len(orelse) == 1 and isinstance(orelse[0], ast.If)


def _undocumented(tree: ast.Module) -> Iterator[str]:
    if tree.body and ast.get_docstring(tree, clean=False) is None:
        yield "module"
    waiting: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    while waiting:
        prefix, scope = waiting.pop(0)
        for node in scope.body:
            if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_") or _needs_none(node):
                continue
            if ast.get_docstring(node, clean=False) is None:
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                waiting.append((f"{prefix}{node.name}.", node))


def _needs_none(node: Function | ast.ClassDef) -> bool:
    """Overloads, and setters and deleters of properties: documented elsewhere."""
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"overload", "setter", "deleter"})


def _risky_calls(nodes: list[ast.AST]) -> Iterator[RiskyCall]:
    aliases = _aliases(nodes)
    for node in nodes:
        if isinstance(node, ast.Call) and (name := _called(node.func, aliases)):
            reason = _RISKY.get(name)
            if name in _SHELL and any(word.arg == "shell" and not _is_false(word.value) for word in node.keywords):
                reason = "shell=True passes its argument to a shell"
            if reason:
                yield RiskyCall(name=name, line=node.lineno, column=node.col_offset + 1, reason=reason)


def _aliases(nodes: list[ast.AST]) -> dict[str, str]:
    """What imported names stand for: `import pickle as p` makes `p` stand for `pickle`."""
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update((name.asname, name.name) for name in node.names if name.asname)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update((name.asname or name.name, f"{node.module}.{name.name}") for name in node.names)
    return found


def _called(function: ast.expr, aliases: dict[str, str]) -> str:
    """`pickle.loads` for the call of that function, however it was imported; empty if it is something else."""
    attribute = ""
    if isinstance(function, ast.Attribute):
        attribute, function = f".{function.attr}", function.value
    if not isinstance(function, ast.Name):
        return ""
    return aliases.get(function.id, function.id) + attribute


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and not value.value
