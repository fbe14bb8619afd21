"""The command line: which module holds which command, and `main`.

A module is imported when its command is used, so that `agentmesh ask` does not pay for `agentmesh up`.
"""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agentmesh.cli.base import Session, with_options

COMMANDS = {
    "init": "init",
    "demo": "demo",
    "up": "up",
    "down": "up",
    "node": "node",
    "ps": "agents",
    "agents": "agents",
    "scale": "agents",
    "restart": "agents",
    "drain": "agents",
    "pause": "orders",
    "resume": "orders",
    "quarantine": "orders",
    "logs": "logs",
    "top": "top",
    "metrics": "metrics",
    "events": "events",
    "chat": "chat",
    "ask": "talk",
    "tell": "talk",
    "publish": "talk",
    "submit": "task",
    "map": "task",
    "task": "task",
    "dead": "dead",
    "schedule": "schedule",
    "limits": "limits",
    "stream": "stream",
    "llm": "llm",
    "ledger": "ledger",
    "memory": "memory",
    "keys": "keys",
    "doctor": "doctor",
    "check": "check",
    "bench": "bench",
    "chaos": "chaos",
    "proto": "proto",
    "version": "version",
}
"""Command and the module of `agentmesh.cli` that holds it, in the order of the help."""


def load(name: str) -> Any:
    """The command of that name."""
    module = import_module(f"agentmesh.cli.{COMMANDS[name]}")
    command = typer.main.get_command(module.commands.apps[name])
    command.name = name
    return command


class LazyGroup(TyperGroup):
    """The commands of `COMMANDS`, each imported when it is asked for."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.commands[cmd_name] = load(cmd_name)
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            for name in COMMANDS:  # so that the message can name the one that was meant
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="agentmesh",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Supervised, durable actors for AI agents on plain NATS.",
    epilog="Start with:  agentmesh init hello  or  agentmesh demo",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from agentmesh.version import __version__

        typer.echo(f"agentmesh {__version__}")
        raise typer.Exit


def _main(
    session: Session,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Supervised, durable actors for AI agents on plain NATS."""


app.callback()(with_options(_main, keep=True))


def main(arguments: list[str] | None = None) -> None:
    """The program `agentmesh`. Ends the process with the exit codes of `agentmesh.cli.exits`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? and no traceback
    app(sys.argv[1:] if arguments is None else arguments, prog_name="agentmesh")
