"""Running programs from an allowlist: `run_command`.

What is allowed is a setting: `command_tools(["git log", "wc"])`, or
`python -m agentmesh.tools --set commands='["git log", "wc"]'`. Without it, nothing is.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import BaseModel, Field

from agentmesh.errors import ToolArgumentsError, ToolFailedError
from agentmesh.tooling import Setting, Tool, tool

OUTPUT_BYTES = 200_000
"""Of standard output, and of standard error, that are kept; a program that writes more is ended."""
_CHUNK = 1 << 16


class CommandResult(BaseModel):
    """What `run_command` returns."""

    exit_code: int
    """Negative: the signal that ended it."""
    stdout: str
    stderr: str
    truncated: bool = False
    """It wrote more than `OUTPUT_BYTES`, and was ended."""


@tool(effect=True, timeout=60.0, output_bytes=1_000_000)
def run_command(
    argv: Annotated[list[str], Field(min_length=1, max_length=1000)],
    *,
    commands: Annotated[list[str], Setting()] = [],  # noqa: B006 (never changed)
    root: Annotated[Path, Setting()] = Path(),
) -> CommandResult:
    """Run a program that is allowed here, without a shell, and return what it wrote.

    Args:
        argv: The program and its arguments, each one string.
    """
    program = _allowed(argv, commands)
    result, stdout, stderr = capture([program, *argv[1:]], root, OUTPUT_BYTES)
    truncated = len(stdout) > OUTPUT_BYTES or len(stderr) > OUTPUT_BYTES
    return CommandResult(
        exit_code=result,
        stdout=stdout[:OUTPUT_BYTES].decode(errors="replace"),
        stderr=stderr[:OUTPUT_BYTES].decode(errors="replace"),
        truncated=truncated,
    )


def command_tools(commands: Sequence[str], root: str | Path = ".") -> list[Tool[..., Any]]:
    """`run_command` for these commands: each a program, or a program and the first arguments it must have.

    Args:
        commands: Such as `["wc", "git log"]`: `wc` with any arguments, and `git` only with `log` as its first one.
        root: The working directory.
    """
    return [run_command.configure(commands=list(commands), root=root)]


def capture(
    argv: Sequence[str], folder: Path | str, max_bytes: int, variables: Mapping[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    """Run a program to its end; what it writes beyond `max_bytes` to one stream ends it.

    Args:
        argv: The program and its arguments.
        folder: The working directory.
        max_bytes: Of each of the two streams.
        variables: Added to the environment.

    Returns:
        Exit code, standard output, standard error; one of them is longer than `max_bytes` if it was ended for that.
    """
    with subprocess.Popen(
        list(argv),
        cwd=folder,
        env={**os.environ, **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        outputs = _read_both(process.stdout, process.stderr, max_bytes)
        if max(map(len, outputs)) > max_bytes:
            process.kill()
    return process.returncode, *outputs


def _read_both(stdout: IO[bytes], stderr: IO[bytes], max_bytes: int) -> tuple[bytes, bytes]:
    kept: dict[int, bytearray] = {stdout.fileno(): bytearray(), stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for fd in kept:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map() and max(map(len, kept.values())) <= max_bytes:
            for key, _ in selector.select():
                data = os.read(key.fd, _CHUNK)
                kept[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    out, err = kept.values()
    return bytes(out), bytes(err)


def _allowed(argv: Sequence[str], commands: Sequence[str]) -> str:
    """The program's file, if the command is allowed."""
    if any("\0" in word for word in argv):
        raise ToolArgumentsError("run_command", "argv: an argument contains a null character")
    if not any(list(argv[: len(prefix)]) == prefix for prefix in map(shlex.split, commands) if prefix):
        raise ToolArgumentsError("run_command", f"argv: {argv[0]!r} with these arguments is not on the allowlist")
    program = shutil.which(argv[0])
    if program is None:
        raise ToolFailedError("run_command", "FileNotFoundError", f"{argv[0]!r} is not installed")
    return program
