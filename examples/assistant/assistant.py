"""An assistant that knows the notes of a folder, calculates, and leaves letters in an outbox if a person agrees."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from agentmesh import tool
from agentmesh.agents.llm import LLMAgent
from agentmesh.tooling import Setting

HERE = Path(__file__).parent

_SIGNS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@tool
def search_notes(query: str, *, notes: Annotated[Path, Setting()] = HERE / "notes") -> list[str]:
    """Search the notes.

    Args:
        query: Words to look for.
    """
    wanted = set(re.findall(r"\w{3,}", query.lower()))
    found = []
    for page in sorted(notes.glob("*.md")):
        for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
            score = len(wanted & set(re.findall(r"\w{3,}", paragraph.lower())))
            if score and not paragraph.startswith("#"):
                found.append((-score, page.stem, " ".join(paragraph.split())))
    return [f"{text} [{name}]" for _, name, text in sorted(found)[:3]]


@tool
def calculate(expression: str) -> float:
    """Calculate an expression such as (2 + 3) * 4.

    Args:
        expression: Numbers, + - * / and brackets.
    """
    return _value(ast.parse(expression, mode="eval").body)


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _SIGNS:
            return _SIGNS[type(sign)](_value(left), _value(right))
    raise ValueError("only numbers, + - * / and brackets")


@tool(effect=True)
def send_letter(text: str, *, outbox: Annotated[Path, Setting()] = HERE / "outbox") -> str:
    """Send a letter.

    Args:
        text: What it says.
    """
    outbox.mkdir(exist_ok=True)
    letter = outbox / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.txt"
    letter.write_text(text, encoding="utf-8")
    return f"the letter is in {letter.parent.name}/{letter.name}"


class Assistant(LLMAgent):
    """Knows the notes, calculates, and sends letters if a person agrees."""

    system_prompt = "You are an assistant. Answer from the notes; say so when they do not know."
    tools = (search_notes, calculate)
    approve = (send_letter,)
    memory = True
    max_steps = 6
    max_cost = 0.10
