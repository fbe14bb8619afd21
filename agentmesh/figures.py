"""What agents and their workers have counted, as families of figures."""

from __future__ import annotations

from collections.abc import Iterable

from agentmesh.agent import AgentCell
from agentmesh.metrics import Family, Histogram
from agentmesh.registry import AgentInfo
from agentmesh.tasks import TaskWorker


def agent_families(replicas: Iterable[tuple[AgentInfo, AgentCell, TaskWorker | None]]) -> list[Family]:
    """The families of the replicas of a process."""
    state = Family("agentmesh_agent_state", "gauge", "Always 1; the state that a replica is in.")
    mailbox = Family("agentmesh_mailbox_messages", "gauge", "Messages that wait in a mailbox.")
    capacity = Family("agentmesh_mailbox_capacity", "gauge", "Messages a mailbox holds.")
    in_flight = Family("agentmesh_in_flight", "gauge", "Messages and tasks being handled.")
    handled = Family("agentmesh_handled_total", "counter", "Messages and tasks that were handled.")
    failed = Family("agentmesh_failed_total", "counter", "Messages and tasks whose handler failed.")
    refused = Family("agentmesh_refused_total", "counter", "Messages that were refused.")
    restarts = Family("agentmesh_restarts_total", "counter", "Times a replica was started again.")
    held = Family("agentmesh_tasks_held", "gauge", "Tasks a worker has without running them.")
    handling = Family("agentmesh_handling_seconds", "histogram", "How long handlers of events and requests took.")
    queued = Family("agentmesh_queue_seconds", "histogram", "How long a message or task waited until it was begun.")
    for info, cell, worker in replicas:
        who = {"agent": info.name, "replica": str(info.replica)}
        counters = cell.counters
        state.add(1, **who, state=info.state)
        mailbox.add(info.mailbox, **who)
        capacity.add(cell.mailbox.capacity, **who)
        in_flight.add(info.in_flight, **who)
        handled.add(counters.handled, **who)
        failed.add(counters.failed, **who)
        refused.add(counters.refused, **who)
        restarts.add(counters.restarts, **who)
        _spread(handling, counters.durations, who)
        _spread(queued, counters.queued, {**who, "kind": "message"})
        if worker is not None:
            held.add(worker.held, **who)
            _spread(queued, worker.queued, {**who, "kind": "task"})
    return [state, mailbox, capacity, in_flight, handled, failed, refused, restarts, held, handling, queued]


def _spread(family: Family, histogram: Histogram, labels: dict[str, str]) -> None:
    if histogram.count:
        family.samples += histogram.samples(labels)
