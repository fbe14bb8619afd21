"""One look at a mesh: two samples of its metrics, and what they say about the time in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentmesh.metrics import Family

Row = Sequence[Any]
STATES = ("closed", "half-open", "open")


@dataclass
class Sample:
    """The figures of all processes at one moment."""

    at: float
    """Seconds, of any clock that goes on."""
    families: list[Family] = field(default_factory=list)

    def of(self, name: str, suffix: str = "", **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and values of a figure, as far as they have these labels."""
        for family in self.families:
            if family.name == name:
                for sample in family.samples:
                    if sample.suffix == suffix and labels.items() <= sample.labels.items():
                        yield sample.labels, sample.value

    def total(self, name: str, suffix: str = "", **labels: str) -> float:
        """The sum of those."""
        return sum(value for _, value in self.of(name, suffix, **labels))

    def values(self, name: str, label: str) -> list[str]:
        """What a label can be."""
        return sorted({labels[label] for labels, _ in self.of(name) if label in labels})


@dataclass
class Glance:
    """See the module."""

    before: Sample
    after: Sample

    def headline(self) -> str:
        """Everything in one line."""
        processes = self.after.values("agentmesh_info", "process")
        replicas = sum(1 for _ in self.after.of("agentmesh_agent_state"))
        return (
            f"{len(processes)} processes, {replicas} replicas; {self._rate('agentmesh_handled_total'):.1f} handled/s, "
            f"{self._rate('agentmesh_failed_total'):.1f} failed/s, "
            f"{self.after.total('agentmesh_mailbox_messages'):.0f} in mailboxes, "
            f"{self.after.total('agentmesh_task_queue_messages'):.0f} in task queues"
        )

    def tables(self) -> list[tuple[list[str], list[Row]]]:
        """Columns and rows of each table; some may have no rows."""
        return [
            (
                ["AGENT", "STATE", "MAILBOX", "OF", "IN FLIGHT", "HANDLED", "RATE/S", "P95", "FAILED", "RESTARTS"],
                [tuple(agent.values()) for agent in self.agents()],
            ),
            (["TASK QUEUE", "TASKS", "LAG", "UNSETTLED"], [tuple(queue.values()) for queue in self.queues()]),
            (["DURABLE MAILBOX", "EVENTS"], [tuple(mailbox.values()) for mailbox in self.mailboxes()]),
            (["STREAM", "MESSAGES", "MB", "OF MB", "CONSUMERS"], [tuple(stream.values()) for stream in self.streams()]),
            (["BREAKER", "STATE", "OPENED", "PROCESS"], [tuple(breaker.values()) for breaker in self.breakers()]),
            (
                ["PROCESS", "CPU %", "MB", "BROKER", "RECONNECTS", "BUFFERED"],
                [tuple(process.values()) for process in self.processes()],
            ),
        ]

    def document(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "seconds": round(self.after.at - self.before.at, 3),
            "agents": self.agents(),
            "queues": self.queues(),
            "durable_mailboxes": self.mailboxes(),
            "streams": self.streams(),
            "breakers": self.breakers(),
            "processes": self.processes(),
        }

    # ------------------------------------------------------------ parts
    def agents(self) -> list[dict[str, Any]]:
        """Each agent, its replicas together."""
        after = self.after
        return [
            {
                "agent": name,
                "state": ", ".join(self._states(name)),
                "mailbox": int(after.total("agentmesh_mailbox_messages", agent=name)),
                "capacity": int(after.total("agentmesh_mailbox_capacity", agent=name)),
                "in_flight": int(after.total("agentmesh_in_flight", agent=name)),
                "handled": int(after.total("agentmesh_handled_total", agent=name)),
                "rate": round(self._rate("agentmesh_handled_total", agent=name), 1),
                "p95": _time(_quantile(after.of("agentmesh_handling_seconds", "_bucket", agent=name), 0.95)),
                "failed": int(after.total("agentmesh_failed_total", agent=name)),
                "restarts": int(after.total("agentmesh_restarts_total", agent=name)),
            }
            for name in after.values("agentmesh_agent_state", "agent")
        ]

    def queues(self) -> list[dict[str, Any]]:
        """Task queues with something in them."""
        return [
            {
                "queue": f"{labels['agent']} {labels['priority']}" if labels["agent"] else "(to be dispatched)",
                "tasks": int(tasks),
                "lag": int(self._one("agentmesh_task_queue_lag", labels)),
                "unsettled": int(self._one("agentmesh_task_queue_unsettled", labels)),
            }
            for labels, tasks in self.after.of("agentmesh_task_queue_messages")
            if tasks
        ]

    def mailboxes(self) -> list[dict[str, Any]]:
        """Durable mailboxes with something in them."""
        return [
            {"agent": labels["agent"], "events": int(events)}
            for labels, events in self.after.of("agentmesh_durable_mailbox_messages")
            if events
        ]

    def streams(self) -> list[dict[str, Any]]:
        """Streams of the broker account."""
        return [
            {
                "stream": labels["stream"],
                "messages": int(messages),
                "megabytes": _megabytes(self._one("agentmesh_stream_bytes", labels)),
                "of": _megabytes(self._one("agentmesh_stream_max_bytes", labels)) or None,
                "consumers": int(self._one("agentmesh_stream_consumers", labels)),
            }
            for labels, messages in self.after.of("agentmesh_stream_messages")
        ]

    def breakers(self) -> list[dict[str, Any]]:
        """Breakers that are not closed, or were not once."""
        return [
            {
                "breaker": labels["target"],
                "state": STATES[int(state)],
                "opened": int(self._one("agentmesh_breaker_opened_total", labels)),
                "process": labels["process"],
            }
            for labels, state in self.after.of("agentmesh_breaker_state")
            if state or self._one("agentmesh_breaker_opened_total", labels)
        ]

    def processes(self) -> list[dict[str, Any]]:
        """Each process that answers."""
        return [
            {
                "process": name,
                "cpu": round(100 * self._rate("process_cpu_seconds_total", process=name), 1),
                "megabytes": _megabytes(self.after.total("process_resident_memory_bytes", process=name)),
                "broker": self._connection(name),
                "reconnects": int(self.after.total("agentmesh_broker_reconnects_total", process=name)),
                "buffered": int(self.after.total("agentmesh_broker_buffered_bytes", process=name)),
            }
            for name in self.after.values("agentmesh_info", "process")
        ]

    def _states(self, agent: str) -> list[str]:
        states = [labels["state"] for labels, _ in self.after.of("agentmesh_agent_state", agent=agent)]
        return [f"{states.count(state)} {state}" for state in sorted(set(states))]

    def _connection(self, process: str) -> str:
        states = self.after.of("agentmesh_broker_state", process=process)
        return next((labels["state"] for labels, holds in states if holds), "")

    def _rate(self, name: str, **labels: str) -> float:
        """Per second; a process that was started again counts from 0."""
        grown = self.after.total(name, **labels) - self.before.total(name, **labels)
        return max(0.0, grown) / max(0.001, self.after.at - self.before.at)

    def _one(self, name: str, labels: dict[str, str]) -> float:
        return self.after.total(name, **labels)


def _quantile(buckets: Iterable[tuple[dict[str, str], float]], fraction: float) -> float:
    """The bound that `fraction` of the values do not exceed, over several cumulative histograms; 0 without values."""
    totals: dict[float, float] = {}
    for labels, value in buckets:
        bound = float(labels["le"])
        totals[bound] = totals.get(bound, 0.0) + value
    wanted = fraction * totals.get(float("inf"), 0.0)
    return next((bound for bound in sorted(totals) if totals[bound] >= wanted), 0.0) if wanted else 0.0


def _time(seconds: float) -> str | None:
    if not seconds:
        return None
    if seconds == float("inf"):
        return "> 5 min"
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def _megabytes(size: float) -> float:
    return round(size / 1024 / 1024, 1)
