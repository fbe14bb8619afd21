"""`Run`: one producer's turn in a conversation."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from agentmesh.errors import (
    AgentMeshError,
    PayloadTooLargeError,
    PublishTimeoutError,
    RunCancelledError,
    RunEndedError,
    RunReplacedError,
)
from agentmesh.ids import new_id, now
from agentmesh.streams.chunk import (
    CANCELLED,
    ERROR,
    FINISH,
    MAX_CHUNK,
    RESTARTED,
    TERMINAL,
    Chunk,
    encode_chunks,
    encode_data,
)
from agentmesh.streams.figures import figures_of
from agentmesh.streams.post import CANCEL, WAY, Post
from agentmesh.streams.tail import Tail
from agentmesh.subjects import Subjects, token
from agentmesh.transport import Transport

log = logging.getLogger("agentmesh.streams")

_BATCH = 64 * 1024
"""Bytes of chunks put together into one message."""

_MANY = 4_000
"""Chunks in it."""

_OVERHEAD = 300
"""Bytes of a chunk beside its content, about."""

_WAITING = 1_000
"""Chunks a run holds before `send` waits."""

_MAKING_WAY = 0.05
"""Seconds a run pauses for others that cannot get a word in."""

LAST_WORDS = 5.0
"""Seconds for the last chunk of a run that is left."""


def public_message(error: BaseException | str) -> str:
    """What readers are told of an error: its message, never the traceback."""
    return error if isinstance(error, str) else str(error) or type(error).__name__


class Run:
    """One producer's turn: `async with mesh.streams.run("chat-1") as run: await run.send("Hel")`.

    What is sent is stored in order, in as few messages as the broker's pace allows: one is under way, and what is
    sent meanwhile goes together into the next. The first chunk is never held back.

    Leaving the block without a terminal chunk ends the run with an `error` chunk: "aborted", or the message of the
    exception. If somebody cancels or takes over the run, the block is interrupted, with RunCancelledError or
    RunReplacedError.

    Without a block it sends as well, but does not hear of a cancel before its next chunk, and does not answer when it
    is asked whether it is alive.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        post: Post,
        ensure: Callable[[], Coroutine[Any, Any, None]],
        conversation_id: str,
        *,
        run_id: str | None = None,
        epoch: int = 1,
        role: str = "assistant",
        owner: str = "",
        own_task: bool = False,
        ttl: float | None = None,
        interrupt: bool = True,
        since: tuple[int, int] | None = None,
    ) -> None:
        self.conversation_id = conversation_id
        self.run_id = token("run id", run_id) if run_id is not None else new_id()
        self.epoch = epoch
        self.role = role
        self.cancelled = asyncio.Event()
        """Set when somebody cancelled the run."""
        self.last: Chunk | None = None
        """The last chunk that is stored."""
        self._ensure = ensure
        self._post = post
        self._figures = figures_of(transport)
        self._owner = self.run_id if own_task else owner
        self._interrupt = interrupt
        self._known = run_id is not None
        """Others may have written under this run's id."""
        self._tail = Tail(transport, subjects, conversation_id, ttl=ttl, bulk=True)
        self._tail.seen, self._tail.crowded = self._seen, self._ask_for_way
        if since is not None:
            self._tail.offset, self._tail.sequence = since[0] + 1, since[1]
        self._prefix = f"{self.run_id}-{epoch}-"
        # Not only the run: two producers of the same take are two writers, of whom the second is refused.
        self._msg_prefix = f"{subjects.tenant}.{conversation_id}.{self.run_id}:{epoch}:{new_id()}:"
        self._index = 0
        self._buffer: deque[tuple[int, Chunk]] = deque()
        """What is not stored yet, with its size."""
        self._batch: list[Chunk] = []
        """Its beginning, if that is under way: repeated as it is until its fate is known."""
        self._sending: asyncio.Task[None] | None = None
        self._problem: Exception | None = None
        self._doubt: PublishTimeoutError | None = None
        self._ended = False
        self._way_until = 0.0
        self._callbacks: list[Callable[[], object]] = []
        self._body: asyncio.Task[Any] | None = None
        self._interrupted = False
        self._looking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Run({self.conversation_id!r}, {self.run_id!r}, epoch={self.epoch})"

    # ------------------------------------------------------------ sending
    async def send(self, content: str = "", *, type: str = "text", data: Any = None, role: str | None = None) -> None:
        """Put a chunk behind the others; returns when it is on its way, `flush` when it is stored.

        Args:
            content: Text.
            type: One of `KINDS`, or a kind of your own.
            data: Anything that can be written as JSON.
            role: Instead of the run's.

        Raises:
            RunCancelledError: Somebody cancelled the run.
            RunReplacedError: Somebody took it over.
            RunEndedError: It has had its terminal chunk.
            InvalidMessageError: `data` cannot be written as JSON.
            PayloadTooLargeError: It is over 500 KB.
            BrokerError: An earlier chunk could not be stored.
        """
        self._check()
        number = self._index
        self._put(
            Chunk(
                id=f"{self._prefix}{number}",
                conversation_id=self.conversation_id,
                type=type,
                content=content,
                timestamp=now(),
                role=self.role if role is None else role,
                data=None if data is None else encode_data(data),
                run_id=self.run_id,
                epoch=self.epoch,
                index=number,
                offset=-1,
                owner=self._owner,
            )
        )
        if len(self._buffer) > _WAITING:
            await self._room()

    async def publish(self, chunk: Chunk) -> None:
        """Like `send`, for a chunk you have made; it keeps its id, and is not changed."""
        self._check()
        if any(chunk.id == waiting.id for waiting in self._batch):
            return  # given again because its fate was not known; it is not forgotten
        self._put(
            Chunk(
                id=chunk.id,
                conversation_id=self.conversation_id,
                type=chunk.type,
                content=chunk.content,
                timestamp=chunk.timestamp,
                role=chunk.role or self.role,
                data=encode_data(chunk.data),
                run_id=self.run_id,
                epoch=self.epoch,
                index=self._index,
                offset=-1,
                owner=self._owner,
            )
        )
        if len(self._buffer) > _WAITING:
            await self._room()

    async def flush(self) -> None:
        """Wait until everything sent is stored.

        Raises:
            PublishTimeoutError: That is not known; flush again.
            RunCancelledError: and the other errors of `send`: it is not.
        """
        if self._problem is not None:
            raise self._problem
        if self._buffer and self._sending is None:
            self._start()
        while self._sending is not None:
            await asyncio.wait([self._sending])
        self._raise_problem()

    async def finish(self, content: str = "", data: Any = None) -> None:
        """End the run well: store everything, with a `finish` chunk as the last."""
        await self._end(FINISH, content, data)

    async def fail(self, error: BaseException | str) -> None:
        """End the run with an `error` chunk that has the error's message, and in `data` its type."""
        data = None if isinstance(error, str) else {"error_type": type(error).__name__}
        await self._end(ERROR, public_message(error), data)

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Call it when somebody cancelled the run; at once, if that has happened."""
        self._callbacks.append(callback)
        if self.cancelled.is_set():
            callback()

    @property
    def ended(self) -> bool:
        """Whether it has had its terminal chunk, or cannot go on."""
        return self._ended or self._problem is not None

    async def _end(self, kind: str, content: str, data: Any) -> None:
        await self.send(content, type=kind, data=data)
        await self.flush()

    def _check(self) -> None:
        if self._problem is not None or self._doubt is not None:
            self._raise_problem()
        if self._ended:
            raise RunEndedError(self.conversation_id, self.run_id)

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem
        doubt, self._doubt = self._doubt, None
        if doubt is not None:
            raise doubt

    def _put(self, chunk: Chunk) -> None:
        size = len(chunk.content) + _OVERHEAD + (len(chunk.data) if chunk.data is not None else 0)
        if size > MAX_CHUNK // 6:  # a character takes up to six bytes
            size = len(encode_chunks([chunk]))
            if size > MAX_CHUNK:
                raise PayloadTooLargeError(size, MAX_CHUNK)
        if chunk.type in TERMINAL:
            self._ended = True
        self._index += 1
        self._buffer.append((size, chunk))
        if self._sending is None:
            self._start()

    def _start(self) -> None:
        self._sending = asyncio.get_running_loop().create_task(self._send(), name=f"run {self.run_id}")

    async def _room(self) -> None:
        if self._sending is not None:
            await asyncio.wait([self._sending])
        self._raise_problem()

    async def _send(self) -> None:
        """Store what is there, a message at a time; runs only while there is something."""
        try:
            await self._ensure()
            while self._buffer:
                if self._way_until:
                    await self._make_way()
                if not self._batch:
                    self._batch = self._next_batch()
                await self._tail.append(self._batch, f"{self._msg_prefix}{self._batch[0].index}", jump=not self._known)
                for _ in self._batch:
                    self._buffer.popleft()
                self._figures.stored += len(self._batch)
                self.last, self._batch = self._batch[-1], []
        except PublishTimeoutError as error:
            self._doubt = error  # what is under way stays so: the next flush or send goes on with it
        except Exception as error:  # told to whoever sends or flushes next
            self._stop(error)
        finally:
            self._sending = None

    def _next_batch(self) -> list[Chunk]:
        batch: list[Chunk] = []
        total = 0
        for size, chunk in self._buffer:
            total += size
            if batch and (total > _BATCH or len(batch) >= _MANY):
                break
            batch.append(chunk)
        while len(batch) > 1 and len(encode_chunks(batch)) > MAX_CHUNK:  # characters that take several bytes
            batch = batch[: len(batch) // 2]
        return batch

    # ------------------------------------------------------------ what others do
    def _seen(self, chunk: Chunk) -> None:
        """Somebody appended this chunk before ours: if it is about this run, we may be over."""
        if chunk.run_id != self.run_id or not chunk.sequence:
            return
        if chunk.epoch > self.epoch:
            raise RunReplacedError(self.conversation_id, self.run_id, f"take {chunk.epoch} of it has begun")
        if chunk.type == CANCELLED:
            raise RunCancelledError(self.conversation_id, self.run_id, chunk.content)
        if chunk.type == FINISH or (chunk.type == ERROR and chunk.epoch == self.epoch):
            raise RunEndedError(self.conversation_id, self.run_id, chunk.content or chunk.type)
        if chunk.epoch == self.epoch:
            raise RunReplacedError(self.conversation_id, self.run_id, f"another producer has begun take {self.epoch}")

    def prompted(self, op: str) -> None:
        """For the post: somebody wants something of this run."""
        if op == WAY:
            self._way_until = asyncio.get_running_loop().time() + _MAKING_WAY
        elif op == CANCEL and self._looking is None and not self.ended:
            self._looking = asyncio.get_running_loop().create_task(self._look(), name=f"run {self.run_id}: look")

    async def _look(self) -> None:
        """See whether the run was really cancelled."""
        try:
            while self._sending is not None:  # it will find out by itself
                await asyncio.wait([self._sending])
            if not self.ended and not self._batch:
                await self._tail.catch_up()
        except Exception as error:  # told to whoever sends or flushes next
            if isinstance(error, RunEndedError):
                self._stop(error)
            else:
                log.debug("%r cannot look whether it was cancelled: %s", self, error)
        finally:
            self._looking = None

    async def _make_way(self) -> None:
        left = self._way_until - asyncio.get_running_loop().time()
        self._way_until = 0.0
        if left > 0:
            await asyncio.sleep(left)

    async def _ask_for_way(self) -> None:
        await self._post.send(self.conversation_id, WAY, self.run_id)

    def _stop(self, error: Exception) -> None:
        self._problem = error
        self._buffer.clear()
        self._batch = []
        if not isinstance(error, RunEndedError):
            return
        self._figures.refused += 1
        if isinstance(error, RunCancelledError):
            self.cancelled.set()
            for callback in self._callbacks:
                try:
                    callback()
                except Exception:  # of the user
                    log.exception("a callback of %r failed", self)
        if self._body is not None and self._interrupt and not self._ended:
            self._interrupted = True
            self._body.cancel()

    # ------------------------------------------------------------ the block
    async def __aenter__(self) -> Self:
        self._post.join(self.conversation_id, self)
        self._figures.producers += 1
        self._body = asyncio.current_task()
        if self.epoch > 1:
            try:
                await self._take_over()
            except BaseException:
                self._body = None
                self._left()
                raise
        return self

    async def _take_over(self) -> None:
        """From here on the broker refuses what earlier takes write, and readers forget what they wrote."""
        body, self._body = self._body, None
        await self._ensure()
        await self._tail.catch_up()
        await self.send(type=RESTARTED)
        await self.flush()
        self._body = body

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        body, self._body = self._body, None
        try:
            if self._interrupted:
                assert body is not None
                if body.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
                    assert self._problem is not None
                    raise self._problem from None
                return
            if error is None:
                await self._leave()
            else:
                await self._leave_failed(error)
        finally:
            self._left()
            if self._looking is not None:
                self._looking.cancel()

    def _left(self) -> None:
        self._post.leave(self.conversation_id, self)
        self._figures.producers -= 1

    async def close(self) -> None:
        """Leave the block, for those who entered it by hand."""
        await self.__aexit__(None, None, None)

    async def _leave(self) -> None:
        if not self._ended and self._problem is None and not self._owner:
            await self._end(ERROR, "aborted", None)
        else:
            await self.flush()

    async def _leave_failed(self, error: BaseException) -> None:
        """The exception goes on; what happens to our last words does not replace it."""
        try:
            async with asyncio.timeout(LAST_WORDS):
                if self._ended or self._owner or self._problem is not None:
                    await self.flush()
                elif isinstance(error, Exception):
                    log.warning("%r ends with an error", self, exc_info=error)
                    await self.fail(error)
                else:
                    await self._end(ERROR, "aborted", None)
        except (AgentMeshError, TimeoutError) as problem:
            if problem is not error:
                log.warning("%r: its end could not be stored: %s", self, problem)
