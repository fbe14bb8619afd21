"""The gateway as a process: `python -m agentmesh.gateway --nats URL --http 127.0.0.1:8000`.

It prints one line when it takes requests, ends in order on SIGTERM and SIGINT (streams end, what is under way gets its
answer; exit code 0), and ends with the process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence

from agentmesh.errors import AgentMeshError
from agentmesh.gateway.options import GatewayOptions
from agentmesh.gateway.spec import GatewaySpec, decoded
from agentmesh.lifeline import die_with_parent
from agentmesh.supervisor.child import configure_logging, loop_factory
from agentmesh.transport import Transport, TransportOptions

NO_LOGIN = 77
"""Exit code: the broker does not let this process in any more."""


async def serve(spec: GatewaySpec) -> int:
    """Take requests until SIGTERM or SIGINT, or until the broker refuses the login for good; the exit code."""
    from agentmesh.gateway.gateway import Gateway
    from agentmesh.gateway.server import HttpServer

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await Transport.connect(TransportOptions(**spec.transport)) as transport:
        transport.on_state(lambda state: stop.set() if state == "closed" else None)
        gateway = Gateway(spec.options, transport, spec.tenant, agents=spec.agents)
        server = HttpServer(gateway)
        await server.start()
        try:
            print(f"http ready: {server.url} for {spec.tenant} on {transport.url}", flush=True)
            await stop.wait()
        finally:
            await server.stop(spec.grace)
        if transport.closed_because:
            print(f"http gateway: {transport.closed_because}", file=sys.stderr)
            return NO_LOGIN
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 after an orderly stop, 1 if the gateway cannot start."""
    die_with_parent()
    try:
        spec = _spec(arguments)
        configure_logging(spec.log_format, spec.log_level, spec.tenant)
        logging.getLogger("uvicorn").setLevel(logging.ERROR)  # what it warns of is answered, and counted
        with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(serve(spec))
    except AgentMeshError as error:
        print(f"http gateway: {error}", file=sys.stderr)
        return 1
    return 0


def _spec(arguments: Sequence[str] | None) -> GatewaySpec:
    parser = argparse.ArgumentParser(prog="python -m agentmesh.gateway", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", metavar="URL", help="default: %(default)s")
    parser.add_argument("--creds", metavar="FILE", help="credentials for the broker")
    parser.add_argument("--tenant", default="default", help="whose agents (default: %(default)s)")
    parser.add_argument("--http", default="127.0.0.1:8000", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.spec:
        return decoded(given.spec)
    host, _, port = given.http.rpartition(":")
    transport = {"url": given.nats, "creds": given.creds, "name": "agentmesh-http"}
    return GatewaySpec(transport, GatewayOptions(host=host, port=int(port)), given.tenant)


if __name__ == "__main__":
    sys.exit(main())
