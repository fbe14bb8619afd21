"""Dead letters: tasks and durable events that were given up, with reason and history, kept for 30 days.

Burying is ours, not the broker's: first the copy, then the verdict, then the removal from the queue. A crash in between
repeats it, with the same effect. Where the verdict comes too late, because the task was cancelled or completed by
somebody else meanwhile, the copy is taken back: who has a dead letter is dead.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import msgspec

from agentmesh.codec import SCHEMA_VERSION, Envelope
from agentmesh.errors import AgentMeshError, InvalidMessageError, InvalidNameError, NoSuchTaskError
from agentmesh.ids import new_id, now
from agentmesh.subjects import Subjects, token
from agentmesh.tasks import slot
from agentmesh.tasks.layout import DEAD, TASKS
from agentmesh.tasks.wire import DeadBody, Failure, ResultBody, decode_dead, encode, is_json
from agentmesh.transport import Delivery, StoredMessage, Transport

_PAGE = 500

_ENTRIES = 50
"""Attempts that a dead letter tells about; the last ones."""


async def bury(
    transport: Transport,
    subjects: Subjects,
    delivery: Delivery,
    reason: str,
    *,
    task_id: str = "",
    agent: str = "",
    task_type: str = "",
    history: Sequence[Failure] = (),
) -> ResultBody:
    """Give a task up: dead letter, slot `dead`, off the queue. Returns what the slot says now."""
    letter = _letter(delivery, reason, task_id or f"bad-{delivery.sequence}")
    letter.agent_id = agent
    letter.task_type = task_type
    decided = await _entomb(transport, subjects, letter, delivery.sequence, history)
    await transport.ack(delivery)
    return decided


async def bury_stored(
    transport: Transport,
    subjects: Subjects,
    stored: StoredMessage,
    reason: str,
    *,
    task_id: str = "",
    agent: str = "",
    task_type: str = "",
    history: Sequence[Failure] = (),
) -> ResultBody:
    """Like `bury`, for a task that no consumer will deliver any more."""
    letter = _letter(stored, reason, task_id or f"bad-{stored.sequence}")
    letter.agent_id = agent
    letter.task_type = task_type
    decided = await _entomb(transport, subjects, letter, stored.sequence, history)
    await transport.delete_message(TASKS, stored.sequence)
    return decided


async def _entomb(
    transport: Transport, subjects: Subjects, letter: DeadBody, sequence: int, history: Sequence[Failure]
) -> ResultBody:
    letter.attempts = len(history)
    letter.history = list(history[-_ENTRIES:])
    await _store(transport, subjects, letter)
    verdict = ResultBody(
        letter.task_id,
        "dead",
        by=f"dead:{sequence}",
        agent_id=letter.agent_id,
        task_type=letter.task_type,
        reason=letter.reason,
        attempt=letter.attempts,
    )
    decided = await slot.decide(transport, subjects, verdict)
    if decided.status != "dead":
        await withdraw(transport, subjects, letter.task_id)
    return decided


async def withdraw(transport: Transport, subjects: Subjects, task_id: str) -> None:
    """Take a dead letter back, if there is one: somebody else decided the task before it could be decided `dead`."""
    await transport.purge(DEAD, subjects.dead(task_id))


async def bury_message(
    transport: Transport, subjects: Subjects, delivery: Delivery, reason: str, *, letter_id: str = ""
) -> None:
    """Give up a durable event, or a message of another stream (with an id for it): dead letter, and off its stream."""
    letter = _letter(delivery, reason, letter_id or f"event-{delivery.sequence}")
    letter.kind = "event"
    letter.agent_id = delivery.subject.rpartition(".")[2]
    letter.attempts = delivery.attempt
    await _store(transport, subjects, letter)
    await transport.ack(delivery)


async def keep_event(
    transport: Transport, subjects: Subjects, agent: str, envelope: Envelope, reason: str, attempts: int
) -> None:
    """Keep an event that was told or published, and that nobody shall handle, as a dead letter."""
    letter = DeadBody(
        envelope.message_id,
        reason[:2000],
        agent_id=agent,
        subject=subjects.mailbox(agent),
        body=msgspec.Raw(encode(envelope)),
        attempts=attempts,
        kind="event",
        timestamp=now(),
        schema_version=SCHEMA_VERSION,
    )
    await _store(transport, subjects, letter)


def _letter(delivery: Delivery | StoredMessage, reason: str, task_id: str) -> DeadBody:
    readable = is_json(delivery.data)
    return DeadBody(
        task_id,
        reason[:2000],
        subject=delivery.subject,
        body=msgspec.Raw(delivery.data if readable else encode(base64.b64encode(delivery.data).decode())),
        encoding="" if readable else "base64",
        timestamp=now(),
        schema_version=SCHEMA_VERSION,
    )


async def _store(transport: Transport, subjects: Subjects, letter: DeadBody) -> None:
    await transport.publish_durable(
        subjects.dead(letter.task_id), encode(letter), msg_id=f"{subjects.tenant}.{letter.task_id}"
    )


class DeadLetters:
    """The dead letters of a tenant."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects

    async def ls(self, limit: int = 100) -> list[DeadBody]:
        """Up to `limit` dead letters, oldest first."""
        letters: dict[str, DeadBody] = {}
        start = 1
        while len(letters) < limit:
            batch = await self._transport.messages(DEAD, self._subjects.all_dead(), start=start, limit=_PAGE)
            for stored in batch:
                start = stored.sequence + 1
                letter = _readable(stored.data)
                if letter is not None and len(letters) < limit:
                    letters[letter.task_id] = letter
            if len(batch) < _PAGE:
                break
        return list(letters.values())

    async def show(self, task_id: str) -> DeadBody:
        """One dead letter, with its history.

        Raises:
            NoSuchTaskError: There is none of that id.
        """
        return (await self._find(task_id))[0]

    async def retry(self, task_id: str) -> str:
        """Put the task (or event) back into its queue under a new id, and drop the dead letter; the new id.

        Raises:
            NoSuchTaskError: There is none of that id.
            InvalidMessageError: It is not a task: it was buried because nobody can read it.
        """
        letter, sequence = await self._find(task_id)
        fresh = new_id()
        id_field = "task_id" if letter.kind == "task" else "message_id"
        try:
            document = msgspec.json.decode(letter.original(), type=dict[str, msgspec.Raw])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidMessageError(f"{task_id} cannot be tried again: {letter.reason}") from error
        document[id_field] = msgspec.Raw(encode(fresh))
        for inherited in ("deadline", "deadline_inherited", "parent_id", "hops", "budget"):
            document.pop(inherited, None)  # it is nobody's child now: whoever submitted it has given up long since
        if letter.agent_id and letter.subject == self._subjects.mailbox(letter.agent_id):
            await self._transport.publish(letter.subject, encode(document))  # it was not durable, and is not now
        else:
            await self._transport.publish_durable(
                letter.subject, encode(document), msg_id=f"{self._subjects.tenant}.{fresh}"
            )
        await self._transport.delete_message(DEAD, sequence)
        return fresh

    async def drop(self, task_id: str) -> None:
        """Forget a dead letter; the task's result stays `dead`.

        Raises:
            NoSuchTaskError: There is none of that id.
        """
        await self._find(task_id)
        await self._transport.purge(DEAD, self._subjects.dead(task_id))

    async def _find(self, task_id: str) -> tuple[DeadBody, int]:
        try:
            token("task id", task_id)
        except InvalidNameError as error:
            raise NoSuchTaskError(task_id) from error
        stored = await self._transport.last_message(DEAD, self._subjects.dead(task_id))
        if stored is None:
            raise NoSuchTaskError(task_id)
        return decode_dead(stored.data), stored.sequence


def _readable(data: bytes) -> DeadBody | None:
    try:
        return decode_dead(data)
    except AgentMeshError:
        return None
