"""The whole subject grammar. No other module puts a subject or a queue group together.

`T` tenant, `A` agent, `P` priority. Every name that goes into a subject is checked here, once, by `token`.
RPC subjects and stream subjects never overlap: a stream that captures an RPC subject answers the request itself.

| subject                                | what                                                          | stream  |
| -------------------------------------- | ------------------------------------------------------------- | ------- |
| ai.agent.message.T.A                   | mailbox of an agent; queue group `agent.A`                     |         |
| ai.agent.message.T                     | door: the target is in the header or body; forwarded           |         |
| ai.agent.topic.T.<topic>               | publish/subscribe                                              |         |
| ai.agent.mailbox.T.A                   | durable mailbox                                                | MAILBOX |
| ai.agent.tasks.T                       | door: tasks as plain JSON; dispatched                          | TASKS   |
| ai.agent.tasks.T.A.P                   | queue of an agent, per priority                                | TASKS   |
| ai.agent.sched.T.<schedule_id>         | delayed and repeating tasks: definitions, fired by the broker  | SCHED   |
| ai.agent.due.T                         | … and what they fire; moved into the queues                    | SCHED   |
| ai.agent.results.T.<task_id>           | result slot; republished to ai.agent.results.T                 | RESULTS |
| ai.agent.dead.T.<task_id>              | dead letters                                                   | DEAD    |
| ai.agent.once.T.<digest>               | what was claimed and decided under an idempotency key          | ONCE    |
| ai.agent.attempts.T.<task_id>          | attempts that asked for a fence                                | ATTEMPTS |
| ai.agent.budget.T.<tree_id>            | counter of the steps of a call tree                            | BUDGETS |
| ai.stream.T.<stream_id>                | progress, chunks; republished to ai.stream.live.T.<stream_id>  | STREAMS |
| ai.agent.cursors.T.<group>.<stream_id> | where a named reader of a stream is                          | CURSORS |
| ai.agent.events.T.<kind>.<name>        | what happened: crashes, terminations, quarantines              | EVENTS  |
| ai.agent.control.T.<what>              | control: prompts, never trusted alone                          |         |
| $KV.mesh_state.T.<kind>.<name>         | standing orders (stream `KV_mesh_state`): pauses, quarantines   | KV      |
| $KV.mesh_lease.T.<name>                | who has a lease (stream `KV_mesh_lease`); ends by its TTL       | KV      |
| $KV.mesh_limit.T.<limit>.<key>         | use of a limit (stream `KV_mesh_limit`)                         | KV      |
| ai.agent.memory.T[.<op>]               | memory service                                                 |         |
| ai.agent.tools.T[.<tool>]              | tool executors                                                 |         |
| svc.ai.llm.v1.infer                    | door to the LLM gateway: protobuf, or JSON of the same shape    |         |
| svc.ai.llm.v1.infer.T                  | … of a tenant                                                   |         |
| ai.gateway.requests.T                  | door to the LLM gateway: JSON; one answer, or a job             |         |
| ai.gateway.responses.T                 | copies of the answers, off unless asked for                     |         |
| ai.gateway.rate-limit.T                | a limit of the LLM gateway was reached                          |         |
| ai.gateway.cache.invalidate.T          | answers that must not be given again; to every replica          | LLMCACHE |
| ai.llmops.operations.T               | every call of a language model                                  | OPERATIONS |
| ai.llmops.cost-alerts.T.<alert_id>     | threshold of a budget; republished to ai.llmops.cost-alerts.T  | ALERTS  |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from agentmesh.errors import InvalidNameError

_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TOPIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(\.[A-Za-z0-9][A-Za-z0-9_-]{0,63}){0,7}")
_TOPIC_PATTERN = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9_-]{0,63}|\*)(?:\.(?:[A-Za-z0-9][A-Za-z0-9_-]{0,63}|\*)){0,7}(?:\.>)?|>"
)

PRIORITIES = ("high", "normal", "low")


def token(kind: str, value: str) -> str:
    """`value` if it is safe in a subject. `kind` says what it names, for the error.

    Raises:
        InvalidNameError: It is not; nothing was sent. `fullmatch`, because `$` lets a trailing newline through.
    """
    if not isinstance(value, str) or _TOKEN.fullmatch(value) is None:
        raise InvalidNameError(kind, str(value))
    return value


def may_overlap(one: str, other: str) -> bool:
    """Whether a message can be on both subjects, each of which may have wildcards."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def deliveries_exceeded(stream: str) -> str:
    """Where the broker says that a consumer of the stream will not deliver a message again."""
    return f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.*"


MEMORY_OF_EVERY_TENANT = ("ai.agent.memory.*.*", "ai.agent.memory.*")
"""What a memory service for a whole broker account subscribes to, instead of `memory` and `memory_door` of a tenant."""


METRICS_OF_EVERY_TENANT = "ai.agent.control.*.metrics"
"""Where such a service is asked for its metrics."""


def memory_tenant(subject: str) -> str:
    """Whose memory a subject of `MEMORY_OF_EVERY_TENANT` is about."""
    return token("tenant", subject.split(".")[3])


@dataclass(frozen=True)
class Subjects:
    """Subjects and queue groups of one tenant. Subclass it and pass it to `connect` to use a scheme of your own.

        class Ours(Subjects):
            def name(self, component: str, operation: str, tenant: str) -> str:
                return f"custom.{component}.{operation}.{tenant}"

            def mailbox_group(self, agent: str) -> str:
                return f"custom.{agent}.group"

    Streams capture what the scheme names, so a broker account holds streams of one scheme only; another one is refused
    with an error.
    """

    tenant: str = "default"

    def __post_init__(self) -> None:
        token("tenant", self.tenant)

    def name(self, component: str, operation: str, tenant: str) -> str:
        """`ai.{component}.{operation}.{tenant}`, what every subject of the tenant starts with; may be overridden.

        The tenant is one token and stands before whatever is added behind; streams ask for it with `*` in its place.
        """
        if component == "stream":
            return f"ai.stream.{tenant}" if operation == "log" else f"ai.stream.{operation}.{tenant}"
        return f"ai.{component}.{operation}.{tenant}"

    def at(self, component: str, operation: str) -> str:
        """What the subjects of one operation of this tenant start with."""
        return self.name(component, operation, self.tenant)

    @cached_property
    def _mailboxes(self) -> str:
        return f"{self.at('agent', 'message')}."  # made once: every tell and ask needs it

    def renamed(self, standard: str) -> str:
        """A pattern of the standard scheme in this one: `ai.agent.tasks.*.*.*` -> `custom.agent.tasks.*.*.*`."""
        tokens = standard.split(".")
        if tokens[0] != "ai":
            return standard
        if tokens[1:3] == ["gateway", "cache"]:  # the one operation of two tokens
            tokens[2:4] = [".".join(tokens[2:4])]
        logged = tokens[1] == "stream" and tokens[2] != "live"
        operation, (tenant, *rest) = ("log", tokens[2:]) if logged else (tokens[2], tokens[3:])
        return ".".join((self.name(tokens[1], operation, tenant), *rest))

    @property
    def is_standard(self) -> bool:
        """Whether subjects are named as the table above says."""
        return type(self).name is Subjects.name

    # -- events and requests
    def mailbox(self, agent: str) -> str:
        return f"{self._mailboxes}{token('agent', agent)}"

    def mailbox_group(self, agent: str) -> str:
        return f"agent.{token('agent', agent)}"

    def message_door(self) -> str:
        return self.at("agent", "message")

    def topic(self, topic: str) -> str:
        if not isinstance(topic, str) or _TOPIC.fullmatch(topic) is None:
            raise InvalidNameError("topic", str(topic))
        return f"{self.at('agent', 'topic')}.{topic}"

    def topic_pattern(self, pattern: str) -> str:
        """Like `topic`, and `*` (one token) and a final `>` (the rest) are allowed: for subscribing only."""
        if not isinstance(pattern, str) or _TOPIC_PATTERN.fullmatch(pattern) is None:
            raise InvalidNameError("topic pattern", str(pattern))
        return f"{self.at('agent', 'topic')}.{pattern}"

    def topic_matches(self, pattern: str, subject: str) -> bool:
        """Whether what was published on `subject` is what `topic_pattern(pattern)` subscribes to."""
        wanted, got = self.topic_pattern(pattern).split("."), subject.split(".")
        if wanted[-1] == ">":
            if len(got) < len(wanted):
                return False
            wanted, got = wanted[:-1], got[: len(wanted) - 1]
        return len(wanted) == len(got) and all(w in ("*", g) for w, g in zip(wanted, got, strict=True))

    def durable_mailbox(self, agent: str) -> str:
        return f"{self.at('agent', 'mailbox')}.{token('agent', agent)}"

    def all_durable_mailboxes(self) -> str:
        """For reading only."""
        return f"{self.at('agent', 'mailbox')}.*"

    # -- tasks
    def task_door(self) -> str:
        return self.at("agent", "tasks")

    def tasks(self, agent: str, priority: str) -> str:
        if priority not in PRIORITIES:
            raise InvalidNameError("priority", str(priority))
        return f"{self.at('agent', 'tasks')}.{token('agent', agent)}.{priority}"

    def all_tasks(self) -> tuple[str, str]:
        """Where tasks of the tenant wait: the queues of all agents, and the door."""
        return f"{self.at('agent', 'tasks')}.*.*", self.task_door()

    def schedule(self, schedule_id: str) -> str:
        return f"{self.at('agent', 'sched')}.{token('schedule id', schedule_id)}"

    def all_schedules(self) -> str:
        return f"{self.at('agent', 'sched')}.*"

    def due(self) -> str:
        """Where the schedules of the tenant fire."""
        return self.at("agent", "due")

    def result(self, task_id: str) -> str:
        return f"{self.at('agent', 'results')}.{token('task id', task_id)}"

    def results(self) -> str:
        """Where every stored result of the tenant is republished, with its own subject in `Nats-Subject`."""
        return self.at("agent", "results")

    def all_results(self) -> str:
        return f"{self.at('agent', 'results')}.*"

    def dead(self, task_id: str) -> str:
        return f"{self.at('agent', 'dead')}.{token('task id', task_id)}"

    def all_dead(self) -> str:
        return f"{self.at('agent', 'dead')}.*"

    # -- what happened
    def happening(self, kind: str, name: str) -> str:
        return f"{self.at('agent', 'events')}.{token('kind', kind)}.{token('name', name)}"

    def happenings(self, kind: str = "", name: str = "") -> str:
        """For reading and subscribing: all, or those of one kind, of one name, or both."""
        chosen = (token("kind", kind) if kind else "*", token("name", name) if name else "*")
        return f"{self.at('agent', 'events')}.{chosen[0]}.{chosen[1]}"

    # -- call trees and idempotency
    def once(self, digest: str) -> str:
        return f"{self.at('agent', 'once')}.{token('key digest', digest)}"

    def attempts(self, task_id: str) -> str:
        return f"{self.at('agent', 'attempts')}.{token('task id', task_id)}"

    def budget(self, tree_id: str) -> str:
        return f"{self.at('agent', 'budget')}.{token('call tree', tree_id)}"

    # -- replayable streams
    def stream(self, stream_id: str) -> str:
        return f"{self.at('stream', 'log')}.{token('stream id', stream_id)}"

    def live_stream(self, stream_id: str) -> str:
        """Where stored messages of the stream are republished, with `Nats-Sequence` and `Nats-Last-Sequence`."""
        return f"{self.at('stream', 'live')}.{token('stream id', stream_id)}"

    def all_streams(self) -> str:
        return f"{self.at('stream', 'log')}.*"

    def stream_cursor(self, group: str, stream_id: str) -> str:
        """Where the position of a named reader is kept."""
        return f"{self.at('agent', 'cursors')}.{token('group', group)}.{token('stream id', stream_id)}"

    def stream_control(self, stream_id: str) -> str:
        """Prompts for the producers of a stream."""
        return f"{self.at('agent', 'control')}.stream.{token('stream id', stream_id)}"

    def stream_controls(self) -> str:
        """Those of all streams: for subscribing only."""
        return f"{self.at('agent', 'control')}.stream.*"

    # -- control
    def control(self, what: str) -> str:
        return f"{self.at('agent', 'control')}.{token('control', what)}"

    def node_control(self, node: str) -> str:
        return f"{self.at('agent', 'control')}.node.{token('node', node)}"

    # -- standing orders
    def order(self, kind: str, name: str) -> str:
        return f"$KV.mesh_state.{self.tenant}.{token('kind', kind)}.{token('name', name)}"

    def orders(self, kind: str = "*") -> str:
        """For reading: all, or those of one kind."""
        return f"$KV.mesh_state.{self.tenant}.{kind if kind == '*' else token('kind', kind)}.*"

    # -- leases
    def lease(self, name: str) -> str:
        return f"$KV.mesh_lease.{self.tenant}.{token('lease', name)}"

    def all_leases(self) -> str:
        return f"$KV.mesh_lease.{self.tenant}.*"

    # -- limits
    def limit(self, path: str) -> str:
        """Where the use of a limit is kept: `path` is the four tokens of its scope, owner, kind and key."""
        parts = path.split(".")
        if len(parts) != 4:
            raise InvalidNameError("limit", path)
        return ".".join(("$KV.mesh_limit", self.tenant, *(token("limit", part) for part in parts)))

    def all_limits(self) -> str:
        return f"$KV.mesh_limit.{self.tenant}.*.*.*.*"

    def limit_clock(self) -> str:
        return f"$KV.mesh_limit.{self.tenant}.clock"

    # -- services
    def memory(self, op: str) -> str:
        return f"{self.at('agent', 'memory')}.{token('memory operation', op)}"

    def memory_pattern(self) -> str:
        """Every operation: for subscribing only."""
        return f"{self.at('agent', 'memory')}.*"

    def memory_door(self) -> str:
        return self.at("agent", "memory")

    def tool(self, tool: str) -> str:
        return f"{self.at('agent', 'tools')}.{token('tool', tool)}"

    def tool_door(self) -> str:
        return self.at("agent", "tools")

    def tool_group(self) -> str:
        return "tool.executors"

    # -- doors to the LLM gateway
    def infer(self) -> str:
        """The door of the seeds, which names no tenant: in an account of several tenants one of them serves it."""
        return "svc.ai.llm.v1.infer"

    def tenant_infer(self) -> str:
        """The same door, of this tenant."""
        return f"svc.ai.llm.v1.infer.{self.tenant}"

    def infer_group(self) -> str:
        return "q.ai.llm.infer"

    def gateway_requests(self) -> str:
        return self.at("gateway", "requests")

    def gateway_group(self) -> str:
        return "gateway.workers"

    def gateway_responses(self) -> str:
        return self.at("gateway", "responses")

    def rate_limits(self) -> str:
        """Where reached limits are told."""
        return self.at("gateway", "rate-limit")

    def cache_invalidations(self) -> str:
        return self.at("gateway", "cache.invalidate")

    # -- operations of language models
    def operations(self) -> str:
        return self.at("llmops", "operations")

    def cost_alert(self, alert_id: str) -> str:
        return f"{self.at('llmops', 'cost-alerts')}.{token('cost alert', alert_id)}"

    def cost_alerts(self) -> str:
        """Where every stored alert of the tenant is republished."""
        return self.at("llmops", "cost-alerts")

    def all_cost_alerts(self) -> str:
        return f"{self.at('llmops', 'cost-alerts')}.*"

    # -- consumer names ('~' is not in the token alphabet, so joined names never collide)
    def task_consumer(self, agent: str, priority: str) -> str:
        if priority not in PRIORITIES:
            raise InvalidNameError("priority", str(priority))
        return f"{self.tenant}~{token('agent', agent)}~{priority}"

    def dispatch_consumer(self) -> str:
        return f"{self.tenant}~dispatch"

    def due_consumer(self) -> str:
        return f"{self.tenant}~due"

    def mailbox_consumer(self, agent: str) -> str:
        return f"{self.tenant}~{token('agent', agent)}"
