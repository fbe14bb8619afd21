"""`radon_complexity`: how complex each function of a Python file is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from typing_extensions import TypedDict

from agentmesh.errors import MissingExtraError
from agentmesh.tooling import Setting, tool
from agentmesh.tools.paths import read_whole

_SOURCE_BYTES = 10_000_000


class Block(TypedDict):
    """A function, method or class as radon measures it, in radon's order."""

    name: str
    type: Literal["function", "method", "class"]
    classname: str
    """Of a method; else empty."""
    line: int
    endline: int
    complexity: int
    """Cyclomatic complexity; of a class, the mean of its methods plus one, as radon defines it."""
    rank: str
    """A (simple) to F."""


@tool(timeout=60.0, output_bytes=1_000_000)
def radon_complexity(path: str, *, root: Annotated[Path, Setting()] = Path()) -> list[Block]:
    """Measure the cyclomatic complexity of every function, method and class in a Python file.

    A file that cannot be parsed has none; `python_metrics` and `ruff_check` say what is wrong with it.

    Args:
        path: The file, relative to the root.
    """
    try:
        from radon.complexity import cc_rank, cc_visit_ast  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("radon", "review") from None
    import ast

    source = read_whole("radon_complexity", root, path, _SOURCE_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as an invalid escape sequence: python_metrics is for those
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    return [_block(block, cc_rank(block.complexity)) for block in cc_visit_ast(tree)]


def _block(block: Any, rank: str) -> Block:
    kinds: dict[str, Literal["function", "method", "class"]] = {"F": "function", "M": "method", "C": "class"}
    return Block(
        name=block.name,
        type=kinds[block.letter],
        classname=getattr(block, "classname", None) or "",
        line=block.lineno,
        endline=block.endline,
        complexity=block.complexity,
        rank=rank,
    )
