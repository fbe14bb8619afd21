"""Every exception of agentmesh, in one tree.

    AgentMeshError
    ├── UsageError                      what was typed on the command line cannot be done
    ├── ConfigError                     a setting is wrong: names the key, the value and what was expected
    ├── DefinitionError                 an Agent, message or tool class is declared wrongly
    ├── InvalidNameError                a tenant, agent, task, tool … name is not a safe subject token
    │   └── InvalidSubjectError         a whole subject is malformed
    ├── InvalidMessageError             bytes or fields that are not the message they claim to be
    ├── MissingExtraError               an optional dependency is not installed
    ├── HttpError                       an HTTP request is refused, with its status and code
    ├── BrokerError                     the broker, or the way to it
    │   ├── BrokerUnavailableError
    │   ├── BrokerTooOldError
    │   ├── BrokerStartError
    │   ├── ConnectionLostError
    │   │   ├── ConnectionClosedError   … by ourselves: nothing will work any more
    │   │   └── NatsConnectionError     … said by `mesh.nats`: also a built-in ConnectionError
    │   ├── PermissionDeniedError
    │   ├── PayloadTooLargeError
    │   ├── PublishTimeoutError         a durable write was not confirmed: its fate is unknown
    │   ├── StreamFullError             the stream or queue refuses more
    │   ├── SequenceConflictError       somebody else wrote first (compare-and-set)
    │   ├── NoStreamError               nothing keeps what is published there
    │   ├── CapturedSubjectError        a stream answered a request itself
    │   ├── BatchPublishError           some of many were not published
    │   ├── ConsumerGoneError           the consumer a worker pulls from was deleted
    │   ├── JetStreamUnavailableError   a restart or an election: worth trying again
    │   └── JetStreamError              any other refusal by JetStream, with its code
    ├── BudgetExceededError             a call tree used up what it was given
    ├── IdempotencyConflictError        the same idempotency key for something else
    ├── CircuitOpenError                what is behind failed again and again: not tried for a while
    ├── DeliveryError                   an event or a request
    │   ├── NoRespondersError           nobody listens on the subject
    │   ├── NoSuchAgentError
    │   ├── NoHandlerError
    │   ├── MailboxFullError
    │   ├── AgentStoppedError
    │   ├── AgentPausedError            … by somebody; nothing was done
    │   ├── QuarantinedError            messages like this one ended the agent again and again
    │   ├── DeadlineExceededError
    │   │   └── NatsTimeoutError        … said by `mesh.nats`: also a built-in TimeoutError
    │   ├── StreamIdleError
    │   ├── StreamGapError
    │   ├── RunEndedError               a producer's run is over; nothing more of it is stored
    │   │   ├── RunReplacedError        … somebody else goes on with it
    │   │   └── RunCancelledError       … a reader wanted it to stop
    │   ├── CallDepthError
    │   ├── AskerGoneError
    │   ├── KeyInUseError               somebody else is at it, under the same idempotency key
    │   └── RemoteError                 the handler at the other end raised
    ├── TaskError                       a task
    │   ├── QueueFullError
    │   ├── NoSuchTaskError
    │   ├── TaskFailedError
    │   ├── TaskDeadError
    │   ├── TaskCancelledError
    │   ├── TaskExpiredError
    │   ├── AttemptReplacedError        this attempt is not the task's latest any more
    │   ├── BatchFailedError
    │   ├── ScheduleError               a delayed or repeating task
    │   │   ├── InvalidScheduleError    a cron expression, interval, time or time zone that cannot be
    │   │   ├── DuplicateScheduleError
    │   │   └── NoSuchScheduleError
    │   └── WorkflowError               decided for good: running the workflow again comes to the same
    │       ├── StepFailedError
    │       ├── DuplicateStepError      two steps of one name
    │       ├── NestedStepError
    │       ├── WorkflowChangedError    the code is not what the recorded steps were made by
    │       ├── WorkflowTooOldError
    │       ├── WorkflowEndedError      decided from outside: only what is to be undone is still done
    │       ├── RaceFailedError
    │       ├── SignalTimeoutError
    │       ├── SagaUndoneError
    │       └── SagaNotUndoneError
    ├── LedgerError                     the submitter's own record of what it submitted
    ├── ToolError                       a tool call
    │   ├── NoSuchToolError
    │   ├── ToolArgumentsError
    │   ├── ToolNotAllowedError         … for this caller; nothing was run
    │   ├── ToolBusyError
    │   ├── ToolFailedError
    │   ├── ToolTimeoutError
    │   ├── ToolLimitError
    │   ├── ToolOutcomeUnknownError     begun under an idempotency key, and cut off in the middle
    │   └── ToolCancelledError
    ├── StoreError                      the memory service
    │   ├── RevisionConflictError
    │   ├── StoreLimitError             a key, value, query … is larger than the store takes
    │   ├── StoreBusyError              too many operations wait; nothing was done
    │   ├── StoreUnavailableError       no memory service answers
    │   ├── StoreLockedError            another process has the file open
    │   └── StoreVersionError           the file was written by a newer agentmesh
    ├── ModelError                      a language model, or the way to it; its code says what kind
    ├── SupervisionError                a process or agent tree
    │   ├── RestartIntensityError
    │   └── AlreadyRunningError
    ├── Retry, Reject                   raised by task handlers to decide what happens to the task
    └── Finish                          raised by event handlers: the agent is done

Errors hold plain fields only, so they survive pickling and travel over the wire
(`error_to_wire`, `error_from_wire`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class AgentMeshError(Exception):
    """Base of everything agentmesh raises on purpose."""


class UsageError(AgentMeshError):
    """What was typed on the command line cannot be done; nothing was."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class ConfigError(AgentMeshError):
    """A setting is wrong; nothing was started with it."""

    def __init__(self, key: str, problem: str, source: str = "") -> None:
        super().__init__(key, problem, source)
        self.key = key
        self.problem = problem
        self.source = source

    def __str__(self) -> str:
        return f"{self.source + ': ' if self.source else ''}{self.key}: {self.problem}"


class DefinitionError(AgentMeshError):
    """An Agent, message or tool is declared in a way that cannot work; raised when the class is made."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(where, problem)
        self.where = where
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class InvalidNameError(AgentMeshError):
    """A name that would not be a safe subject token; nothing was sent."""

    def __init__(self, kind: str, value: str) -> None:
        super().__init__(kind, value)
        self.kind = kind
        self.value = value

    def __str__(self) -> str:
        shown = repr(self.value if len(self.value) <= 80 else self.value[:77] + "...")
        return (
            f"{self.kind} {shown} is not allowed: use 1 to 64 letters, digits, '_' or '-', "
            "starting with a letter or digit"
        )


class InvalidSubjectError(InvalidNameError):
    """A subject with wildcards, empty tokens, spaces or control characters, or over 512 bytes; nothing was sent."""

    def __init__(self, value: str) -> None:
        AgentMeshError.__init__(self, value)
        self.kind = "subject"
        self.value = value

    def __str__(self) -> str:
        shown = repr(self.value if len(self.value) <= 80 else self.value[:77] + "...")
        return (
            f"cannot send to {shown}: a subject is up to 512 printable ASCII characters, tokens separated by '.', "
            "without '*', '>' and spaces"
        )


class InvalidMessageError(AgentMeshError):
    """Bytes or fields that are not the message they claim to be."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class MissingExtraError(AgentMeshError):
    """An optional dependency is needed and not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(module, extra)
        self.module = module
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.module} is not installed; run: pip install {self.module} (part of agentmesh-nats[{self.extra}])"


class HttpError(AgentMeshError):
    """An HTTP request is refused. The gateway answers it with this status, code, text and these headers."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, code, message, dict(details or {}), dict(headers or {}))
        self.status = status
        self.code = code
        """One of `agentmesh.gateway.ErrorCode`."""
        self.message = message
        self.details = dict(details or {})
        """Plain data for programs."""
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return self.message


# ---------------------------------------------------------------- broker


class BrokerError(AgentMeshError):
    """The broker, or the way to it."""


class BrokerUnavailableError(BrokerError):
    """No connection to the broker could be made in time."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(url, problem)
        self.url = url
        self.problem = problem

    def __str__(self) -> str:
        return f"cannot reach the broker at {self.url}: {self.problem}; is it running? (agentmesh up, or --nats URL)"


class BrokerTooOldError(BrokerError):
    """The broker lacks features agentmesh needs."""

    def __init__(self, version: str, required: str) -> None:
        super().__init__(version, required)
        self.version = version
        self.required = required

    def __str__(self) -> str:
        return f"nats-server {self.version} is too old: agentmesh needs {self.required} or newer"


class BrokerStartError(BrokerError):
    """The embedded broker did not start."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the embedded broker did not start: {self.problem}"


class ConnectionLostError(BrokerError):
    """The connection is closed or was lost while an operation was under way."""

    def __init__(self, problem: str = "the connection to the broker is closed") -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class ConnectionClosedError(ConnectionLostError):
    """We closed the connection ourselves; trying again is of no use."""


class NatsConnectionError(ConnectionLostError, ConnectionError):
    """What `mesh.nats` raises without a connection; code that catches the built-in `ConnectionError` catches it."""


class PermissionDeniedError(BrokerError):
    """The broker does not let this user publish or subscribe there."""

    def __init__(self, operation: str, subject: str) -> None:
        super().__init__(operation, subject)
        self.operation = operation
        self.subject = subject

    def __str__(self) -> str:
        return f"the broker denies {self.operation} on {self.subject!r} to this user"


class PayloadTooLargeError(BrokerError):
    """The message is larger than the broker takes; nothing was sent."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"message of {self.size} bytes is over the limit of {self.limit}; send a reference (path, URL, key) instead"
        )


class PublishTimeoutError(BrokerError):
    """A durable write was not confirmed in time: it may or may not be stored. Repeating it with the same id is safe."""

    def __init__(self, subject: str, timeout: float) -> None:
        super().__init__(subject, timeout)
        self.subject = subject
        self.timeout = timeout

    def __str__(self) -> str:
        return (
            f"no confirmation for {self.subject!r} within {self.timeout:g} s; "
            "its fate is unknown, repeat it with the same id"
        )


class StreamFullError(BrokerError):
    """The stream refuses more messages on this subject; nothing was stored."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(subject, problem)
        self.subject = subject
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.subject!r} takes no more messages: {self.problem}"


class SequenceConflictError(BrokerError):
    """A compare-and-set write lost: the subject already has a newer message."""

    def __init__(self, subject: str, expected: int, stream: str = "") -> None:
        super().__init__(subject, expected, stream)
        self.subject = subject
        self.expected = expected
        self.stream = stream

    def __str__(self) -> str:
        return f"{self.subject!r} was written by somebody else (expected sequence {self.expected})"


class NoStreamError(BrokerError):
    """A durable publish or subscription on a subject that no stream keeps; nothing was stored."""

    def __init__(self, subject: str) -> None:
        super().__init__(subject)
        self.subject = subject

    def __str__(self) -> str:
        return f"no stream keeps {self.subject!r}; make one that captures it, or leave out durable=True"


class CapturedSubjectError(BrokerError):
    """A stream keeps the subject of a request, and confirmed it in the place of an answer."""

    def __init__(self, subject: str, stream: str) -> None:
        super().__init__(subject, stream)
        self.subject = subject
        self.stream = stream

    def __str__(self) -> str:
        return (
            f"the stream {self.stream} keeps {self.subject!r} and answered the request itself; "
            "publish there, or narrow its subjects (agentmesh check)"
        )


class BatchPublishError(BrokerError):
    """Some messages of a batch were not published; the others were."""

    def __init__(self, failed: int, total: int, first: int, problem: str) -> None:
        super().__init__(failed, total, first, problem)
        self.failed = failed
        self.total = total
        self.first = first
        """Position in the batch of the first one, from 0."""
        self.problem = problem
        self.errors: dict[int, BaseException] = {}
        """By position, where it was raised."""

    def __str__(self) -> str:
        return f"{self.failed} of {self.total} messages were not published; number {self.first}: {self.problem}"


class ConsumerGoneError(BrokerError):
    """The consumer a worker pulls from does not exist (any more) and could not be made again."""

    def __init__(self, stream: str, consumer: str) -> None:
        super().__init__(stream, consumer)
        self.stream = stream
        self.consumer = consumer

    def __str__(self) -> str:
        return (
            f"stream {self.stream!r} has no consumer {self.consumer!r}; was it, or the stream, deleted? "
            "Restart the worker to have it made again"
        )


class JetStreamUnavailableError(BrokerError):
    """JetStream cannot answer right now, as during a restart or an election. Worth trying again."""

    def __init__(self, operation: str, problem: str) -> None:
        super().__init__(operation, problem)
        self.operation = operation
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.operation}: JetStream is unavailable right now: {self.problem}"


class JetStreamError(BrokerError):
    """JetStream refused a request for a reason that has no class of its own."""

    def __init__(self, operation: str, code: int, description: str) -> None:
        super().__init__(operation, code, description)
        self.operation = operation
        self.code = code
        self.description = description

    def __str__(self) -> str:
        return f"{self.operation} was refused by the broker: {self.description} ({self.code})"


# ---------------------------------------------------------------- call trees and keys


class IdempotencyConflictError(AgentMeshError):
    """An idempotency key was used before, for something else; nothing was done."""

    def __init__(self, key: str, before: str, wanted: str) -> None:
        super().__init__(key, before, wanted)
        self.key = key
        self.before = before
        """What it was used for."""
        self.wanted = wanted

    def __str__(self) -> str:
        other = " with other content" if self.before == self.wanted else ""
        return f"the idempotency key {self.key!r} was used for {self.before}{other}; use another one for {self.wanted}"


class BudgetExceededError(AgentMeshError):
    """A call tree used up a budget it was given; nothing was sent. A task that fails with this is not tried again."""

    def __init__(self, limit: str, amount: float, owner: str = "", tree_id: str = "") -> None:
        super().__init__(limit, amount, owner, tree_id)
        self.limit = limit
        """`depth`, `steps` or `seconds`; of an LLM agent's answer `tokens` and `cost`, too."""
        self.amount = amount
        """How much was given."""
        self.owner = owner
        """Who gave it."""
        self.tree_id = tree_id

    def __str__(self) -> str:
        s = "" if self.amount == 1 else "s"
        units = {"depth": f"handler{s} in a row", "steps": f"step{s}", "seconds": f"second{s}", "cost": "US dollars"}
        unit = units.get(self.limit, self.limit)
        return f"the budget of {self.amount:g} {unit}{f' given by {self.owner}' if self.owner else ''} is used up"


# ---------------------------------------------------------------- breakers


class CircuitOpenError(AgentMeshError):
    """Calls to it failed again and again lately; nothing was sent."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(name, retry_after)
        self.name = name
        """What is behind the breaker: an agent, a model backend."""
        self.retry_after = retry_after
        """Seconds until it is tried again, at most."""

    def __str__(self) -> str:
        return f"{self.name!r} failed again and again lately and is not tried for {self.retry_after:.1f} s more"


# ---------------------------------------------------------------- events and requests


class DeliveryError(AgentMeshError):
    """An event or a request did not reach a handler, or its answer did not come back."""


class NoRespondersError(DeliveryError):
    """Nobody is subscribed to the subject of a request; it was not delivered."""

    def __init__(self, subject: str, near: Sequence[str] = ()) -> None:
        super().__init__(subject, list(near))
        self.subject = subject
        self.near = list(near)
        """Subjects of services that may have been meant."""

    def __str__(self) -> str:
        hint = f"; did you mean {' or '.join(map(repr, self.near))}?" if self.near else ""
        return f"nobody listens on {self.subject!r}{hint}"


class NoSuchAgentError(DeliveryError):
    """Nobody listens on that agent's mailbox subject."""

    def __init__(self, agent: str, near: Sequence[str] = ()) -> None:
        super().__init__(agent, list(near))
        self.agent = agent
        self.near = list(near)

    def __str__(self) -> str:
        hint = f"; did you mean {' or '.join(repr(n) for n in self.near)}?" if self.near else "; see: agentmesh ps"
        return f"no agent {self.agent!r} is running{hint}"


class NoHandlerError(DeliveryError):
    """The agent has no handler for this type of message."""

    def __init__(self, agent: str, message_type: str, handled: Sequence[str] = ()) -> None:
        super().__init__(agent, message_type, list(handled))
        self.agent = agent
        self.message_type = message_type
        self.handled = list(handled)

    def __str__(self) -> str:
        takes = f"it takes {', '.join(self.handled)}" if self.handled else "it takes neither requests nor events"
        return f"agent {self.agent!r} has no handler for {self.message_type} ({takes}); did you forget @handler?"


class MailboxFullError(DeliveryError):
    """The agent takes messages more slowly than they come; this one was not taken."""

    def __init__(self, agent: str, capacity: int) -> None:
        super().__init__(agent, capacity)
        self.agent = agent
        self.capacity = capacity

    def __str__(self) -> str:
        return f"mailbox of {self.agent!r} is full ({self.capacity} messages)"


class AgentStoppedError(DeliveryError):
    """The agent stopped before it answered."""

    def __init__(self, agent: str) -> None:
        super().__init__(agent)
        self.agent = agent

    def __str__(self) -> str:
        return f"agent {self.agent!r} stopped before it answered"


class AgentPausedError(DeliveryError):
    """Somebody paused the agent; tasks and durable events wait, requests and other events are refused."""

    def __init__(self, agent: str, reason: str = "") -> None:
        super().__init__(agent, reason)
        self.agent = agent
        self.reason = reason

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"agent {self.agent!r} is paused{why}; go on with: agentmesh resume {self.agent}"


class QuarantinedError(DeliveryError):
    """Messages like this one ended the agent again and again; they are refused for a time."""

    def __init__(self, agent: str, message_type: str, quarantine_id: str) -> None:
        super().__init__(agent, message_type, quarantine_id)
        self.agent = agent
        self.message_type = message_type
        self.quarantine_id = quarantine_id

    def __str__(self) -> str:
        return (
            f"this {self.message_type} ended agent {self.agent!r} again and again and is refused; "
            f"let it in with: agentmesh quarantine release {self.quarantine_id}"
        )


class DeadlineExceededError(DeliveryError):
    """No answer by the deadline; the work may or may not have been done."""

    def __init__(self, what: str, timeout: float, where: str = "") -> None:
        super().__init__(what, timeout, where)
        self.what = what
        self.timeout = timeout
        self.where = where
        """Where the time went, if that is known: it waited, its handler ran, or its reply was lost."""

    def __str__(self) -> str:
        return f"{self.what}: no answer within {self.timeout:g} s{f'; {self.where}' if self.where else ''}"


class NatsTimeoutError(DeadlineExceededError, TimeoutError):
    """What `mesh.nats` raises at the deadline; code that catches the built-in `TimeoutError` catches it."""


class StreamIdleError(DeliveryError):
    """A streaming answer stopped coming without an end."""

    def __init__(self, what: str, timeout: float) -> None:
        super().__init__(what, timeout)
        self.what = what
        self.timeout = timeout

    def __str__(self) -> str:
        return f"{self.what}: no answer, or no next part of one, for {self.timeout:g} s"


class StreamGapError(DeliveryError):
    """A chunk of a streaming answer is missing."""

    def __init__(self, what: str, expected: int, got: int) -> None:
        super().__init__(what, expected, got)
        self.what = what
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        return f"{self.what}: chunk {self.expected} is missing (got {self.got})"


class RunEndedError(DeliveryError):
    """The run of this producer has ended; nothing more of it is stored."""

    _how = "has ended"

    def __init__(self, conversation_id: str, run_id: str, reason: str = "") -> None:
        super().__init__(conversation_id, run_id, reason)
        self.conversation_id = conversation_id
        self.run_id = run_id
        self.reason = reason

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"run {self.run_id!r} of stream {self.conversation_id!r} {self._how}{why}"


class RunReplacedError(RunEndedError):
    """Another producer has taken over the run: this one is a leftover, and the broker refuses what it writes."""

    _how = "was taken over by another producer"


class RunCancelledError(RunEndedError):
    """Somebody cancelled the run; its producer should stop."""

    _how = "was cancelled"


class CallDepthError(DeliveryError):
    """Agents called agents too deeply, almost always in a loop; nothing was sent. A budget may allow more."""

    def __init__(self, agent: str, depth: int) -> None:
        super().__init__(agent, depth)
        self.agent = agent
        self.depth = depth

    def __str__(self) -> str:
        return f"nothing was sent to {self.agent!r}: the chain of calls is already {self.depth} agents deep (a loop?)"


class AskerGoneError(DeliveryError):
    """Whoever asked has stopped waiting; its handler was cancelled, and nobody reads this."""

    def __str__(self) -> str:
        return "the asker stopped waiting"


class KeyInUseError(DeliveryError):
    """Somebody else is handling a request with this idempotency key; ask again later for what came of it."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"a request with the idempotency key {self.key!r} is being handled; ask again for what came of it"


class RemoteError(DeliveryError):
    """The handler raised. The traceback stays in the logs of the node that ran it."""

    def __init__(self, agent: str, error_type: str, message: str) -> None:
        super().__init__(agent, error_type, message)
        self.agent = agent
        self.error_type = error_type
        self.message = message

    def __str__(self) -> str:
        return f"{self.agent}: {self.error_type}: {self.message}"


# ---------------------------------------------------------------- tasks


class TaskError(AgentMeshError):
    """A task was not accepted, or did not complete."""


class QueueFullError(TaskError):
    """The task queue takes no more; the task was not accepted."""

    def __init__(self, queue: str, limit: int, retry_after: float = 1.0, unit: str = "tasks") -> None:
        super().__init__(queue, limit, retry_after, unit)
        self.queue = queue
        self.limit = limit
        """In `unit`s."""
        self.retry_after = retry_after
        """Seconds until there may be room, judged from how fast the queue drained lately; between 0.1 and 60."""
        self.unit = unit
        """`tasks` on that queue, or `bytes` of large tasks on all queues together."""

    def __str__(self) -> str:
        full = f"is full ({self.limit} waiting)" if self.unit == "tasks" else f"is full ({self.limit} bytes)"
        return f"task queue {self.queue!r} {full}; try again in {self.retry_after:g} s, or add replicas"


class NoSuchTaskError(TaskError):
    """No trace of a task with that id: neither waiting nor decided."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"no task {self.task_id!r}; see: agentmesh task ls"


class TaskFailedError(TaskError):
    """The task was decided `failed`."""

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(task_id, reason)
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return f"task {self.task_id} failed: {self.reason}"


class TaskDeadError(TaskError):
    """The task was given up: rejected by its handler, or out of attempts. It is kept as a dead letter."""

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(task_id, reason)
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return f"task {self.task_id} is a dead letter: {self.reason} (agentmesh dead show {self.task_id})"


class TaskCancelledError(TaskError):
    """The task was cancelled."""

    def __init__(self, task_id: str, by: str = "") -> None:
        super().__init__(task_id, by)
        self.task_id = task_id
        self.by = by

    def __str__(self) -> str:
        return f"task {self.task_id} was cancelled" + (f" by {self.by}" if self.by else "")


class TaskExpiredError(TaskError):
    """The task's deadline passed before it was done."""

    def __init__(self, task_id: str, reason: str = "") -> None:
        super().__init__(task_id, reason)
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return f"task {self.task_id} expired: {self.reason or 'its deadline passed before it was done'}"


class AttemptReplacedError(TaskError):
    """The attempt that got this is not the task's latest any more: it must not have effects, and its result is void."""

    def __init__(self, task_id: str, by: str = "") -> None:
        super().__init__(task_id, by)
        self.task_id = task_id
        self.by = by
        """The node of the attempt that is."""

    def __str__(self) -> str:
        return f"this attempt of task {self.task_id} was replaced" + (f" by one on {self.by}" if self.by else "")


class BatchFailedError(TaskError):
    """Items of a batch did not complete; the results of the others are in `results`."""

    def __init__(self, failed: int, total: int, first: str, results: Sequence[Any] = ()) -> None:
        super().__init__(failed, total, first, list(results))
        self.failed = failed
        self.total = total
        self.first = first
        self.results = list(results)

    def __str__(self) -> str:
        return f"{self.failed} of {self.total} tasks failed; the first: {self.first}"


class ScheduleError(TaskError):
    """A delayed or repeating task."""


class InvalidScheduleError(ScheduleError):
    """The time or rhythm of a schedule cannot be; nothing was scheduled."""

    def __init__(self, what: str, value: str, problem: str) -> None:
        super().__init__(what, value, problem)
        self.what = what
        """`cron`, `every`, `at`, `delay`, `tz` or `when`."""
        self.value = value
        self.problem = problem

    def __str__(self) -> str:
        shown = self.value if len(self.value) <= 80 else self.value[:77] + "..."
        return f"{self.what} {shown!r}: {self.problem}"


class DuplicateScheduleError(ScheduleError):
    """There is another schedule of that id; it was not touched."""

    def __init__(self, schedule_id: str) -> None:
        super().__init__(schedule_id)
        self.schedule_id = schedule_id

    def __str__(self) -> str:
        name = self.schedule_id
        return (
            f"there is another schedule {name!r} already; change it with --replace (replace=True), or choose another id"
        )


class NoSuchScheduleError(ScheduleError):
    """No schedule of that id: never made, removed, or a delayed task that has become due."""

    def __init__(self, schedule_id: str, near: Sequence[str] = ()) -> None:
        super().__init__(schedule_id, list(near))
        self.schedule_id = schedule_id
        self.near = list(near)

    def __str__(self) -> str:
        near = " or ".join(repr(name) for name in self.near)
        hint = f"did you mean {near}?" if near else "see: agentmesh schedule ls"
        return f"no schedule {self.schedule_id!r}; {hint}"


class LedgerError(AgentMeshError):
    """The ledger cannot be opened, or written; what was being submitted was not submitted."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"ledger {self.path}: {self.problem}"


# ---------------------------------------------------------------- workflows


class WorkflowError(TaskError):
    """What a workflow came to, decided for good. A task whose handler lets it out is not tried again."""


class StepFailedError(WorkflowError):
    """A step used up its attempts; that is stored, so it fails the same in every run of this workflow."""

    def __init__(self, step: str, error_type: str, message: str, attempts: int = 0) -> None:
        super().__init__(step, error_type, message, attempts)
        self.step = step
        self.error_type = error_type
        self.message = message
        self.attempts = attempts

    def __str__(self) -> str:
        tried = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        return f"step {self.step!r} failed{tried}: {self.error_type}: {self.message}"


class DuplicateStepError(WorkflowError):
    """Two steps of one run have the same name; the second one was not run."""

    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return (
            f"there is a step {self.step!r} in this run already: a step is known by its name, so give each its own "
            '(in a loop: f"send {item.id}")'
        )


class NestedStepError(WorkflowError):
    """A step was begun inside another step; it was not run."""

    def __init__(self, step: str, outer: str) -> None:
        super().__init__(step, outer)
        self.step = step
        self.outer = outer

    def __str__(self) -> str:
        return f"{self.step!r} was begun inside step {self.outer!r}: begin steps in the handler, not in other steps"


class WorkflowChangedError(WorkflowError):
    """A recorded step and the code do not fit together: the workflow was changed, or is not deterministic."""

    def __init__(self, step: str, recorded: str, found: str) -> None:
        super().__init__(step, recorded, found)
        self.step = step
        self.recorded = recorded
        self.found = found

    def __str__(self) -> str:
        return (
            f"step {self.step!r} was recorded as {self.recorded}, and the code now makes it {self.found}; "
            "give a changed step another name, and get what differs from run to run (time, random) in a step"
        )


class WorkflowTooOldError(WorkflowError):
    """A run that began so long ago that its records may be gone; it was not run again."""

    def __init__(self, task_id: str, days: float) -> None:
        super().__init__(task_id, days)
        self.task_id = task_id
        self.days = days

    def __str__(self) -> str:
        return f"task {self.task_id} is over {self.days:g} days old: what its steps came to may be forgotten"


class WorkflowEndedError(WorkflowError):
    """The task was decided from outside; in this run finished steps are passed, and what can be undone is undone."""

    def __init__(self, task_id: str, status: str) -> None:
        super().__init__(task_id, status)
        self.task_id = task_id
        self.status = status

    def __str__(self) -> str:
        return f"task {self.task_id} is {self.status}: no further step is begun"


class RaceFailedError(WorkflowError):
    """No branch of a race succeeded."""

    def __init__(self, race: str, errors: Sequence[str] = ()) -> None:
        super().__init__(race, list(errors))
        self.race = race
        self.errors = list(errors)

    def __str__(self) -> str:
        return f"no branch of {self.race!r} succeeded: {'; '.join(self.errors)}"


class SignalTimeoutError(WorkflowError):
    """A signal did not come in time; one that comes later is refused."""

    def __init__(self, signal: str, timeout: float) -> None:
        super().__init__(signal, timeout)
        self.signal = signal
        self.timeout = timeout

    def __str__(self) -> str:
        return f"signal {self.signal!r} did not come within {self.timeout:g} s"


class SagaUndoneError(WorkflowError):
    """A saga failed, and everything it had done was undone."""

    def __init__(self, saga: str, reason: str, undone: Sequence[str] = ()) -> None:
        super().__init__(saga, reason, list(undone))
        self.saga = saga
        self.reason = reason
        self.undone = list(undone)

    def __str__(self) -> str:
        undone = f"; undone: {', '.join(self.undone)}" if self.undone else "; there was nothing to undo"
        return f"saga {self.saga!r} failed: {self.reason}{undone}"


class SagaNotUndoneError(WorkflowError):
    """A saga failed, and some of what it had done could not be undone: somebody has to look at it."""

    def __init__(self, saga: str, reason: str, not_undone: Sequence[str], undone: Sequence[str] = ()) -> None:
        super().__init__(saga, reason, list(not_undone), list(undone))
        self.saga = saga
        self.reason = reason
        self.not_undone = list(not_undone)
        self.undone = list(undone)

    def __str__(self) -> str:
        return f"saga {self.saga!r} failed: {self.reason}; NOT undone: {'; '.join(self.not_undone)}"


# ---------------------------------------------------------------- tools


class ToolError(AgentMeshError):
    """A tool call did not produce a result."""


class NoSuchToolError(ToolError):
    """No running tool executor serves that tool."""

    def __init__(self, tool: str, near: Sequence[str] = ()) -> None:
        super().__init__(tool, list(near))
        self.tool = tool
        self.near = list(near)

    def __str__(self) -> str:
        hint = f"; did you mean {' or '.join(repr(n) for n in self.near)}?" if self.near else ""
        return f"no tool {self.tool!r} is served{hint}"


class ToolArgumentsError(ToolError):
    """The arguments do not fit the tool's schema; nothing was run."""

    def __init__(self, tool: str, problem: str) -> None:
        super().__init__(tool, problem)
        self.tool = tool
        self.problem = problem

    def __str__(self) -> str:
        return f"tool {self.tool!r} was not run: {self.problem}"


class ToolNotAllowedError(ToolError):
    """The caller may not use this tool; nothing was run."""

    def __init__(self, tool: str, caller: str = "", said_by: str = "") -> None:
        super().__init__(tool, caller, said_by)
        self.tool = tool
        self.caller = caller
        self.said_by = said_by
        """`executor`: its settings refuse it; `caller`: the caller's own list does."""

    def __str__(self) -> str:
        who = f"agent {self.caller!r}" if self.caller else "a caller without a name"
        where = "it is not in its list of tools" if self.said_by == "caller" else "[tools] allow does not let it"
        return f"{who} may not call tool {self.tool!r}: {where}"


class ToolBusyError(ToolError):
    """The executor has as many calls running and waiting as it takes; nothing was run."""

    def __init__(self, tool: str, limit: int) -> None:
        super().__init__(tool, limit)
        self.tool = tool
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"tool {self.tool!r} was not run: its executor has {self.limit} calls already; "
            "try again later or add executors"
        )


class ToolFailedError(ToolError):
    """The tool raised or its process died."""

    def __init__(self, tool: str, error_type: str, message: str) -> None:
        super().__init__(tool, error_type, message)
        self.tool = tool
        self.error_type = error_type
        self.message = message

    def __str__(self) -> str:
        return f"tool {self.tool!r} failed: {self.error_type}: {self.message}"


class ToolTimeoutError(ToolError):
    """The tool ran longer than allowed and was ended."""

    def __init__(self, tool: str, timeout: float) -> None:
        super().__init__(tool, timeout)
        self.tool = tool
        self.timeout = timeout

    def __str__(self) -> str:
        return f"tool {self.tool!r} was ended after {self.timeout:g} s"


class ToolLimitError(ToolError):
    """The tool hit its CPU, memory or output limit and was ended."""

    def __init__(self, tool: str, limit: str) -> None:
        super().__init__(tool, limit)
        self.tool = tool
        self.limit = limit

    def __str__(self) -> str:
        return f"tool {self.tool!r} was ended: over its limit of {self.limit}"


class ToolOutcomeUnknownError(ToolError):
    """A call with this idempotency key began and was cut off: its effect may or may not have happened.

    It is not run again under this key. Find out, or use another key if running it twice does no harm.
    """

    def __init__(self, tool: str, key: str, problem: str) -> None:
        super().__init__(tool, key, problem)
        self.tool = tool
        self.key = key
        self.problem = problem

    def __str__(self) -> str:
        return f"whether tool {self.tool!r} did what was asked under key {self.key!r} is unknown: {self.problem}"


class ToolCancelledError(ToolError):
    """The tool call was cancelled and its processes were ended."""

    def __init__(self, tool: str) -> None:
        super().__init__(tool)
        self.tool = tool

    def __str__(self) -> str:
        return f"tool {self.tool!r} was cancelled"


# ---------------------------------------------------------------- memory service


class StoreError(AgentMeshError):
    """The memory service refused or failed an operation."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class RevisionConflictError(StoreError):
    """The record changed since it was read; nothing was written."""

    def __init__(self, namespace: str, key: str, expected: int, actual: int) -> None:
        AgentMeshError.__init__(self, namespace, key, expected, actual)
        self.namespace = namespace
        self.key = key
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        record = f"record {self.namespace}/{self.key}"
        if not self.actual:
            return f"{record} does not exist; it was expected at revision {self.expected}"
        if not self.expected:
            return f"{record} exists already, at revision {self.actual}"
        return f"{record} is at revision {self.actual}, not {self.expected}; read it again"


class StoreLimitError(StoreError):
    """A key, value, query … is larger than the memory service takes; nothing was written."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        AgentMeshError.__init__(self, what, size, limit)
        self.what = what
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.what} is {self.size}; the memory service takes up to {self.limit}"


class StoreBusyError(StoreError):
    """More operations wait than the memory service can hold; nothing was done. Try again a little later."""

    def __init__(self, waiting: int) -> None:
        AgentMeshError.__init__(self, waiting)
        self.waiting = waiting

    def __str__(self) -> str:
        return f"the memory service is overloaded ({self.waiting} operations wait); try again a little later"


class StoreUnavailableError(StoreError):
    """No memory service answered. A write may have been done, if one was there and went away before its answer."""

    def __init__(self, tenant: str, problem: str) -> None:
        AgentMeshError.__init__(self, tenant, problem)
        self.tenant = tenant
        self.problem = problem

    def __str__(self) -> str:
        return (
            f"no memory service answers for tenant {self.tenant!r}: {self.problem}; `agentmesh up` starts one "
            "(or: python -m agentmesh.memory_store)"
        )


class StoreLockedError(StoreError):
    """Another process serves this file: one writes, everybody else asks it."""

    def __init__(self, path: str, holder: str) -> None:
        AgentMeshError.__init__(self, path, holder)
        self.path = path
        self.holder = holder

    def __str__(self) -> str:
        return f"{self.path} is in use by another memory service ({self.holder}); stop it or give another path"


class StoreVersionError(StoreError):
    """The file has a newer schema than this version of agentmesh knows; it was not touched."""

    def __init__(self, path: str, found: int, supported: int) -> None:
        AgentMeshError.__init__(self, path, found, supported)
        self.path = path
        self.found = found
        self.supported = supported

    def __str__(self) -> str:
        return (
            f"{self.path} has schema version {self.found}, this agentmesh knows up to {self.supported}; "
            "upgrade agentmesh-nats to open it"
        )


# ---------------------------------------------------------------- models


class ModelError(AgentMeshError):
    """A language model gave no answer, or no whole one; `code` says why, by the names of `agents.llm.ErrorCode`."""

    def __init__(
        self,
        code: str,
        message: str,
        backend: str = "",
        retry_after: float = 0.0,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, message, backend, retry_after, dict(details or {}))
        self.code = code
        self.message = message
        self.backend = backend
        """Which of the configured models; empty if it is about the request."""
        self.retry_after = retry_after
        """Seconds until it may be tried again; 0: nobody knows."""
        self.details = dict(details or {})

    def __str__(self) -> str:
        where = f"model {self.backend!r}: " if self.backend else ""
        again = f"; try again in {self.retry_after:.3g} s" if self.retry_after > 0 else ""
        return f"{where}{self.message} ({self.code}){again}"


# ---------------------------------------------------------------- supervision


class SupervisionError(AgentMeshError):
    """A child process or agent could not be kept running."""


class RestartIntensityError(SupervisionError):
    """A child failed more often than its restart policy allows; its supervisor gives up."""

    def __init__(self, child: str, restarts: int, period: float, last: str = "") -> None:
        super().__init__(child, restarts, period, last)
        self.child = child
        self.restarts = restarts
        self.period = period
        self.last = last

    def __str__(self) -> str:
        if not self.restarts:
            return f"{self.child} failed{': ' + self.last if self.last else ''}"
        why = f"; last: {self.last}" if self.last else ""
        return f"{self.child} failed again after {self.restarts} restarts in {self.period:g} s{why}"


class AlreadyRunningError(SupervisionError):
    """An `agentmesh up` runs in this folder already; nothing was started."""

    def __init__(self, folder: str, pid: int) -> None:
        super().__init__(folder, pid)
        self.folder = folder
        self.pid = pid

    def __str__(self) -> str:
        who = f"with pid {self.pid}" if self.pid else "and is just starting"
        return f"a mesh runs in {self.folder} already, {who}; stop it with: agentmesh down"


# ---------------------------------------------------------------- what a task handler may raise


class Retry(AgentMeshError):
    """Raise in a task handler: try this task again after `delay` seconds (None: the policy's backoff)."""

    def __init__(self, delay: float | None = None, reason: str = "") -> None:
        super().__init__(delay, reason)
        self.delay = delay
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "the handler asked for a retry"


class Reject(AgentMeshError):
    """Raise in a task handler: never try this task again; it becomes a dead letter with this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Finish(AgentMeshError):
    """Raise in the handler of an event: the agent is done and ends in good order; a permanent one starts again."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "it finished"


# ---------------------------------------------------------------- the wire


def _tree(root: type[AgentMeshError]) -> dict[str, type[AgentMeshError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        if child.__module__ == __name__:
            found.update(_tree(child))
    return found


_KINDS = _tree(AgentMeshError)
# What a handler says about its own task is no verdict on whoever asked it.
del _KINDS["Retry"], _KINDS["Reject"], _KINDS["Finish"]


def error_to_wire(error: BaseException) -> dict[str, Any]:
    """The JSON form of an error: our own with their fields, others as type and message only (never a traceback)."""
    kind = type(error).__name__
    if _KINDS.get(kind) is type(error):
        return {"type": kind, "message": str(error), "fields": list(error.args)}
    return {"type": kind, "message": str(error)}


def error_from_wire(data: Mapping[str, Any], source: str) -> AgentMeshError:
    """Rebuild an error that came over the wire; what is not ours becomes a `RemoteError` of `source`."""
    kind, message = str(data.get("type", "Error")), str(data.get("message", ""))
    fields = data.get("fields")
    known = _KINDS.get(kind)
    if known is not None and isinstance(fields, list):
        try:
            error = known(*fields)
            str(error)
        except (TypeError, ValueError, AttributeError):  # another version of agentmesh gave it other fields
            return RemoteError(source, kind, message)
        return error
    return RemoteError(source, kind, message)
