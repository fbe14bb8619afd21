"""Requests: ask, and streaming answers. Who stops waiting cancels the handler."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from agentmesh import codec, keyed, registry, schemas
from agentmesh.budgets import Budget, out_of_time
from agentmesh.context import check_depth, covering, current, granted, next_hops, time_of_end
from agentmesh.errors import (
    AgentMeshError,
    AgentStoppedError,
    BrokerError,
    DeadlineExceededError,
    DefinitionError,
    InvalidMessageError,
    NoRespondersError,
    NoSuchAgentError,
)
from agentmesh.ids import now
from agentmesh.messages import Request
from agentmesh.outgoing import Outgoing
from agentmesh.streaming import WINDOW, StreamReader
from agentmesh.tasks.keys import Keys, checked
from agentmesh.tasks.spending import charge
from agentmesh.transport import Message as WireMessage
from agentmesh.transport import is_no_responders

R = TypeVar("R")

ASK_TIMEOUT = 30.0
"""Seconds an ask waits unless told otherwise."""

LONGEST_WAIT = 365 * 86_400.0
"""Seconds that stand for a timeout without an end."""

WHEREABOUTS = 0.05
"""Seconds that an ask whose deadline has passed waits to be told where the time went."""

CANCEL = "cancel-request"
"""Control subject: the asker of a request has gone; the body is its message id."""


class Asking(Outgoing):
    """Requests to agents."""

    async def ask(
        self,
        agent: str,
        request: Request[R],
        *,
        timeout: float | None = None,
        budget: Budget | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        """Send a request and wait for its reply. Cancelling the wait cancels the handler, and what that started.

        Args:
            agent: Whom to ask.
            request: What.
            timeout: Seconds; by default 30, or what is left of the deadline of the message being handled, which is
                the most in any case.
            budget: What this request, and all that follows from it, may use.
            idempotency_key: The handler runs once for it, whoever asks; what came of it, a reply or an error, is kept
                for a day and returned to everybody who asks the same with the same key. A handler that raises `Retry`
                gives the key back. Cancelling the wait does not cancel the handler.

        Raises:
            NoSuchAgentError: Nobody listens; names near misses. Within 100 ms.
            NoHandlerError: The agent does not take this request.
            MailboxFullError: Refused.
            AgentStoppedError: The agent stopped first.
            RemoteError: The handler raised.
            DeadlineExceededError: No reply in time.
            InvalidMessageError: The reply is not of the promised type.
            BudgetExceededError: A budget is used up, here or further down.
            CallDepthError: Too deep a chain of handlers, here or further down.
            IdempotencyConflictError: The key was used for another request.
        """
        reply_type = _reply_type(request)
        try:
            if budget is None:
                content = await self._question(agent, self._envelope(agent, request), timeout, idempotency_key)
            else:
                with granted(budget, self.identity):
                    content = await self._question(agent, self._envelope(agent, request), timeout, idempotency_key)
        except InvalidMessageError as error:
            raise await self._mismatch(agent, request, error) from error
        try:
            result: R = codec.decode_body(reply_type, content)
        except InvalidMessageError as error:
            raise await self._mismatch(agent, request, error) from error
        return result

    async def _mismatch(self, agent: str, request: Request[Any], error: InvalidMessageError) -> InvalidMessageError:
        """`error` with how the schemas of both sides differ, if they do: two versions of a program run."""
        try:
            infos = await registry.discover(self.transport, self.subjects, name=agent)
        except BrokerError:
            return error
        difference = schemas.difference(type(request), infos)
        return InvalidMessageError(f"{error.problem}; {difference}") if difference else error

    async def ask_raw(
        self,
        agent: str,
        message_type: str,
        content: Any,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Like `ask`, for callers that do not have the message class: plain data in, plain data out."""
        envelope = self._outline(agent, message_type, msgspec.Raw(msgspec.json.encode(content)))
        return msgspec.json.decode(await self._question(agent, envelope, timeout, idempotency_key))

    def stream(self, agent: str, request: Request[R], *, timeout: float = ASK_TIMEOUT) -> AsyncGenerator[R, None]:
        """Chunks of a streaming answer, in order and without a gap; leaving the loop stops the producer.

        A handler that does not stream gives its reply as the only chunk.

        Args:
            agent: Whom to ask.
            request: What.
            timeout: Seconds without any chunk after which the stream is given up.

        Raises:
            StreamIdleError: Nothing came for `timeout` seconds.
            StreamGapError: A chunk was lost.
            NoSuchAgentError: and the other errors of `ask`.
        """
        return self._stream(self._envelope(agent, request), agent, _reply_type(request), timeout)

    def stream_raw(
        self, agent: str, message_type: str, content: Any, *, timeout: float = ASK_TIMEOUT
    ) -> AsyncGenerator[Any, None]:
        """Like `stream`, for callers that do not have the message class."""
        envelope = self._outline(agent, message_type, msgspec.Raw(msgspec.json.encode(content)))
        return self._stream(envelope, agent, Any, timeout)

    def _stream(self, envelope: codec.Envelope, agent: str, kind: Any, timeout: float) -> AsyncGenerator[Any, None]:
        """What can be wrong with the call is said before the first step of the loop."""
        subject, idle = self.subjects.mailbox(agent), self._timeout(agent, timeout)
        envelope.window = WINDOW
        envelope.deadline = time_of_end()
        _belongs(envelope)
        return self._chunks(envelope, agent, subject, kind, idle)

    async def _chunks(
        self, envelope: codec.Envelope, agent: str, subject: str, kind: Any, idle: float
    ) -> AsyncGenerator[Any, None]:
        nobody = NoSuchAgentError(agent)
        reader = StreamReader(self.transport, agent, kind, idle_timeout=idle, nobody=lambda: nobody)
        try:
            if envelope.budget:
                await charge(self.transport, self.subjects, envelope.budget)
            await self.transport.publish(subject, codec.encode(envelope), reader.subject, self._headers(envelope))
            async for chunk in reader:
                yield chunk
        except NoSuchAgentError as error:
            if error is not nobody:  # the handler asked an agent that is not there
                raise
            raise await self._no_such_agent(agent) from None
        finally:
            reader.close()
            self._sent(envelope, "client", sys.exception())
            if not reader.finished:
                await self._cancel(envelope)

    async def _question(
        self, agent: str, envelope: codec.Envelope, timeout: float | None, key: str | None
    ) -> msgspec.Raw:
        _belongs(envelope)
        seconds = self._timeout(agent, timeout)
        if key is None:
            return (await self._request(agent, envelope, seconds)).content
        envelope.key = checked(key)

        async def send(again: codec.Envelope, left: float) -> codec.Envelope:
            return await self._request(agent, again, left)

        keys = Keys(self.transport, self.subjects, "ask")
        return await keyed.ask(keys, agent, envelope, seconds, send)

    async def _request(self, agent: str, envelope: codec.Envelope, timeout: float) -> codec.Envelope:
        if self.transport.tracer is None:
            return await self._exchange(agent, envelope, timeout)
        try:
            reply = await self._exchange(agent, envelope, timeout)
        except BaseException as error:
            self._sent(envelope, "client", error)
            raise
        self._sent(envelope, "client")
        return reply

    async def _exchange(self, agent: str, envelope: codec.Envelope, timeout: float) -> codec.Envelope:
        breakers = self.transport.breakers
        breaker = None if breakers is None else breakers.of(self.subjects.tenant, agent)
        if breaker is None:
            reply, error = await self._converse(agent, envelope, timeout)
        else:
            breaker.admit()
            try:
                reply, error = await self._converse(agent, envelope, timeout)
            except (NoSuchAgentError, DeadlineExceededError):
                breaker.failed()
                raise
            except BaseException:
                breaker.dropped()
                raise
            stopped = isinstance(error, AgentStoppedError) and error.agent == agent
            (breaker.failed if stopped else breaker.succeeded)()
        if error is not None:
            raise error
        return reply

    async def _converse(
        self, agent: str, envelope: codec.Envelope, timeout: float
    ) -> tuple[codec.Envelope, AgentMeshError | None]:
        """The reply, and the error it says."""
        timeout = min(timeout, LONGEST_WAIT)
        envelope.deadline = now() + timedelta(seconds=timeout)
        if envelope.budget:
            await charge(self.transport, self.subjects, envelope.budget)
        try:
            answer = await self.transport.request(
                self.subjects.mailbox(agent), codec.encode(envelope), timeout=timeout, headers=self._headers(envelope)
            )
        except NoRespondersError:
            raise await self._no_such_agent(agent) from None
        except DeadlineExceededError:
            where = await self._cancel_late(envelope)
            spent = out_of_time(envelope.budget)
            raise spent or DeadlineExceededError(f"{agent}: {envelope.message_type}", timeout, where) from None
        except asyncio.CancelledError:
            await self._cancel(envelope)
            raise
        reply = codec.decode(answer.data)
        error = codec.decode_error(reply.content, agent) if reply.message_type == codec.ERROR else None
        return reply, error

    async def _cancel_late(self, envelope: codec.Envelope) -> str:
        """Like `_cancel`, for a request whose deadline has passed; where it was then, if that is known at once."""
        if not self.transport.is_connected:
            return "the connection to the broker was lost meanwhile"
        if envelope.key:
            return ""
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def take(message: WireMessage) -> None:
            if not answered.done():
                answered.set_result("" if is_no_responders(message) else message.data.decode(errors="replace"))

        inbox = self.transport.open_inbox(take)
        try:
            await self.transport.publish(self.subjects.control(CANCEL), envelope.message_id.encode(), inbox.subject)
            async with asyncio.timeout(WHEREABOUTS):
                return await answered
        except TimeoutError:
            return "no replica has it: its reply was lost, or it did not arrive"
        except BrokerError:
            return ""
        finally:
            inbox.close()

    async def _cancel(self, envelope: codec.Envelope) -> None:
        """Let the handler know that nobody waits. If that fails, it hears so from the deadline."""
        if self.transport.is_connected and not envelope.key:  # with a key, others may wait for the same handler
            with contextlib.suppress(BrokerError):
                await self.transport.publish(self.subjects.control(CANCEL), envelope.message_id.encode())

    async def _no_such_agent(self, agent: str) -> NoSuchAgentError:
        try:
            known = await registry.discover(self.transport, self.subjects, brief=True, timeout=0.08, stall=0.03)
        except BrokerError:
            return NoSuchAgentError(agent)
        return NoSuchAgentError(agent, registry.near_misses(agent, (info.name for info in known)))

    def _timeout(self, agent: str, wanted: float | None) -> float:
        """Seconds to wait: never longer than whoever asked us waits, nor longer than a budget lasts."""
        check_depth(agent, next_hops(), covering())
        end = time_of_end()
        if end is None:
            return ASK_TIMEOUT if wanted is None else wanted
        left = (end - now()).total_seconds()
        if left <= 0:
            if (spent := out_of_time(covering())) is not None:
                raise spent
            raise DeadlineExceededError(
                f"{agent}: not asked, the deadline of the message being handled has passed", 0.0
            )
        return left if wanted is None else min(wanted, left)


def _belongs(envelope: codec.Envelope) -> None:
    """Say for which task a request is made."""
    here = current()
    if here is not None:
        envelope.task_id = here.task_id


def _reply_type(request: Any) -> Any:
    if not isinstance(request, Request):
        raise DefinitionError(type(request).__name__, "ask and stream take a Request; tell an Event, submit a Task")
    return type(request).reply_type()
