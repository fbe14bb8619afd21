"""Writes `docs/cli.md` and `docs/settings.md` from the program itself: `python -m agentmesh.cli.docs docs`."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel

from agentmesh.cli.app import app
from agentmesh.cli.base import PANEL
from agentmesh.config import checks, model

CODES = """\
| code | meaning |
| --- | --- |
| 0 | done |
| 1 | the asked work failed |
| 2 | the command line, a name or a setting is wrong; nothing was done |
| 3 | the broker cannot be reached |
| 4 | no such agent runs |
| 5 | the deadline passed |
| 130 | interrupted with Ctrl-C |
"""

INTRODUCTION = f"""\
# Command line

<!-- Written by `python -m agentmesh.cli.docs docs`; a test keeps it true. -->

Answers go to standard output; notes, progress and errors to standard error. Where nobody watches (output redirected,
`CI` or `NO_COLOR` set) everything is plain and nothing moves. With `--json` the answer is one JSON document, or one a
line where answers come one by one, and an error is `{{"error": {{"type": …, "message": …}}}}` on standard error.

{CODES}
"""

SETTINGS = """\
# Settings: `mesh.toml`

<!-- Written by `python -m agentmesh.cli.docs docs`; a test keeps it true. -->

Later ones win: defaults, `mesh.toml` (or `[tool.agentmesh]` in pyproject.toml; the nearest folder that has one), the
profile chosen with `--profile`, the environment, the command line. `agentmesh doctor --show-config` prints the result
with the origin of every value. Unknown keys are errors. Durations are seconds or strings such as `"30s"`, `"500ms"`,
`"1m30s"`; sizes are bytes or strings such as `"1MB"`. In strings `${NAME}` and `${NAME:-default}` take a variable of
the environment; `$${` is a plain `${`. Paths start at the file's folder. Passwords and tokens are written as `${NAME}`
only.

Each single setting also has a variable: `AGENTMESH_` and its name in capitals with `_` for dots, for example
`AGENTMESH_BROKER_PORT`. `NATS_URL` is `broker.url`, `PORT` is `http.port`. A table
`[profiles.NAME]` may hold any of the settings.

"""


def cli_page() -> str:
    """`docs/cli.md`."""
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="agentmesh")
    shared = [param for param in root.params if getattr(param, "rich_help_panel", None) == PANEL]
    parts = [INTRODUCTION, f"## {PANEL}\n", "They may stand before or after the command.\n", _options(shared, context)]
    for name, command, below in commands(root, context):
        parts += [f"\n## `{name}`\n", _page(command, below)]
    return "\n".join(parts).rstrip() + "\n"


def commands(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every command that does something, with its full name and its context, in the order of the help."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        below = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from commands(command, below)
        else:
            yield below.command_path, command, below


def settings_page() -> str:
    """`docs/settings.md`."""
    return SETTINGS + "\n".join(_table(model.Settings, "")).rstrip() + "\n"


def _page(command: Any, context: Any) -> str:
    own = [p for p in command.params if getattr(p, "rich_help_panel", None) != PANEL and p.name != "help"]
    usage = command.get_usage(context).removeprefix("Usage: ").strip()
    help_text = inspect.cleandoc(command.help or "")
    examples = inspect.cleandoc(command.epilog.partition("\n")[2]).replace("\n\n", "\n")
    parts = [help_text, f"\n    {usage}\n", _options(own, context), f"\n```sh\n{examples}\n```"]
    return "\n".join(part for part in parts if part)


def _options(params: list[Any], context: Any) -> str:
    rows = []
    for param in params:
        if param.param_type_name == "argument":
            names = param.metavar or str(param.name).upper()
        else:
            names = ", ".join(param.opts + param.secondary_opts) + (f" {param.metavar}" if param.metavar else "")
        rows.append(f"| `{_in_table(names)}` | {_in_table(param.help or '')} |")
    return "\n".join(["| option | what |", "| --- | --- |", *rows]) if rows else ""


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


# ---------------------------------------------------------------- settings


def _table(table: type[BaseModel], path: str) -> Iterator[str]:
    """A section for a table of the file, then one for each table in it."""
    docs = _docstrings(table)
    below: list[tuple[Any, str]] = []
    rows = ["| key | default | what |", "| --- | --- | --- |"]
    for name, info in table.model_fields.items():
        key = info.alias or name
        inner = checks.table_of(info.annotation)
        named = None if inner or get_origin(info.annotation) is not dict else get_args(info.annotation)[1]
        if inner is None and checks.table_of(named) is None:
            rows.append(f"| `{key}` | {_default(info)} | {docs.get(name, '')} |")
        elif inner is not None:
            below.append((inner, f"{path}{key}."))
        else:
            below.append((named, f"{path}{key}.NAME."))
    yield f"## `[{path.removesuffix('.')}]`\n" if path else "## At the top\n"
    yield f"{inspect.getdoc(table)}\n"
    if len(rows) > 2:
        yield "\n".join(rows) + "\n"
    for inner, prefix in below:
        yield from _table(inner, prefix)


def _default(info: Any) -> str:
    if info.is_required():
        return "required"
    return "" if info.default is None else f"`{_toml(info.default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _docstrings(table: type[BaseModel]) -> dict[str, str]:
    """The string below each field in the source of the class."""
    body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(table))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return found


def pages() -> dict[str, str]:
    """File name and content of each page."""
    return {"cli.md": cli_page(), "settings.md": settings_page()}


if __name__ == "__main__":
    for file, text in pages().items():
        (Path(sys.argv[1]) / file).write_text(text, encoding="utf-8")
