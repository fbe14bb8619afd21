"""Sums that are asked for in words or signs."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from decimal import Decimal, DivisionByZero, InvalidOperation, localcontext

LONGEST = 1000
"""Characters that are looked at."""

_WORDS = (
    (r"\bdivided by\b", "/"), (r"\bmultiplied by\b", "*"), (r"\b(?:to the power of|raised to)\b", "**"),
    (r"\bsquared\b", "**2"), (r"\btimes\b", "*"), (r"\bplus\b", "+"), (r"\bminus\b", "-"), (r"[×·]", "*"),
    (r"÷", "/"), (r"−", "-"), (r"(?<=[\d)])\s*\^\s*(?=[\d(])", "**"), (r"(?<=\d),(?=\d{3}\b)", ""),
    (r"(?<=\d)\s*[xX]\s*(?=\d)", "*"),
)  # fmt: skip
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent)\s+of\s+(\d+(?:\.\d+)?)")
_MANY = re.compile(r"\b(sum|total|product|average|mean|maximum|minimum|largest|smallest)\s+of\s+([\d\s.,;and-]+)")
_EXPRESSION = re.compile(r"[-(]*\s*\d[\d\s.()]*(?:(?:\*\*|[-+*/%])\s*[-(]*\s*\d[\d\s.()]*)+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_BINARY: dict[type[ast.operator], Callable[[Decimal, Decimal], Decimal]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}|\d{1,2}/\d{1,2}/\d{2,4}|\+?\d+(?:-\d+){2,}")


def expression_in(text: str) -> str:
    """The sum in the text, in signs; empty if there is none. Dates and telephone numbers are none."""
    plain = _DATE.sub(" ", text[:LONGEST])
    for pattern, sign in _WORDS:
        plain = re.sub(pattern, sign, plain, flags=re.IGNORECASE)
    percent = _PERCENT.search(plain)
    if percent is not None:
        return f"{percent[1]} / 100 * {percent[2]}"
    found = _EXPRESSION.search(plain)
    return "" if found is None else " ".join(found.group().strip(" .").split())


def worked_out(text: str) -> str:
    """The answer to the sum in the text, such as `2 + 3 = 5`; empty if there is none."""
    many = _MANY.search(text[:LONGEST].lower())
    if many is not None and (numbers := [Decimal(number) for number in _NUMBER.findall(many[2])]):
        return _of_many(many[1], numbers)
    expression = expression_in(text)
    value = "" if not expression else evaluate(expression)
    return f"{expression} = {value}" if value else ""


def evaluate(expression: str) -> str:
    """The value of a sum in signs; empty if it has none, or is too large to be written."""
    try:
        with localcontext(prec=28):
            return shown(_value(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError, InvalidOperation, DivisionByZero, ArithmeticError, RecursionError, MemoryError):
        return ""


def shown(value: Decimal) -> str:
    """A number as people write it."""
    text = format(round(value, 10).normalize(), "f")
    return text if len(text) <= 40 else ""


def _value(node: ast.expr) -> Decimal:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Decimal(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > 100:
            raise ValueError("too large")
        return _BINARY[type(node.op)](left, right)
    raise ValueError("not a sum")


def _of_many(what: str, numbers: list[Decimal]) -> str:
    product = Decimal(1)
    for number in numbers:
        product *= number
    value = {
        "sum": sum(numbers),
        "total": sum(numbers),
        "product": product,
        "average": sum(numbers) / len(numbers),
        "mean": sum(numbers) / len(numbers),
        "maximum": max(numbers),
        "largest": max(numbers),
        "minimum": min(numbers),
        "smallest": min(numbers),
    }[what]
    return f"The {what} of {', '.join(map(shown, numbers))} is {shown(Decimal(value))}."
