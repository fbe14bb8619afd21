"""References to agents: an address with verbs. A ref is a value; it stays good while agents come and go."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeVar

from agentmesh.budgets import Budget
from agentmesh.messages import Event, Request, Task

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.tasks import Job

R = TypeVar("R")


class AgentRef:
    """The agent `name` of a tenant, wherever and however often it runs."""

    __slots__ = ("_client", "name")

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def __repr__(self) -> str:
        return f"AgentRef({self.name!r})"

    async def tell(self, event: Event, *, timeout: float | None = None, message_id: str | None = None) -> None:
        """See `Client.tell`."""
        await self._client.tell(self.name, event, timeout=timeout, message_id=message_id)

    async def ask(
        self,
        request: Request[R],
        *,
        timeout: float | None = None,
        budget: Budget | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        """See `Client.ask`."""
        return await self._client.ask(
            self.name, request, timeout=timeout, budget=budget, idempotency_key=idempotency_key
        )

    def stream(self, request: Request[R], *, timeout: float = 30.0) -> AsyncGenerator[R, None]:
        """See `Client.stream`."""
        return self._client.stream(self.name, request, timeout=timeout)

    async def submit(
        self,
        task: Task[R],
        *,
        task_id: str | None = None,
        priority: str | None = None,
        deadline: float | None = None,
        detached: bool = False,
        budget: Budget | None = None,
        idempotency_key: str | None = None,
    ) -> Job[R]:
        """See `Client.submit`."""
        return await self._client.submit(
            task,
            to=self.name,
            task_id=task_id,
            priority=priority,
            deadline=deadline,
            detached=detached,
            budget=budget,
            idempotency_key=idempotency_key,
        )
