"""The dispatcher: tasks sent to the door `ai.agent.tasks.T` find their agent's queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from agentmesh.errors import AgentMeshError, InvalidMessageError, InvalidNameError, StreamFullError
from agentmesh.registry import near_misses
from agentmesh.subjects import Subjects, token
from agentmesh.tasks import dead, wire
from agentmesh.tasks.layout import ACK_WAIT, dispatch_consumer, ensure_streams
from agentmesh.tasks.serving import RETRY_DELAY, Serving
from agentmesh.tasks.wire import TaskBody, decode_task, encode
from agentmesh.trace import HEADERS
from agentmesh.transport import Delivery, Transport

log = logging.getLogger("agentmesh.tasks")

PATIENCE = 30
"""Looks until it becomes a dead letter: about half a minute."""

REMEMBERED = 1.0
"""Seconds that the agents found for a type are remembered."""

Locate = Callable[[str], Awaitable[list[str]]]


class Dispatcher:
    """Routes the tasks of a tenant's door: to `agent_id` if they name one, else to an agent that takes their type.

    Any number may run at the same time: a task is routed by one of them, and its copy stored once. If a dispatcher
    dies in between, the next one routes the task again under the same id.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        locate: Names of the agents that take a type of task now; the first is chosen.
        known: All types of task that are taken now, to name near misses in a dead letter.
        ack_wait: Seconds after which the broker gives a task to another dispatcher.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        locate: Locate,
        *,
        known: Callable[[], Awaitable[Iterable[str]]] | None = None,
        ack_wait: float = ACK_WAIT,
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._locate = locate
        self._known = known
        self._ack_wait = ack_wait
        self._serving: Serving | None = None
        self._found: dict[str, tuple[float, str]] = {}

    async def start(self) -> None:
        """Begin to route."""
        await ensure_streams(self._transport)
        spec = dispatch_consumer(self._subjects, self._ack_wait)
        await self._transport.ensure_consumer(spec)
        self._serving = Serving(self._transport, spec, self._dispatch_all, "dispatcher")
        await self._serving.start()

    async def stop(self) -> None:
        """Stop; what is on its way is routed by the next dispatcher."""
        if self._serving is not None:
            await self._serving.stop()

    async def _dispatch_all(self, waiting: list[Delivery]) -> None:
        await asyncio.gather(*(self._dispatch(delivery) for delivery in waiting))

    async def _dispatch(self, delivery: Delivery) -> None:
        """The way of one task through the door."""
        try:
            body = decode_task(delivery.data)
            task_id = token("task id", body.task_id or f"door-{delivery.sequence}")
            agent = body.agent_id or await self._agent_for(body.task_type)
            if agent:
                await self._route(delivery, body, task_id, token("agent", agent))
            elif delivery.attempt < PATIENCE:
                await self._transport.nak(delivery, RETRY_DELAY)
            else:
                reason = await self._nobody(body.task_type)
                await self._bury(delivery, reason, task_id, body.task_type)
        except (InvalidMessageError, InvalidNameError) as error:
            await self._bury(delivery, str(error), wire.peek_id(delivery.data))
        except StreamFullError:
            await self._transport.nak(delivery, RETRY_DELAY)  # the agent's queue is full: ours waits
        except AgentMeshError as error:
            log.warning("a task stays at the door for now: %s", error)

    async def _route(self, delivery: Delivery, body: TaskBody, task_id: str, agent: str) -> None:
        """Store the copy, then take the original off the door. All fields of the sender's document are kept."""
        document = msgspec.json.decode(delivery.data, type=dict[str, msgspec.Raw])
        document["task_id"] = msgspec.Raw(encode(task_id))
        document["agent_id"] = msgspec.Raw(encode(agent))
        await self._transport.publish_durable(
            self._subjects.tasks(agent, body.lane()),
            encode(document),
            msg_id=f"{self._subjects.tenant}.{task_id}/{delivery.sequence}",
            headers={name: value for name, value in (delivery.headers or {}).items() if name.lower() in HEADERS},
        )
        await self._transport.ack(delivery)

    async def _agent_for(self, task_type: str) -> str:
        """An agent that takes the type, empty if there is none now."""
        time = asyncio.get_running_loop().time()
        known_until, agent = self._found.get(task_type, (0.0, ""))
        if time < known_until:
            return agent
        agents = await self._locate(task_type)
        if not agents:
            return ""
        if len(self._found) > 1000:
            self._found.clear()
        self._found[task_type] = (time + REMEMBERED, min(agents))
        return min(agents)

    async def _nobody(self, task_type: str) -> str:
        near = near_misses(task_type, await self._known()) if self._known is not None else []
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see: agentmesh agents ls"
        return f"no running agent takes tasks of type {task_type!r}{hint}"

    async def _bury(self, delivery: Delivery, reason: str, task_id: str, task_type: str = "") -> None:
        log.error("a task at the door is a dead letter: %s", reason)
        await dead.bury(self._transport, self._subjects, delivery, reason, task_id=task_id, task_type=task_type)
