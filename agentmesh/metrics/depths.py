"""What waits at the broker: asked once for a whole mesh, by whoever wants to know, and not by each process."""

from __future__ import annotations

from agentmesh.errors import BrokerError
from agentmesh.metrics.family import Family
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import MAILBOX, TASKS
from agentmesh.transport import Transport

MOST_QUEUES = 200
"""Queues whose lag is asked for, one question each."""


async def depth_families(transport: Transport, subjects: Subjects) -> list[Family]:
    """Depths of queues, durable mailboxes and streams; what this user may not ask for is left out."""
    families: list[Family] = []
    for ask in (_queues, _mailboxes, _streams):
        try:
            families += await ask(transport, subjects)
        except BrokerError:
            continue
    return families


async def _queues(transport: Transport, subjects: Subjects) -> list[Family]:
    depth = Family("agentmesh_task_queue_messages", "gauge", "Tasks in a queue, those being worked on included.")
    lag = Family("agentmesh_task_queue_lag", "gauge", "Tasks that no worker has been given yet.")
    out = Family(
        "agentmesh_task_queue_unsettled", "gauge", "Tasks that workers have, or that wait for another attempt."
    )
    if await transport.stream_info(TASKS) is None:
        return []
    pattern, door = subjects.all_tasks()
    counts = await transport.subjects_of(TASKS, pattern)
    for number, (subject, count) in enumerate(sorted(counts.items())):
        agent, priority = subject.split(".")[-2:]
        depth.add(count, agent=agent, priority=priority)
        if number < MOST_QUEUES:
            info = await transport.consumer_info(TASKS, subjects.task_consumer(agent, priority))
            lag.add(count if info is None else info.pending, agent=agent, priority=priority)
            out.add(0 if info is None else info.ack_pending, agent=agent, priority=priority)
    undispatched = (await transport.subjects_of(TASKS, door)).get(door, 0)
    depth.add(undispatched, agent="", priority="")
    return [depth, lag, out]


async def _mailboxes(transport: Transport, subjects: Subjects) -> list[Family]:
    family = Family("agentmesh_durable_mailbox_messages", "gauge", "Durable events that wait for an agent.")
    if await transport.stream_info(MAILBOX) is None:
        return []
    for subject, count in sorted((await transport.subjects_of(MAILBOX, subjects.all_durable_mailboxes())).items()):
        family.add(count, agent=subject.rpartition(".")[2])
    return [family]


async def _streams(transport: Transport, subjects: Subjects) -> list[Family]:
    messages = Family("agentmesh_stream_messages", "gauge", "Messages in a stream, of all tenants of the account.")
    size = Family("agentmesh_stream_bytes", "gauge", "Bytes of a stream.")
    limit = Family("agentmesh_stream_max_bytes", "gauge", "Bytes a stream may have; without a bound, none is said.")
    consumers = Family("agentmesh_stream_consumers", "gauge", "Consumers of a stream.")
    for info in await transport.streams():
        messages.add(info.messages, stream=info.name)
        size.add(info.bytes, stream=info.name)
        consumers.add(info.consumers, stream=info.name)
        if (most := int(info.config.get("max_bytes", -1))) > 0:
            limit.add(most, stream=info.name)
    return [messages, size, limit, consumers]
