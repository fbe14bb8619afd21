"""What commands print: the answer on standard output, notes and errors on standard error.

Colour and movement only for people: not when the output goes elsewhere, in CI, with `--no-color` or `$NO_COLOR`.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from agentmesh.config.environment import terminal_variables

_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

LAST_COLUMN = 24
"""Room that the last column of a table needs to be worth reading."""

COLORS = ("cyan", "magenta", "green", "yellow", "blue")
"""To tell sources of lines apart."""


class Output:
    """Where a command prints.

    Args:
        json: Data for programs instead of text for people.
        quiet: No notes, only answers and errors.
        verbose: 0 to 2; how much to say about what goes on.
        no_color: Plain, whatever the terminal can do.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: int = 0, no_color: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        said = terminal_variables()
        plain = no_color or said.no_color or (said.ci and not said.force_color)
        self._colored = {
            stream: not plain and (said.force_color or stream.isatty()) for stream in (sys.stdout, sys.stderr)
        }
        self.live = sys.stderr.isatty() and not (plain or quiet or json)
        """Whether progress may move on standard error."""

    @property
    def colored(self) -> bool:
        """Whether standard output shows colours."""
        return self._colored[sys.stdout]

    # ------------------------------------------------------------ answers
    def answer(self, text: str, end: str = "\n") -> None:
        """Text for standard output."""
        sys.stdout.write(text + end)
        sys.stdout.flush()

    def document(self, value: Any) -> None:
        """One JSON document for standard output, on one line so that documents can follow each other."""
        self.answer(as_json(value))

    def value(self, value: Any) -> None:
        """A reply or a result: text as it is, anything else as JSON; always JSON with `--json`."""
        if self.json:
            self.document(value)
        elif isinstance(value, str):
            self.answer(value)
        else:
            self.answer(as_json(value, indent=2))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "") -> None:
        """Aligned columns; numbers to the right. Without rows `empty` is noted instead.

        In a terminal that is too narrow lines are cut, except that a last column with hardly any room goes on a line of
        its own.
        """
        cells = [[_cell(value) for value in row] for row in rows]
        if not cells:
            self.note(empty)
            return
        widths = [max(_width(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
        right = [all(_is_number(row[i]) for row in cells) for i in range(len(columns))]
        limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        below = limit is not None and widths[-1] > limit - sum(widths[:-1]) - 2 * len(widths) + 2 < LAST_COLUMN
        below = below and widths[-1] >= LAST_COLUMN / 2
        self.answer(self.style(_line(columns, widths, right, limit, below), "bold"))
        for row in cells:
            self.answer(_line(row, widths, right, limit, below))

    def fields(self, values: Iterable[tuple[str, Any]]) -> None:
        """Names and values, one a line; empty values are left out."""
        shown = [(name, _cell(value)) for name, value in values if value not in (None, "", [], {})]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            first, *more = value.splitlines() or [""]
            self.answer(f"{self.style(name.ljust(width), 'bold')}  {first}")
            for line in more:
                self.answer(f"{'':{width}}  {line}")

    # ------------------------------------------------------------ notes
    def note(self, text: str) -> None:
        """For the person at the terminal, on standard error; not with `--quiet` or `--json`."""
        if text and not (self.quiet or self.json):
            self._err(text)

    def warning(self, text: str) -> None:
        """On standard error, also with `--quiet`."""
        if self.json:
            self._err(as_json({"warning": text}))
        else:
            self._err(self.style("warning: ", "yellow", stream=sys.stderr) + text)

    def error(self, error: BaseException | str) -> None:
        """On standard error; with `--json` as a document."""
        kind = "Failed" if isinstance(error, str) else type(error).__name__
        if self.json:
            self._err(as_json({"error": {"type": kind, "message": str(error)}}))
        else:
            self._err(self.style("error: ", "red", stream=sys.stderr) + (str(error) or kind))

    def _err(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def style(self, text: str, *names: str, stream: TextIO | None = None) -> str:
        """`text` in colour, if the stream (standard output by default) shows colours."""
        if not self._colored.get(stream or sys.stdout, False) or not names:
            return text
        return f"\x1b[{';'.join(_CODES[name] for name in names)}m{text}\x1b[0m"


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON of whatever the API gives back: pydantic models, msgspec structs, dataclasses, dates."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False)


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a line is; None if it is none."""
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def plain(value: Any) -> Any:
    """`value` as lists, dicts and scalars; nothing is left out, also not what has its default."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump else msgspec.to_builtins(value, enc_hook=str)


def age(since: datetime | None) -> str:
    """How long ago, short: 12s, 5m, 3h, 2d."""
    if since is None:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").replace("/", "", 1).replace("%", "").isdigit() or text == "-"


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], limit: int | None, below: bool) -> str:
    padded = [
        " " * (width - _width(cell)) + cell if to_right else cell + " " * (width - _width(cell))
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    if below and len(cells) > 1:
        first = _cut("  ".join(padded[:-1]).rstrip(), limit)
        return first if cells[-1] == "-" else f"{first}\n{_cut('    ' + cells[-1], limit)}"
    return _cut("  ".join(padded).rstrip(), limit)


def _width(text: str) -> int:
    """Columns it takes in a terminal: colours take none."""
    return len(_COLOUR.sub("", text))


def _cut(line: str, limit: int | None) -> str:
    if limit is None or _width(line) <= limit:
        return line
    return _COLOUR.sub("", line)[: limit - 1] + "…"
