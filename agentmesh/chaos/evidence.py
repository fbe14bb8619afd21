"""What the checker judges: the histories, and the streams read by hand while the run goes on and when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentmesh.chaos.history import Entry
from agentmesh.chaos.raw import RawClient, Stored
from agentmesh.errors import BrokerError

LOOK_EVERY = 1.0
"""Seconds between looks at the stream of results."""


@dataclass
class Evidence:
    """Everything known about a run."""

    history: list[Entry] = field(default_factory=list)
    results: list[Stored] = field(default_factory=list)
    """The stream of results at the end."""
    seen: dict[int, Stored] = field(default_factory=dict)
    """Results as they were read during the run, by stream sequence."""
    left: dict[str, int] = field(default_factory=dict)
    """What remained at the end: messages in queues, deliveries not settled."""
    drained: float | None = None
    """Seconds from the last fault until nothing was left and every submitter had its results; None: never."""
    patience: float = 30.0
    """Seconds that this could take."""
    orphans: list[str] = field(default_factory=list)
    """Processes that outlived those they belonged to."""
    ack_wait: float = 2.0


class Watcher:
    """Reads streams of one tenant from the servers themselves, whatever happens to the links.

    Args:
        urls: Of the servers.
        tenant: Whose streams.
    """

    def __init__(self, urls: Sequence[str], tenant: str) -> None:
        self._urls = urls
        self._tenant = tenant
        self.seen: dict[int, Stored] = {}

    async def watch(self) -> None:
        """Collect results as they come, until cancelled."""
        while True:
            with contextlib.suppress(BrokerError):
                async with self._client() as client:
                    start = max(self.seen, default=0) + 1
                    async for stored in client.messages("RESULTS", self._results, start):
                        self.seen[stored.sequence] = stored
            await asyncio.sleep(LOOK_EVERY)

    async def results(self) -> list[Stored]:
        """All results of the tenant now."""
        async with self._client() as client:
            return [stored async for stored in client.messages("RESULTS", self._results)]

    async def left(self) -> dict[str, int]:
        """Messages in queues and deliveries not settled; empty when there are none."""
        async with self._client() as client:
            counts = {
                "tasks queued": await client.count("TASKS", f"ai.agent.tasks.{self._tenant}.>")
                + await client.count("TASKS", f"ai.agent.tasks.{self._tenant}"),
                "tasks delayed": await client.count("SCHED", f"ai.agent.sched.{self._tenant}.*"),
                "tasks due": await client.count("SCHED", f"ai.agent.due.{self._tenant}"),
                "durable events queued": await client.count("MAILBOX", f"ai.agent.mailbox.{self._tenant}.>"),
            }
            for stream in ("TASKS", "SCHED", "MAILBOX"):
                for consumer in await self._consumers(client, stream):
                    unsettled = consumer["num_ack_pending"] + consumer["num_pending"]
                    counts[f"unsettled at {consumer['name']}"] = unsettled
        return {what: count for what, count in counts.items() if count}

    async def _consumers(self, client: RawClient, stream: str) -> list[dict[str, Any]]:
        answer = await client.call(f"CONSUMER.LIST.{stream}", {"offset": 0})
        found: list[dict[str, Any]] = answer.get("consumers") or []
        return [consumer for consumer in found if consumer["name"].startswith(f"{self._tenant}~")]

    @property
    def _results(self) -> str:
        return f"ai.agent.results.{self._tenant}.*"

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[RawClient]:
        """A connection to a server that answers for JetStream."""
        for url in self._urls:
            async with RawClient(url) as client:
                if await _answers(client):
                    yield client
                    return
        raise BrokerError("no server answers for JetStream")


async def _answers(client: RawClient) -> bool:
    try:
        return "error" not in await client.call("STREAM.INFO.TASKS")
    except BrokerError:
        return False


def save(evidence: Evidence, folder: Path) -> None:
    """Put the streams beside the histories, for whoever looks at the run later."""
    rows = [{**json.loads(stored.data), "sequence": stored.sequence} for stored in evidence.results]
    (folder / "results.json").write_text(json.dumps(rows, indent=1))
