"""Planted bugs: each is one plausible mistake in the product, and the simulation has to find it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agentmesh.errors import BrokerError, ConnectionClosedError, PublishTimeoutError
from agentmesh.streams.follow import Follower
from agentmesh.tasks import dead, lineage, slot
from agentmesh.tasks.attempt import Attempt
from agentmesh.tasks.history import History
from agentmesh.tasks.pulse import Pulse
from agentmesh.tasks.watch import Results
from agentmesh.tasks.wire import ResultBody
from agentmesh.tasks.worker import TaskWorker
from agentmesh.transport import Delivery, Transport
from agentmesh.transport.publisher import Publisher

Change = tuple[Any, str, Any]
"""Owner, name, and what stands there instead."""


def ack_first() -> list[Change]:
    """The task is taken off the queue before its result is stored."""
    live = Attempt.live

    async def early(self: Attempt) -> None:
        await self.bench.transport.ack(self.delivery)
        await live(self)

    return [(Attempt, "live", early)]


def no_cas() -> list[Change]:
    """The slot is written without the expectation that it is empty."""
    publish = Transport.publish_durable

    async def careless(self: Transport, *arguments: Any, **options: Any) -> Any:
        options.pop("expect_last", None)
        return await publish(self, *arguments, **options)

    return [(Transport, "publish_durable", careless)]


def msg_id_only() -> list[Change]:
    """Nobody looks into the slot before a task is run: the message id is trusted."""

    async def blind(*_: Any) -> None:
        return None

    return [(lineage, "ending", blind)]


def no_retry() -> list[Change]:
    """A publish whose confirmation is lost is not repeated."""

    async def give_up(
        self: Publisher, subject: str, data: bytes, headers: Any, left: float, timeout: float, first: BaseException
    ) -> Any:
        raise PublishTimeoutError(subject, timeout) from first

    return [(Publisher, "_again", give_up)]


def no_heartbeat() -> list[Change]:
    """Workers do not tell the broker that they are still at it."""

    async def silence(self: Transport, delivery: Delivery) -> None:
        return None

    return [(Transport, "in_progress", silence)]


def result_unconfirmed() -> list[Change]:
    """A worker takes its result for stored, whatever the broker says."""
    decide = slot.decide

    async def hopeful(transport: Transport, subjects: Any, verdict: ResultBody, timeout: float = 2.0) -> ResultBody:
        try:
            return await decide(transport, subjects, verdict, timeout=2.0)
        except ConnectionClosedError:
            raise
        except BrokerError:
            return verdict

    return [(slot, "decide", hopeful)]


def no_letter_first() -> list[Change]:
    """A dead letter is stored after the verdict instead of before."""

    async def bury(transport: Transport, subjects: Any, delivery: Delivery, reason: str, **about: Any) -> ResultBody:
        letter = dead._letter(delivery, reason, about.get("task_id") or f"bad-{delivery.sequence}")
        verdict = ResultBody(letter.task_id, "dead", by=f"dead:{delivery.sequence}")
        decided = await slot.decide(transport, subjects, verdict)
        if decided.by == verdict.by:
            await dead._store(transport, subjects, letter)
        await transport.ack(delivery)
        return decided

    return [(dead, "bury", bury)]


def attempts_forgotten() -> list[Change]:
    """The broker's count of deliveries is not looked at: every attempt whose worker died is the first."""
    return [(History, "attempt", lambda self, deliveries: len(self.failures) + 1)]


def trust_republished() -> list[Change]:
    """Whoever waits for a result relies on hearing it, and never looks again."""

    async def only_once(self: Results) -> None:
        await asyncio.Event().wait()

    return [(Results, "_look_again", only_once)]


def cancel_unheard() -> list[Change]:
    """A running handler is not told that its task was decided."""

    return [
        (TaskWorker, "_on_cancel", lambda self, message: None),
        (Pulse, "_tend", _tend_without_looking(Pulse._tend)),
    ]


def _tend_without_looking(tend: Callable[..., Any]) -> Callable[..., Any]:
    async def without(self: Pulse, one: Attempt, now: float) -> None:
        one.beats = 0  # every third beat looks
        await tend(self, one, now)

    return without


def gaps_unnoticed() -> list[Change]:
    """A reader does not notice that a live message was lost."""
    on_live = Follower._on_live

    def trusting(self: Follower, message: Any) -> None:
        message.headers = {**message.headers, "Nats-Last-Sequence": "0"}
        on_live(self, message)

    return [(Follower, "_on_live", trusting)]


MUTANTS: dict[str, Callable[[], list[Change]]] = {
    "ack-first": ack_first,
    "no-cas": no_cas,
    "msg-id-only": msg_id_only,
    "no-retry": no_retry,
    "no-heartbeat": no_heartbeat,
    "result-unconfirmed": result_unconfirmed,
    "no-letter-first": no_letter_first,
    "attempts-forgotten": attempts_forgotten,
    "trust-republished": trust_republished,
    "cancel-unheard": cancel_unheard,
    "gaps-unnoticed": gaps_unnoticed,
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The product with that bug; empty: as it is."""
    changes = MUTANTS[name]() if name else []
    before = [(owner, key, getattr(owner, key)) for owner, key, _ in changes]
    for owner, key, value in changes:
        setattr(owner, key, value)
    try:
        yield
    finally:
        for owner, key, value in before:
            setattr(owner, key, value)
