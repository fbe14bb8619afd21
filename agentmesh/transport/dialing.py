"""Making and ending one client connection, each within its time."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
from collections.abc import Mapping
from typing import Any

import nats.errors

from agentmesh.errors import BrokerUnavailableError, MissingExtraError
from agentmesh.transport.client import NatsClient
from agentmesh.transport.options import TransportOptions, shown_url

log = logging.getLogger("agentmesh.transport")

REFUSED = "the broker refused the login"


async def dial(
    nc: NatsClient, options: TransportOptions, name: str, timeout: float, callbacks: Mapping[str, Any]
) -> bool:
    """Connect `nc`; False if there was no answer within `timeout` seconds. A refused socket is tried again until then.

    Raises:
        BrokerUnavailableError: The login was refused, or TLS failed: trying again would not help.
        MissingExtraError: A credentials file needs `nkeys`.
    """
    if options.creds and importlib.util.find_spec("nkeys") is None:
        raise MissingExtraError("nkeys", "auth")
    attempt = asyncio.create_task(
        nc.connect(
            [shown_url(url) for url in options.servers],
            name=name,
            **callbacks,
            allow_reconnect=False,  # for the first handshake only, see below
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,  # type: ignore[arg-type]
            connect_timeout=2,
            ping_interval=5,
            max_outstanding_pings=2,
            flush_timeout=5,
            pending_size=1 << 40,  # publishers wait for room themselves, where waiting ends and can be cancelled
            inbox_prefix=options.reply_prefix,
            **options.credentials(),
            **options.tls(),
        )
    )
    try:
        done, _ = await asyncio.wait({attempt}, timeout=timeout)
        if not done:
            return False
        attempt.result()
    except (OSError, nats.errors.Error, TimeoutError) as error:
        raise BrokerUnavailableError(options.shown, plain(error)) from error
    finally:
        if not attempt.done() or attempt.cancelled() or attempt.exception() is not None:
            attempt.cancel()
            nc.abort()
    nc.options["allow_reconnect"] = True
    nc.options["dont_randomize"] = True  # from now on we put the servers in order ourselves
    return True


async def hang_up(nc: NatsClient) -> None:
    """Close a client within half a second; a stalled socket is dropped instead of drained."""
    closing = asyncio.create_task(nc.close())
    done, _ = await asyncio.wait({closing}, timeout=0.3)
    if not done:
        nc.abort()
        done, _ = await asyncio.wait({closing}, timeout=0.2)
    if not done:
        closing.cancel()
    elif closing.exception() is not None:
        log.debug("closing a broker connection: %s", closing.exception())


def plain(error: BaseException) -> str:
    """The text of a client error, without the client's prefix."""
    text = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
    return REFUSED if re.search(r"authori[sz]ation|authentication", text, re.IGNORECASE) else text


def version_of(text: str) -> tuple[int, ...]:
    """(2, 15) of "2.15.1-RC.1"."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
