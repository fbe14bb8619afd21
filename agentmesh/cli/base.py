"""What all commands share: the options that may stand anywhere, the settings, the connection, and how errors end.

A command is a plain function whose first parameter is a `Session`:

    commands = Commands()

    @commands.command("ask", example='agentmesh ask greeter "hi"')
    def ask(session: Session, agent: Annotated[str, typer.Argument(help="Whom to ask.")]) -> None:
        "Ask an agent …"

Nothing heavy is imported here: `agentmesh --help` must not wait for NATS and pydantic.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from agentmesh.cli import exits
from agentmesh.cli.output import Output

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.config import Override, Settings
    from agentmesh.runfile import RunFile
    from agentmesh.subjects import Subjects
    from agentmesh.transport import TransportOptions

T = TypeVar("T")
Command = Callable[..., None]

PANEL = "Options of every command"

Nats = Annotated[
    str | None, typer.Option("--nats", metavar="URL", help="Broker to use; $NATS_URL.", rich_help_panel=PANEL)
]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Whose agents.", rich_help_panel=PANEL)]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings; else mesh.toml here or above.", rich_help_panel=PANEL),
]
Profile = Annotated[
    str | None, typer.Option("--profile", help="Profile of the settings to use.", rich_help_panel=PANEL)
]
Json = Annotated[bool, typer.Option("--json", help="Data for programs.", rich_help_panel=PANEL)]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Say more; twice: even more.", rich_help_panel=PANEL)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only answers and errors.", rich_help_panel=PANEL)]
NoColor = Annotated[bool, typer.Option("--no-color", help="Plain text; $NO_COLOR.", rich_help_panel=PANEL)]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="How long to wait: 5, 30s, 2m.", rich_help_panel=PANEL)
]


@dataclass(frozen=True)
class Options:
    """The options of every command. They may stand before or after the command; the last one counts."""

    nats: Nats = None
    tenant: Tenant = None
    config: Config = None
    profile: Profile = None
    json: Json = False
    verbose: Verbose = 0
    quiet: Quiet = False
    no_color: NoColor = False
    timeout: Timeout = None

    def over(self, earlier: Options) -> Options:
        """These, and what only `earlier` says."""
        names = [option.name for option in fields(self)]
        return Options(**{name: getattr(self, name) or getattr(earlier, name) for name in names})


@dataclass
class Session:
    """What a command works with."""

    options: Options
    overrides: list[Override] = field(default_factory=list)
    """Settings a command was given on its command line; add them before the first use of `settings`."""

    @cached_property
    def out(self) -> Output:
        options = self.options
        return Output(json=options.json, quiet=options.quiet, verbose=options.verbose, no_color=options.no_color)

    @cached_property
    def settings(self) -> Settings:
        """All settings, the command line included."""
        from agentmesh import config

        given = [("broker.url", self.options.nats, "--nats"), ("tenant", self.options.tenant, "--tenant")]
        typed = [config.Override(key, value, flag) for key, value, flag in given if value is not None]
        return config.load(
            config=self.options.config, profile=self.options.profile, overrides=[*typed, *self.overrides]
        )

    def override(self, key: str, value: Any, flag: str) -> None:
        """Let a value of the command line win over the settings, if it was given."""
        from agentmesh.config import Override

        if value is not None:
            self.overrides.append(Override(key, value, flag))

    def timeout(self, default: float | None = None) -> float:
        """Seconds to wait: `--timeout`, else `default`, else the settings' `defaults.deadline`."""
        from agentmesh.config import parse_duration
        from agentmesh.errors import ConfigError

        if self.options.timeout is None:
            return self.settings.defaults.deadline if default is None else default
        try:
            return parse_duration(self.options.timeout)
        except ValueError as error:
            raise ConfigError("--timeout", f"{self.options.timeout!r}: {error}") from None

    @cached_property
    def running(self) -> RunFile | None:
        """The `agentmesh up` of this folder or of one above it, if its address is what the settings leave open."""
        from agentmesh import runfile

        return runfile.find() if self.settings.broker.embedded else None

    def transport_options(self) -> TransportOptions:
        """Where the broker is: as set, else the running `agentmesh up`, else the usual address."""
        from agentmesh.transport import TransportOptions

        broker = self.settings.broker
        url: str | list[str] = self.running.url if self.running else DEFAULT_URL
        if not broker.embedded:
            url = [part for part in broker.url.split(",") if part.strip()]
        return TransportOptions(
            url=url,
            name="cli",
            user=broker.user,
            password=broker.password,
            token=broker.token,
            creds=str(self.settings.path(broker.creds)) if broker.creds else None,
            tls_ca=str(self.settings.path(broker.tls_ca)) if broker.tls_ca else None,
            tls_cert=str(self.settings.path(broker.tls_cert)) if broker.tls_cert else None,
            tls_key=str(self.settings.path(broker.tls_key)) if broker.tls_key else None,
            connect_timeout=GUESS_TIMEOUT if self.guessing else CONNECT_TIMEOUT,
            replicas=broker.replicas,
        )

    @property
    def guessing(self) -> bool:
        """Whether nothing says where the broker is, and the usual address is tried."""
        return self.settings.broker.embedded and self.running is None

    @property
    def tenant(self) -> str:
        """Whose agents: as set, else those of the running `agentmesh up`."""
        found = self.running if self.settings.origin("tenant") == "default" else None
        return found.tenant if found else self.settings.tenant

    def check(self, kind: str, name: str) -> str:
        """A name that was typed, if it can be part of a subject; wrong ones are refused before a connection is made."""
        from agentmesh.subjects import token

        return token(kind, name)

    @cached_property
    def subjects(self) -> Subjects:
        """The tenant's subjects; they check names."""
        from agentmesh.subjects import Subjects

        return Subjects(self.tenant)

    @asynccontextmanager
    async def connect(self, *, ledger: bool = False) -> AsyncIterator[Client]:
        """`async with session.connect() as mesh`. A command never starts a broker of its own for this.

        With `ledger`, what is submitted is written down in the ledger of the settings, if they name one.
        """
        from agentmesh.client import Client
        from agentmesh.transport import Transport

        self.timeout()  # what is typed wrongly is said even where there is no broker
        async with await Transport.connect(self.transport_options()) as transport:
            client = Client(transport, self.subjects, "cli")
            async with self._keeping_ledger(client) if ledger else nullcontext():
                yield client

    @asynccontextmanager
    async def _keeping_ledger(self, client: Client) -> AsyncIterator[None]:
        path = self.settings.ledger.path
        if path is None:
            yield
            return
        from agentmesh.tasks.ledger import Ledger
        from agentmesh.tasks.reconcile import Reconciler

        reconciler = Reconciler(client.tasks, Ledger(self.settings.path(path)))
        await reconciler.start()
        try:
            yield
        finally:
            await reconciler.stop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; Ctrl-C cancels it."""
        import asyncio

        self._set_up_logging()
        return asyncio.run(work)

    def _set_up_logging(self) -> None:
        """What libraries log is for `--verbose`: what concerns the user is an error, and said as such."""
        import logging

        logging.basicConfig(
            level=(logging.CRITICAL + 1, logging.INFO, logging.DEBUG)[min(self.options.verbose, 2)],
            format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
            datefmt="%H:%M:%S",
        )


DEFAULT_URL = "nats://127.0.0.1:4222"
CONNECT_TIMEOUT = 2.0
GUESS_TIMEOUT = 0.5
"""Seconds to wait for a broker: less where there is probably none."""


# ---------------------------------------------------------------- commands


class Commands:
    """The commands of one module, by name; made into typer applications only when one is used."""

    def __init__(self) -> None:
        self.apps: dict[str, typer.Typer] = {}

    def command(self, name: str, *, example: str, panel: str) -> Callable[[Command], Command]:
        """Add a top-level command."""
        app = self.apps[name] = _typer()
        return _adder(app, name, example, panel)

    def group(self, name: str, *, help: str, panel: str) -> Group:
        """Add a command that has commands of its own."""
        app = self.apps[name] = _typer()
        app.info.name, app.info.help, app.info.rich_help_panel, app.info.no_args_is_help = name, help, panel, True
        app.callback()(with_options(lambda session: None, keep=True))
        return Group(app)


@dataclass(frozen=True)
class Group:
    """A command with commands of its own."""

    app: typer.Typer

    def command(self, name: str, *, example: str) -> Callable[[Command], Command]:
        """Add a command to the group."""
        return _adder(self.app, name, example, None)


def _typer() -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def _adder(app: typer.Typer, name: str, example: str, panel: str | None) -> Callable[[Command], Command]:
    examples = "\n\n".join(f"    {line}" for line in example.splitlines())

    def add(function: Command) -> Command:
        app.command(name, epilog=f"Examples:\n\n{examples}", rich_help_panel=panel)(with_options(function))
        return function

    return add


def with_options(function: Command, *, keep: bool = False) -> Command:
    """`function(session, …)` as typer wants it: with the options of every command after its own.

    Args:
        function: The command.
        keep: It only passes its options on to the commands below it.
    """
    shared = get_type_hints(Options, include_extras=True)
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

    @functools.wraps(function)
    def call(context: typer.Context, **given: Any) -> None:
        options = Options(**{name: given.pop(name) for name in shared}).over(context.obj or Options())
        if keep:
            context.obj = options
        else:
            finish(Session(options), lambda session: function(session, **given))

    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=getattr(Options(), name))
        for name, kind in shared.items()
    ]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def finish(session: Session, work: Callable[[Session], None]) -> None:
    """Run a command and turn whatever ends it into a message and an exit code.

    Raises:
        typer.Exit: Always with the code, unless the work just returned.
    """
    try:
        work(session)
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(exits.INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Python would complain again while it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(exits.OK) from None
    except Exception as error:  # the edge: nothing may end a command with a bare traceback
        _explain(session, error)
        raise typer.Exit(exits.exit_code(error)) from None


def _explain(session: Session, error: Exception) -> None:
    from agentmesh.errors import AgentMeshError

    if isinstance(error, AgentMeshError | TimeoutError):
        session.out.error(error)
    else:
        session.out.error(f"{type(error).__name__}: {error}")
    if session.out.verbose or not isinstance(error, AgentMeshError | TimeoutError | OSError):
        import traceback

        traceback.print_exception(error)
