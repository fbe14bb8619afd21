"""The streams and consumers of tasks, results, replayable streams, dead letters and durable mailboxes.

Streams are shared by all tenants of an account: the tenant is a token of the subject. Consumers are made per tenant,
agent and priority when a worker starts; a submitter needs none, because a work queue keeps what nobody consumes yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary, WeakSet

from agentmesh.subjects import Subjects
from agentmesh.transport import ConsumerSpec, StreamSpec, Transport

TASKS, RESULTS, STREAMS, DEAD, MAILBOX = "TASKS", "RESULTS", "STREAMS", "DEAD", "MAILBOX"
EVENTS, SCHED, ONCE, ATTEMPTS, BUDGETS = "EVENTS", "SCHED", "ONCE", "ATTEMPTS", "BUDGETS"
"""Made when first needed; those above when an agent, a worker or a submitter starts."""

ACK_WAIT = 10.0
"""Seconds without a sign of life from a worker until its task is given to another one."""

QUEUE_LIMIT = 10_000
"""Tasks that may wait on one subject, that is per agent and priority; more are refused."""

MAILBOX_LIMIT = 1_000
"""Durable events that may wait per agent; more are refused."""

MAX_BODY = 512 * 1024
"""Bytes of a task, a result or a stream's message, headers included; send a reference to what is larger."""

_DAY = 86_400.0
_MB = 1024 * 1024

EVENTS_SPEC = StreamSpec(
    EVENTS,
    ("ai.agent.events.*.*.*",),
    max_age=7 * _DAY,
    max_bytes=64 * _MB,
    max_msg_size=MAX_BODY,
    duplicate_window=600.0,
    description="agentmesh: what happened: crashes, terminations, quarantines, fail-overs",
)

SPECS = (
    StreamSpec(
        TASKS,
        ("ai.agent.tasks.*", "ai.agent.tasks.*.*.*"),
        retention="workqueue",
        discard="new",
        max_msgs_per_subject=QUEUE_LIMIT,
        discard_new_per_subject=True,
        max_bytes=512 * _MB,
        max_msg_size=MAX_BODY,
        duplicate_window=600.0,
        max_consumers=10_000,
        settable=("max_msgs_per_subject",),
        description="agentmesh: tasks that wait or are worked on",
    ),
    StreamSpec(
        RESULTS,
        ("ai.agent.results.*.*",),
        discard="new",  # a full stream makes the queue wait; it must never drop a result
        max_age=7 * _DAY,
        max_bytes=1024 * _MB,
        max_msg_size=MAX_BODY,
        duplicate_window=600.0,
        deny_delete=True,
        deny_purge=True,
        republish=("ai.agent.results.*.*", "ai.agent.results.{{wildcard(1)}}"),
        description="agentmesh: the one result of each task",
    ),
    StreamSpec(
        STREAMS,
        ("ai.stream.*.*",),
        compression="s2",
        max_age=7 * _DAY,
        max_bytes=1024 * _MB,
        max_msgs_per_subject=1_000_000,
        max_msg_size=MAX_BODY,
        allow_msg_ttl=True,
        settable=("max_age", "max_bytes", "max_msgs_per_subject", "compression"),
        # Only what is stored is seen live, with the sequences by which a reader notices that it missed something.
        republish=("ai.stream.*.*", "ai.stream.live.{{wildcard(1)}}.{{wildcard(2)}}"),
        description="agentmesh: replayable streams: progress and chunks of tasks, conversations",
    ),
    StreamSpec(
        DEAD,
        ("ai.agent.dead.*.*",),
        max_age=30 * _DAY,
        max_bytes=256 * _MB,
        max_msg_size=2 * MAX_BODY,  # a task, its reason and its history
        duplicate_window=600.0,
        description="agentmesh: dead letters",
    ),
    StreamSpec(
        MAILBOX,
        ("ai.agent.mailbox.*.*",),
        retention="workqueue",
        discard="new",
        max_msgs_per_subject=MAILBOX_LIMIT,
        discard_new_per_subject=True,
        max_bytes=256 * _MB,
        max_msg_size=MAX_BODY,
        duplicate_window=600.0,
        max_consumers=10_000,
        settable=("max_msgs_per_subject",),
        description="agentmesh: durable mailboxes",
    ),
)

LEASES = StreamSpec(
    "KV_mesh_lease",
    ("$KV.mesh_lease.>",),
    discard="new",
    max_msgs_per_subject=1,
    max_bytes=16 * _MB,
    max_msg_size=16 * 1024,
    allow_msg_ttl=True,  # and no markers in the place of what expired: they would have to be overwritten
    description="agentmesh: who has which lease",
)

LIMITS = StreamSpec(
    "KV_mesh_limit",
    ("$KV.mesh_limit.>",),
    discard="new",
    max_msgs_per_subject=1,
    max_bytes=64 * _MB,
    max_msg_size=MAX_BODY,
    allow_msg_ttl=True,  # what nobody uses any more goes by itself, without a marker in its place
    description="agentmesh: use of concurrency and rate limits",
)


SCHEDULES = StreamSpec(
    SCHED,
    ("ai.agent.sched.*.*", "ai.agent.due.*"),
    # No bounds: the broker takes schedules only where the oldest goes first, and an old definition must not be dropped.
    retention="workqueue",
    max_msg_size=MAX_BODY,
    duplicate_window=600.0,
    allow_msg_ttl=True,
    allow_msg_schedules=True,
    max_consumers=10_000,
    description="agentmesh: delayed and repeating tasks, and those that are due",
)
"""Made at the first use: see `ensure`."""

ONCE_SPEC = StreamSpec(
    ONCE,
    ("ai.agent.once.*.*",),
    discard="new",  # a key that is forgotten early is a promise broken in silence: refuse new ones instead
    max_age=_DAY,
    max_msgs_per_subject=1,
    max_bytes=256 * _MB,
    max_msg_size=MAX_BODY,
    description="agentmesh: what was claimed and decided under idempotency keys",
)

ATTEMPTS_SPEC = StreamSpec(
    ATTEMPTS,
    ("ai.agent.attempts.*.*",),
    max_age=7 * _DAY,
    max_msgs_per_subject=1,
    max_bytes=64 * _MB,
    max_msg_size=4096,
    description="agentmesh: the latest attempt of each task that asked for a fence",
)

BUDGETS_SPEC = StreamSpec(
    BUDGETS,
    ("ai.agent.budget.*.*",),
    max_age=7 * _DAY,
    # Each message has the total so far; a few more than the last, to find the one whose confirmation got lost.
    max_msgs_per_subject=64,
    max_bytes=64 * _MB,
    max_msg_size=4096,
    allow_msg_counter=True,
    description="agentmesh: steps that call trees have taken",
)

ORDERS = StreamSpec(
    "KV_mesh_state",
    ("$KV.mesh_state.>",),
    discard="new",
    max_msgs_per_subject=1,
    max_bytes=64 * _MB,
    max_msg_size=16 * 1024,
    allow_msg_ttl=True,
    description="agentmesh: standing orders: what is paused or quarantined",
)

OPERATIONS = StreamSpec(
    "OPERATIONS",
    ("ai.llmops.operations.*",),
    max_age=90 * _DAY,
    max_bytes=512 * _MB,
    max_msg_size=64 * 1024,
    duplicate_window=600.0,
    description="agentmesh: every call of a language model, without what was asked and answered",
)

ALERTS = StreamSpec(
    "ALERTS",
    ("ai.llmops.cost-alerts.*.*",),
    max_age=90 * _DAY,
    max_msgs_per_subject=1,
    max_bytes=16 * _MB,
    max_msg_size=16 * 1024,
    republish=("ai.llmops.cost-alerts.*.*", "ai.llmops.cost-alerts.{{wildcard(1)}}"),
    description="agentmesh: thresholds of budgets for language models that were reached",
)

CACHE_LOG = StreamSpec(
    "LLMCACHE",
    ("ai.gateway.cache.invalidate.*",),
    max_age=7 * _DAY,  # no answer is kept for longer
    max_bytes=16 * _MB,
    max_msg_size=64 * 1024,
    description="agentmesh: which cached answers must not be given again",
)

_ensured: WeakSet[Transport] = WeakSet()
_ensured_one: WeakKeyDictionary[Transport, set[str]] = WeakKeyDictionary()


_SCHEME = ("scheme", "")


def use_scheme(transport: Transport, subjects: Subjects) -> None:
    """Have the streams of this connection capture what `subjects` names, if that is a scheme of its own."""
    if not subjects.is_standard:
        transport.shared.setdefault(_SCHEME, subjects)


def subjects_on(transport: Transport, tenant: str) -> Subjects:
    """The subjects of a tenant in the scheme of the connection."""
    scheme: Subjects = transport.shared.get(_SCHEME) or Subjects()
    return replace(scheme, tenant=tenant)


def named(transport: Transport, spec: StreamSpec) -> StreamSpec:
    """The stream under the names that this connection uses."""
    scheme: Subjects | None = transport.shared.get(_SCHEME)
    if scheme is None:
        return spec
    again = None if spec.republish is None else (scheme.renamed(spec.republish[0]), scheme.renamed(spec.republish[1]))
    return replace(spec, subjects=tuple(map(scheme.renamed, spec.subjects)), republish=again)


async def ensure_streams(
    transport: Transport, queue_limit: int | None = None, mailbox_limit: int | None = None
) -> None:
    """Make the streams that are missing and check the others; once per connection.

    Args:
        transport: The connection.
        queue_limit: Tasks that may wait per agent and priority, from now on and for everybody: the stream is shared
            by all tenants of the account. None leaves that as it is, or `QUEUE_LIMIT` in a stream that is made.
        mailbox_limit: The same for durable events that may wait per agent; at first `MAILBOX_LIMIT`.
    """
    if transport not in _ensured:
        for spec in SPECS:
            await transport.ensure_stream(named(transport, spec))
        _ensured.add(transport)
    if queue_limit is not None:
        await transport.edit_stream(TASKS, max_msgs_per_subject=queue_limit)
    if mailbox_limit is not None:
        await transport.edit_stream(MAILBOX, max_msgs_per_subject=mailbox_limit)


@dataclass(frozen=True)
class StreamBounds:
    """How long replayable streams are kept; None leaves a bound as it is."""

    max_age: float | None = None
    """Seconds."""
    max_bytes: int | None = None
    """Of all streams together."""
    max_chunks: int | None = None
    """Messages of one stream."""
    compression: bool | None = None

    def changes(self) -> dict[str, int | str]:
        """As the broker names them."""
        changes: dict[str, int | str] = {}
        if self.max_age is not None:
            changes["max_age"] = int(self.max_age * 1e9)
            changes["duplicate_window"] = int(min(self.max_age, 120.0) * 1e9)  # the broker wants it so
        if self.max_bytes is not None:
            changes["max_bytes"] = self.max_bytes
        if self.max_chunks is not None:
            changes["max_msgs_per_subject"] = self.max_chunks
        if self.compression is not None:
            changes["compression"] = "s2" if self.compression else "none"
        return changes


async def bound_streams(transport: Transport, bounds: StreamBounds) -> None:
    """Set how long replayable streams are kept, from now on and for everybody. One that an older version made gets what
    it lacks."""
    await ensure_streams(transport)
    await transport.edit_stream(STREAMS, allow_msg_ttl=True, **bounds.changes())


async def ensure(transport: Transport, spec: StreamSpec) -> None:
    """Make a stream that is not needed by everybody, or check it; once per connection."""
    done = _ensured_one.setdefault(transport, set())
    if spec.name not in done:
        await transport.ensure_stream(named(transport, spec))
        done.add(spec.name)


def task_consumer(subjects: Subjects, agent: str, priority: str, ack_wait: float = ACK_WAIT) -> ConsumerSpec:
    """The consumer that all workers of an agent share, for one priority.

    No `max_deliver`: what the broker gives up stays in a work queue for ever, so we count and bury ourselves. No
    `max_ack_pending`: a task that waits for its next attempt counts there, and must not hold up the others.
    """
    return ConsumerSpec(
        TASKS,
        subjects.task_consumer(agent, priority),
        (subjects.tasks(agent, priority),),
        ack_wait=ack_wait,
        max_ack_pending=0,
        max_waiting=2048,
    )


def dispatch_consumer(subjects: Subjects, ack_wait: float = ACK_WAIT) -> ConsumerSpec:
    """The consumer of the tenant's door."""
    return ConsumerSpec(
        TASKS, subjects.dispatch_consumer(), (subjects.task_door(),), ack_wait=ack_wait, max_ack_pending=0
    )


def due_consumer(subjects: Subjects, ack_wait: float = ACK_WAIT) -> ConsumerSpec:
    """The consumer of what the tenant's schedules fired."""
    return ConsumerSpec(SCHED, subjects.due_consumer(), (subjects.due(),), ack_wait=ack_wait, max_ack_pending=0)


def mailbox_consumer(subjects: Subjects, agent: str, ack_wait: float = ACK_WAIT) -> ConsumerSpec:
    """The consumer of an agent's durable mailbox: one message out at a time, so they are handled in order."""
    return ConsumerSpec(
        MAILBOX,
        subjects.mailbox_consumer(agent),
        (subjects.durable_mailbox(agent),),
        ack_wait=ack_wait,
        max_ack_pending=1,
    )
