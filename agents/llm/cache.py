"""Answers that are given again, in the memory of one replica, and how they become void in all of them.

Whoever voids answers stores an invalidation on `ai.gateway.cache.invalidate.T`. Every replica is subscribed to it and
drops what it fits at once. That message may be missed, so an entry is only given when it was known within the last
`VERIFY` seconds that there is no invalidation this replica has not seen: the sequence of the last one is the version.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic_core import to_json

from agentmesh.agents.llm.messages import LLMRequest
from agentmesh.errors import AgentMeshError
from agentmesh.llmops import Invalidation, read_invalidation
from agentmesh.tasks.layout import CACHE_LOG, ensure, subjects_on
from agentmesh.transport import Message, Subscription, Transport

log = logging.getLogger("agentmesh.llm")

VERIFY = 1.0
"""Seconds for which it counts as known that no invalidation was missed."""

_REMEMBERED = 256
"""Invalidations remembered, for answers that were begun before them."""

_OVERHEAD = 512
"""Bytes of an entry beside its text."""

_PAGE = 500


@dataclass(frozen=True)
class Entry:
    """A stored answer."""

    key: str
    tags: tuple[str, ...]
    response: dict[str, Any]
    """Fields of the `LLMResponse`."""
    expires: float
    size: int


@dataclass
class _Tenant:
    """What is known of the invalidations of one tenant."""

    subscription: Subscription | None = None
    sequence: int = 0
    """Of the last one that was read."""
    verified: float = float("-inf")
    generation: int = -1
    """Of the connection, when it was verified."""
    count: int = 0
    """How many have been applied."""
    recent: deque[tuple[int, Invalidation]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    applied: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """Their ids."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def digest_of(request: LLMRequest, tenant: str, route: str) -> str:
    """What two requests have in common that may have the same answer."""
    asked = (
        tenant,
        route,
        [message.model_dump(exclude_defaults=True) for message in request.conversation()],
        request.messages is None,
        request.params.given(),
        request.tools,
        request.tool_choice,
        request.response_format,
        request.context,
    )
    plain = msgspec.json.decode(to_json(asked))
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


class AnswerCache:
    """See the module.

    Args:
        transport: The connection.
        max_size: Bytes; 0: nothing is kept.
        on_void: Called with each invalidation and its tenant.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        transport: Transport,
        max_size: int,
        *,
        on_void: Callable[[str, Invalidation], None] = lambda tenant, order: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._max = max_size
        self._on_void = on_void
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], Entry] = OrderedDict()
        self._tenants: dict[str, _Tenant] = {}
        self.size = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def enabled(self) -> bool:
        return self._max > 0

    async def close(self) -> None:
        for tenant in tuple(self._tenants.values()):
            if tenant.subscription is not None:
                await tenant.subscription.unsubscribe()
        self._tenants.clear()

    async def get(self, tenant: str, digest: str) -> Entry | None:
        """The stored answer, if it is good; what cannot be verified is not given."""
        if (tenant, digest) in self._entries and await self.verified(tenant):
            entry = self._entries.get((tenant, digest))
            if entry is not None and entry.expires > self._clock():
                self._entries.move_to_end((tenant, digest))
                self.hits += 1
                return entry
            if entry is not None:
                self._drop((tenant, digest))
        self.misses += 1
        return None

    async def version(self, tenant: str) -> int:
        """To be taken before the model is asked: what is voided after that is not stored. -1: nothing can be."""
        return self._tenants[tenant].count if await self.verified(tenant) else -1

    def put(
        self,
        tenant: str,
        digest: str,
        key: str,
        tags: tuple[str, ...],
        response: dict[str, Any],
        ttl: float,
        version: int,
    ) -> bool:
        """Store an answer that was begun at `version`; whether it is stored."""
        known = self._tenants.get(tenant)
        size = _OVERHEAD + len(digest) + len(key) + len(to_json(response))
        if known is None or version < 0 or size > self._max or self._voided_since(known, version, key, tags):
            return False
        place = (tenant, digest)
        self._drop(place)
        self._entries[place] = Entry(key, tags, response, self._clock() + ttl, size)
        self.size += size
        while self.size > self._max:
            self._drop(next(iter(self._entries)))
        return True

    async def verified(self, name: str) -> bool:
        """Whether all invalidations of the tenant up to a moment ago are known, and applied."""
        tenant = self._tenants.setdefault(name, _Tenant())
        if self._is_fresh(tenant):
            return True
        async with tenant.lock:
            if self._is_fresh(tenant):
                return True
            try:
                await self._verify(name, tenant)
            except AgentMeshError as error:
                log.warning("cached answers are not used, invalidations cannot be read: %s", error)
                return False
        return True

    def _is_fresh(self, tenant: _Tenant) -> bool:
        same = tenant.generation == self._transport.connection.generation and self._transport.is_connected
        return same and self._clock() - tenant.verified < VERIFY

    async def _verify(self, name: str, tenant: _Tenant) -> None:
        subjects = subjects_on(self._transport, name)
        subject = subjects.cache_invalidations()
        await ensure(self._transport, CACHE_LOG)
        first = tenant.subscription is None
        if first:
            tenant.subscription = await self._transport.subscribe(subject, lambda message: self._heard(name, message))
        generation, now = self._transport.connection.generation, self._clock()
        last = await self._transport.last_message(CACHE_LOG.name, subject, latest=True)
        sequence = 0 if last is None else last.sequence
        if sequence < tenant.sequence:  # the stream was made anew: what was voided meanwhile is not known
            self._apply(name, tenant, Invalidation(everything=True))
        elif not first:
            while tenant.sequence < sequence:
                batch = await self._transport.messages(CACHE_LOG.name, subject, start=tenant.sequence + 1, limit=_PAGE)
                for stored in batch:
                    self._take(name, tenant, stored.data)
                    tenant.sequence = stored.sequence
                if not batch:
                    break
        tenant.sequence, tenant.generation, tenant.verified = sequence, generation, now

    def _heard(self, name: str, message: Message) -> None:
        tenant = self._tenants.get(name)
        if tenant is not None:
            self._take(name, tenant, message.data)

    def _take(self, name: str, tenant: _Tenant, data: bytes) -> None:
        try:
            order = read_invalidation(data)
        except msgspec.MsgspecError:
            log.warning("an invalidation of cached answers cannot be read: everything is dropped")
            order = Invalidation(everything=True)
        if order.invalidation_id and order.invalidation_id in tenant.applied:
            return
        tenant.applied.append(order.invalidation_id)
        self._apply(name, tenant, order)

    def _apply(self, name: str, tenant: _Tenant, order: Invalidation) -> None:
        tenant.count += 1
        tenant.recent.append((tenant.count, order))
        for place, entry in list(self._entries.items()):
            if place[0] == name and order.fits(entry.key, entry.tags):
                self._drop(place)
        self._on_void(name, order)

    def _voided_since(self, tenant: _Tenant, version: int, key: str, tags: tuple[str, ...]) -> bool:
        if tenant.count - version > _REMEMBERED:
            return True
        return any(order.fits(key, tags) for count, order in tenant.recent if count > version)

    def _drop(self, place: tuple[str, str]) -> None:
        entry = self._entries.pop(place, None)
        if entry is not None:
            self.size -= entry.size
