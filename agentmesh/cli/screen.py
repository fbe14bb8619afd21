"""What a running `agentmesh up` shows: what is up, then what happens."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentmesh.cli.output import COLORS, Output, as_json, json_object, plain
from agentmesh.ids import now
from agentmesh.up import events
from agentmesh.up.plan import LLM_GATEWAY, UpPlan
from agentmesh.version import __version__

_WIDTH = 12
_TROUBLE = ("restarting", "failed")


@dataclass
class _Shown:
    """One agent, while it starts."""

    isolation: str
    wanted: int
    states: dict[tuple[str, int], str] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    problem: str = ""

    @property
    def ready(self) -> int:
        return sum(state in ("ready", "paused") for state in self.states.values())

    @property
    def state(self) -> str:
        if self.ready >= self.wanted:
            return "ready"
        states = set(self.states.values())
        return "failed" if "failed" in states else "stopped" if states == {"stopped"} else "starting"


class Screen:
    """Prints events as they come; call it with each.

    Args:
        out: With `json` each event is one line.
        plan: What is to run.
    """

    def __init__(self, out: Output, plan: UpPlan) -> None:
        self._out = out
        self._plan = plan
        self._agents = {agent.name: _Shown(agent.isolation, agent.replicas) for agent in plan.agents}
        self._is_ready = False
        self._stands_by = False
        self._is_stopping = False
        self._show: dict[type[Any], Callable[[Any], None]] = {
            events.BrokerReady: self._broker,
            events.ServiceReady: self._service,
            events.AgentState: self._agent,
            events.Ready: self._ready,
            events.LogLine: self._log,
            events.Elected: self._elected,
            events.Restarted: self._restarted,
            events.Reloaded: self._reloaded,
            events.Warned: self._warned,
            events.Stopping: self._stopping,
            events.Stopped: self._stopped,
        }

    def banner(self) -> None:
        """The first line."""
        if not self._out.json and self._plan.log_format == "text":
            parts = (f"agentmesh {__version__}", self._plan.name, f"tenant {self._plan.tenant}")
            self._line(self._out.style(" · ".join((*parts, f"Python {platform.python_version()}")), "bold") + "\n")

    def __call__(self, event: events.UpEvent) -> None:
        if self._out.json:
            self._out.document({"event": event.kind, **plain(event)})
        elif self._plan.log_format == "json":
            self._out.answer(_line_for_programs(event, self._plan.tenant))
        else:
            self._show[type(event)](event)

    # ------------------------------------------------------------ while it starts
    def _broker(self, event: events.BrokerReady) -> None:
        if self._is_ready:
            self._line(f"~ broker is back at {event.url}")
            return
        kind = f"embedded {event.version}, JetStream" if event.embedded else f"nats-server {event.version}"
        self._bullet("broker", event.url, kind)
        if event.embedded and event.store:
            self._bullet("storage", f"{_short(event.store)}/", "survives restarts")
        elif event.embedded:
            self._bullet("storage", "memory", "gone when this ends (--store DIR: kept)")

    def _elected(self, event: events.Elected) -> None:
        """Being the only one is not worth a line."""
        if event.active and self._stands_by:
            self._line("~ this supervisor is the active one now")
        elif not event.active:
            self._line(f"~ standing by for the chores: {event.supervisor} does them")
        self._stands_by = not event.active

    def _service(self, event: events.ServiceReady) -> None:
        if self._is_ready:
            return  # what ended was said by `Restarted`
        if event.service == "memory":
            self._bullet("memory", event.process, f"pid {event.pid}")
        elif event.service == "tools":
            self._bullet("tools", event.process, ", ".join(self._plan.tools.targets))
        elif event.service == "gateway":
            login = "no login on loopback" if self._plan.http is None or self._plan.http.open else "with a token"
            self._bullet("http", event.url, f"{login}; see /ui and /docs")

    def _agent(self, event: events.AgentState) -> None:
        agent = self._agents.setdefault(event.name, _Shown(event.isolation, 1))
        before = agent.states.get((event.node, event.replica), "")
        agent.states[event.node, event.replica] = event.state
        agent.messages = event.messages or agent.messages
        agent.problem = event.problem or agent.problem
        # Replicas that come and go in good order belong to a reload or a change of scale; that is said elsewhere.
        notable = event.state in _TROUBLE or before in _TROUBLE or self._out.verbose
        if self._is_ready and not self._is_stopping and notable and event.state != before:
            color = {"ready": "green", "failed": "red"}.get(event.state, "yellow")
            why = f": {event.problem}" if event.problem else ""
            self._line(f"~ {event.name}.{event.replica} {self._out.style(event.state, color)}{why}")

    def _ready(self, event: events.Ready) -> None:
        self._is_ready = True
        self._models()
        self._line("")
        self._table()
        where = self._out.style(f"ready in {event.seconds:.1f} s", "green")
        self._line(f"{where} · try:  {self._out.style(self._next(), 'cyan')}      Ctrl-C to stop\n")

    def _models(self) -> None:
        """What answers at the gateway to language models: a stranger must not take rules for a model."""
        gateway = next((agent for agent in self._plan.agents if agent.target == LLM_GATEWAY), None)
        if gateway is None:
            return
        models = {name: model.get("backend", "offline") for name, model in gateway.kwargs.get("models", {}).items()}
        if any(backend != "offline" for backend in models.values()):
            self._bullet("models", ", ".join(models), "costs: agentmesh llm cost")
        else:
            self._bullet("model", "offline", "answers by rules; a real one: [models.default] in mesh.toml")

    def _table(self) -> None:
        rows = []
        for name, agent in self._agents.items():
            messages = ", ".join(agent.messages) or agent.problem.partition("\n")[0] or "-"
            rows.append((f"  {name}", f"{agent.ready}/{agent.wanted}", agent.isolation, agent.state, messages))
        if rows:
            self._out.table(["  AGENT", "REPLICAS", "ISOLATION", "STATE", "MESSAGES"], rows)
            self._line("")

    def _next(self) -> str:
        """The next command to type."""
        talks = [name for name, agent in self._agents.items() if {"Prompt", "Prompt*"} & set(agent.messages)]
        return f'agentmesh ask {talks[0]} "hi"' if talks else "agentmesh ps"

    # ------------------------------------------------------------ while it runs
    def _log(self, event: events.LogLine) -> None:
        if not self._is_ready and event.text.startswith(("memory ready", "tools ready", "http ready")):
            return  # `ServiceReady` says it
        color = COLORS[sum(map(ord, event.source)) % len(COLORS)]
        self._line(f"{self._out.style(event.source.ljust(_WIDTH) + ' │', color)} {event.text}")

    def _restarted(self, event: events.Restarted) -> None:
        # Only the first line: the others are its last words, which were shown as it said them.
        why = event.reason.partition("\n")[0].removeprefix(event.process).strip()
        self._line(f"~ {event.process} ended ({why}); started again ({event.restarts})")

    def _reloaded(self, event: events.Reloaded) -> None:
        cause = f"{', '.join(map(_short, event.files))} changed" if event.files else "new processes were asked for"
        if event.problem:
            rest = f", except in {', '.join(event.nodes)}" if event.nodes else ""
            self._line(self._out.style(f"~ {cause}, the old code runs on{rest}:", "red"))
            self._line(event.problem.rstrip())
            return
        what = ", ".join(event.agents or event.nodes) or "nothing to do"
        self._line(self._out.style(f"~ {cause} → {what} restarted in {event.seconds:.1f} s", "green"))

    def _warned(self, event: events.Warned) -> None:
        text = event.text.rstrip()
        text = "\n" + textwrap.indent(textwrap.dedent(text), "    ") if "\n" in text else f" {text}"
        self._line(f"{self._out.style('!', 'yellow')} {event.source}:{text}")
        if event.hint:
            self._line(f"  {self._out.style('→ ' + event.hint, 'cyan')}")

    # ------------------------------------------------------------ while it stops
    def _stopping(self, event: events.Stopping) -> None:
        self._is_stopping = True
        self._line(f"stopping ({event.reason}): up to {event.grace:g} s for what is being done; Ctrl-C again: at once")

    def _stopped(self, event: events.Stopped) -> None:
        done = f"finished {event.drained}, gave back {event.given_back} in {event.seconds:.1f} s"
        how = "stopped, some of it by force" if event.killed else "stopped"
        store = self._plan.broker.store
        kept = f". Data kept in {_short(str(store))}/" if self._plan.broker.embedded and store is not None else ""
        self._line(f"{how}: {done}{kept}")

    # ------------------------------------------------------------ lines
    def _bullet(self, what: str, where: str, note: str) -> None:
        if not self._out.quiet:
            dot, about = self._out.style("●", "green"), self._out.style(note, "dim")
            self._line(f"  {dot} {what:<10} {where:<24} {about}".rstrip())

    def _line(self, text: str) -> None:
        self._out.answer(text)


def _line_for_programs(event: events.UpEvent, tenant: str) -> str:
    """With `--log-format json` everything is a line like those of the processes, which say themselves what they are."""
    line: dict[str, Any] = {"ts": now().isoformat(timespec="milliseconds").replace("+00:00", "Z"), "level": "INFO"}
    if isinstance(event, events.LogLine):
        record = json_object(event.text)
        if record is not None and "message" in record:
            return as_json({**record, "process": event.source})
        return as_json({**line, "logger": "stdout", "message": event.text, "tenant": tenant, "process": event.source})
    if isinstance(event, events.Warned):
        line["level"] = "WARNING"
    about = {key: value for key, value in plain(event).items() if key not in line and key != "at"}
    return as_json({**line, "logger": "agentmesh.up", "message": event.kind, "tenant": tenant, **about})


def _short(path: str) -> str:
    """A path as seen from here, if it is below."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
