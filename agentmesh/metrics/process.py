"""Figures of the process and of its connection, read when somebody asks."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from pathlib import Path

from agentmesh.metrics.family import Family
from agentmesh.streams.figures import figures_of
from agentmesh.transport import Transport
from agentmesh.version import __version__

_STARTED = time.time()


def process_families(transport: Transport) -> list[Family]:
    """Of the process and of the connection."""
    return [
        *_process(),
        *_connection(transport),
        *_services(transport),
        *_breakers(transport),
        *_streams(transport),
    ]


def _process() -> list[Family]:
    info = Family("agentmesh_info", "gauge", "Always 1; what runs.")
    info.add(1, version=__version__, python=platform.python_version(), pid=os.getpid())
    times = os.times()
    return [
        info,
        _one("process_cpu_seconds_total", "counter", "Processor time, in seconds.", times.user + times.system),
        _one("process_resident_memory_bytes", "gauge", "Memory in use.", _resident()),
        _one("process_start_time_seconds", "gauge", "When the process started, in seconds since 1970.", _STARTED),
    ]


def _connection(transport: Transport) -> list[Family]:
    connection = transport.connection
    states = Family("agentmesh_broker_state", "gauge", "1 for the state that the connection to the broker is in.")
    for state in ("connected", "reconnecting", "closed"):
        states.add(transport.state == state, state=state)
    return [
        states,
        _one("agentmesh_broker_reconnects_total", "counter", "Connections after the first.", connection.reconnects),
        _one("agentmesh_broker_buffered_bytes", "gauge", "Bytes that wait to be sent.", connection.nc.buffered),
        _one(
            "agentmesh_broker_received_total",
            "counter",
            "Messages from the broker, on the connection of the moment.",
            connection.nc.stats["in_msgs"],
        ),
        _one("agentmesh_requests_waiting", "gauge", "Requests without a reply so far.", connection.inbox.pending),
    ]


STATES = ("closed", "half-open", "open")


def _breakers(transport: Transport) -> list[Family]:
    if transport.breakers is None:
        return []
    state = Family("agentmesh_breaker_state", "gauge", "0: asks go to the agent; 1: a few do, to see; 2: none does.")
    opened = Family("agentmesh_breaker_opened_total", "counter", "Times that asks of an agent were stopped.")
    for tenant, agent, breaker in transport.breakers:
        state.add(STATES.index(breaker.state), target=agent, tenant=tenant)
        opened.add(breaker.opened, target=agent, tenant=tenant)
    return [state, opened]


def _services(transport: Transport) -> list[Family]:
    requests = Family("agentmesh_service_requests_total", "counter", "Requests to an endpoint of a service.")
    errors = Family("agentmesh_service_errors_total", "counter", "Of those, the ones that were answered with an error.")
    seconds = Family("agentmesh_service_seconds_total", "counter", "Seconds spent in them.")
    for service in transport.services:
        for endpoint in service.endpoints if service.counts else ():
            if endpoint.requests:
                names = {"service": service.name, "endpoint": endpoint.name}
                requests.add(endpoint.requests, **names)
                errors.add(endpoint.errors, **names)
                seconds.add(endpoint.processing_time, **names)
    return [requests, errors, seconds] if requests.samples else []


def _streams(transport: Transport) -> list[Family]:
    figures = figures_of(transport)
    names = "agentmesh_conversation"
    return [
        _one(f"{names}_chunks_stored_total", "counter", "Chunks stored by producers here.", figures.stored),
        _one(f"{names}_chunks_read_total", "counter", "Chunks got by readers here.", figures.read),
        _one(f"{names}_refused_total", "counter", "Runs here that were ended by somebody else.", figures.refused),
        _one(f"{names}_producers", "gauge", "Runs that are in their block.", figures.producers),
        _one(f"{names}_readers", "gauge", "Readers of streams.", len(figures.followers)),
        _one(f"{names}_backlog_messages", "gauge", "Messages that readers have heard and not read.", figures.backlog),
    ]


def _one(name: str, kind: str, help: str, value: float) -> Family:
    family = Family(name, "counter" if kind == "counter" else "gauge", help)
    family.add(value)
    return family


def _resident() -> int:
    """Bytes of memory in use; where the kernel does not say so, the most there were."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
