"""How tasks end, for those who read what a task tells as a stream of chunks."""

from __future__ import annotations

from agentmesh.streams.care import Ending
from agentmesh.streams.chunk import CANCELLED, ERROR, FINISH
from agentmesh.subjects import Subjects
from agentmesh.tasks import slot
from agentmesh.tasks.watch import Results
from agentmesh.tasks.wire import ResultBody
from agentmesh.transport import Transport


class TaskEndings:
    """See the module.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        results: Of the tenant.
    """

    def __init__(self, transport: Transport, subjects: Subjects, results: Results) -> None:
        self._transport = transport
        self._subjects = subjects
        self._results = results

    async def now(self, task_id: str) -> Ending | None:
        body = await slot.read(self._transport, self._subjects, task_id)
        return None if body is None else _ending(body)

    async def wait(self, task_id: str) -> Ending:
        return _ending(await self._results.wait(self._results.watch(task_id)))


def _ending(body: ResultBody) -> Ending:
    if body.status == "completed":
        return Ending(FINISH)
    if body.status == "cancelled":
        return Ending(CANCELLED, body.reason or "cancelled")
    return Ending(ERROR, body.reason or f"the task was decided {body.status!r}")
