"""A tool executor as a process: `python -m agentmesh.tools --nats URL module:tool module …`.

A module serves all its tools; without any, the tools that come with agentmesh are served. It prints one line when it
answers, ends in order on SIGTERM and SIGINT (no new calls, those that run may finish; exit code 0), and ends with the
process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from agentmesh.errors import AgentMeshError, ConfigError
from agentmesh.lifeline import die_with_parent
from agentmesh.metrics import METRICS
from agentmesh.metrics import serve as serve_metrics
from agentmesh.subjects import Subjects
from agentmesh.supervisor.child import configure_logging
from agentmesh.tooling import Tool
from agentmesh.tools.executor import GRACE, ToolExecutor
from agentmesh.tools.loading import configure, load_all
from agentmesh.transport import Transport, TransportOptions

BUILT_IN = "agentmesh.tools.builtin"


async def serve(options: TransportOptions, tools: Sequence[Tool[..., Any]], given: argparse.Namespace) -> None:
    """Run tools until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await Transport.connect(options, jetstream=False) as transport:
        executor = ToolExecutor(
            transport,
            Subjects(given.tenant),
            tools,
            concurrency=given.concurrency,
            max_waiting=given.max_waiting,
            allow=_allowed(given.allow),
        )
        await executor.start()
        await serve_metrics(transport, Subjects(given.tenant).control(METRICS), given.name)
        try:
            print(f"tools ready: {', '.join(sorted(executor.tools))} on {transport.url}", flush=True)
            await stop.wait()
        finally:
            await executor.stop(given.grace)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 after an orderly stop, 1 if nothing can be served, 2 for wrong arguments."""
    die_with_parent(grace=GRACE + 5.0)
    given = _parser().parse_args(arguments)
    configure_logging(given.log_format, "INFO", given.tenant)
    try:
        tools, broken = load_all(given.targets or [BUILT_IN])
        for problem in broken:
            print(f"tools: {problem}", file=sys.stderr)
        tools = configure(tools, _settings(given.set))
        if not tools:
            raise ConfigError("targets", "there is no tool to serve")
        options = TransportOptions(url=given.nats, creds=given.creds, name="agentmesh-tools")
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(options, tools, given))
    except AgentMeshError as error:
        print(f"tools: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agentmesh.tools", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("targets", nargs="*", metavar="module[:tool]", help=f"what to serve (default: {BUILT_IN})")
    add("--nats", default="nats://127.0.0.1:4222", metavar="URL", help="the broker (default: %(default)s)")
    add("--creds", metavar="FILE", help="credentials for the broker")
    add("--tenant", default="default", help="whose agents may call (default: %(default)s)")
    add("--name", default="tools", help="of this process among others (default: %(default)s)")
    add("--log-format", choices=("text", "json"), default="text", help="lines for people, or JSON")
    add("--concurrency", type=int, metavar="N", help="calls at the same time (default: one per CPU)")
    add("--max-waiting", type=int, default=256, metavar="N", help="calls that may wait (default: %(default)s)")
    about = "what an agent may call, such as helper=search,read_*; may be repeated, * is everybody else"
    add("--allow", action="append", default=[], metavar="AGENT=TOOLS", help=about)
    add("--grace", type=float, default=GRACE, metavar="S", help="seconds for running calls (default: %(default)s)")
    about = "a setting of every tool that has it, such as root=/srv/docs or commands='[\"git\"]'; may be repeated"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=about)
    return parser


def _allowed(pairs: Sequence[str]) -> dict[str, list[str]] | None:
    """None: there are no rules."""
    rules: dict[str, list[str]] = {}
    for pair in pairs:
        agent, equals, tools = pair.partition("=")
        if not equals or not agent:
            raise ConfigError("--allow", f"{pair!r} is not AGENT=TOOL,TOOL")
        rules.setdefault(agent, []).extend(name.strip() for name in tools.split(",") if name.strip())
    return rules if pairs else None


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError("--set", f"{pair!r} is not NAME=VALUE")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings


if __name__ == "__main__":
    sys.exit(main())
