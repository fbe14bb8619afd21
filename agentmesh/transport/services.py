"""NATS micro services: answers discovery for many services with one subscription.

Source: ADR-32 of nats-io/nats-architecture-and-design; checked against the official clients' `micro`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from agentmesh.ids import new_id
from agentmesh.transport.connection import Connection, Subscription
from agentmesh.transport.wire import Message

_TYPE = "io.nats.micro.v1."


@dataclass(slots=True)
class Endpoint:
    """One subject a service answers on, with its counters; whoever handles the requests counts."""

    name: str
    subject: str
    queue_group: str = "q"
    metadata: Mapping[str, str] = field(default_factory=dict)
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_time: float = 0.0
    """Seconds spent in all requests together."""

    def count(self, seconds: float, error: str = "") -> None:
        """Count one request."""
        self.requests += 1
        self.processing_time += seconds
        if error:
            self.errors += 1
            self.last_error = error

    def info(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "subject": self.subject,
            "queue_group": self.queue_group,
            "metadata": dict(self.metadata),
        }

    def stats(self) -> dict[str, Any]:
        nanoseconds = int(self.processing_time * 1e9)
        return {
            "name": self.name,
            "subject": self.subject,
            "queue_group": self.queue_group,
            "num_requests": self.requests,
            "num_errors": self.errors,
            "last_error": self.last_error,
            "processing_time": nanoseconds,
            "average_processing_time": nanoseconds // self.requests if self.requests else 0,
        }


@dataclass(slots=True)
class Service:
    """What `nats micro list` shows. `name` of letters, digits, `_` and `-`; `version` like 1.2.3."""

    name: str
    version: str = "0.0.0"
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    endpoints: list[Endpoint] = field(default_factory=list)
    counts: bool = True
    """Whether its endpoints hold what was counted; else only its answers do."""
    id: str = field(default_factory=new_id)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def answer(self, verb: str) -> dict[str, Any]:
        """The reply to PING, INFO or STATS."""
        reply: dict[str, Any] = {
            "name": self.name,
            "id": self.id,
            "version": self.version,
            "metadata": dict(self.metadata),
            "type": f"{_TYPE}{verb.lower()}_response",
        }
        if verb == "INFO":
            reply["description"] = self.description
            reply["endpoints"] = [endpoint.info() for endpoint in self.endpoints]
        elif verb == "STATS":
            reply["started"] = self.started.isoformat().replace("+00:00", "Z")
            reply["endpoints"] = [endpoint.stats() for endpoint in self.endpoints]
        return reply


class Services:
    """Answers `$SRV.PING|INFO|STATS[.name[.id]]` for the services added to it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._subscription: Subscription | None = None
        self._services: dict[str, dict[str, Service]] = {}

    def __iter__(self) -> Iterator[Service]:
        """Those that are listed."""
        return (service for instances in list(self._services.values()) for service in list(instances.values()))

    async def start(self) -> None:
        """Subscribe; further calls do nothing.

        Raises:
            PermissionDeniedError: This user may not subscribe to `$SRV.>`.
        """
        if self._subscription is None:
            self._subscription = await self._connection.subscribe("$SRV.>", self._on_request)

    async def stop(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    def add(self, service: Service) -> Service:
        """List a service; its fields and counters may change at any time."""
        self._services.setdefault(service.name, {})[service.id] = service
        return service

    def remove(self, service: Service) -> None:
        instances = self._services.get(service.name, {})
        instances.pop(service.id, None)
        if not instances:
            self._services.pop(service.name, None)

    def _on_request(self, message: Message) -> None:
        _, verb, *where = message.subject.split(".")
        if verb not in ("PING", "INFO", "STATS") or len(where) > 2 or not message.reply:
            return
        for service in self._asked(where):
            self._connection.send(message.reply, msgspec.json.encode(service.answer(verb)))

    def _asked(self, where: list[str]) -> list[Service]:
        if not where:
            return [service for instances in self._services.values() for service in instances.values()]
        instances = self._services.get(where[0], {})
        if len(where) == 1:
            return list(instances.values())
        return [instances[where[1]]] if where[1] in instances else []
