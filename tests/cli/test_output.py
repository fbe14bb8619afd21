"""Tables in terminals of any width."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from agentmesh.cli.output import Output

TABLE = (["ID", "STATE", "REASON"], [("first-of-all", "up", "because it was asked to be so"), ("b", "down", None)])


def narrow(patch: pytest.MonkeyPatch, width: int) -> None:
    """Standard output becomes a terminal of that width which shows colours."""
    patch.setattr(sys.stdout, "isatty", lambda: True)
    patch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
    for name in ("CI", "NO_COLOR", "FORCE_COLOR"):
        patch.delenv(name, raising=False)


def shown(capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, width: int) -> list[str]:
    narrow(patch, width)
    Output(no_color=True).table(*TABLE)
    return capsys.readouterr().out.splitlines()


def test_colours_take_no_room(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, 80)
    out = Output()
    out.table(["STATE", "HOST"], [(out.style("up", "green"), "a"), (out.style("suspect", "yellow"), "b")])

    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["\x1b[32mup\x1b[0m       a", "\x1b[33msuspect\x1b[0m  b"]


def test_a_wide_terminal_shows_one_line_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(capsys, monkeypatch, 80) == [
        "ID            STATE  REASON",
        "first-of-all  up     because it was asked to be so",
        "b             down   -",
    ]


def test_a_last_column_with_hardly_any_room_goes_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(capsys, monkeypatch, 34) == [
        "ID            STATE",
        "    REASON",
        "first-of-all  up",
        "    because it was asked to be so",
        "b             down",
    ]


def test_what_does_not_fit_all_the_same_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(capsys, monkeypatch, 46)[1] == "first-of-all  up     because it was asked to …"
    assert shown(capsys, monkeypatch, 20)[3] == "    because it was …"
