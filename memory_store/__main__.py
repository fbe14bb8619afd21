"""The memory service as a process: `python -m agentmesh.memory_store --nats URL --path memory.db`.

It prints one line when it answers, ends in order on SIGTERM and SIGINT (what came in is written and answered; exit
code 0), and ends with the process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from agentmesh.errors import AgentMeshError
from agentmesh.lifeline import die_with_parent
from agentmesh.memory_store.service import MemoryService
from agentmesh.metrics import METRICS
from agentmesh.metrics import serve as serve_metrics
from agentmesh.subjects import METRICS_OF_EVERY_TENANT, Subjects
from agentmesh.supervisor.child import configure_logging
from agentmesh.transport import Transport, TransportOptions


async def serve(options: TransportOptions, path: Path, tenants: Sequence[str]) -> None:
    """Answer until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await Transport.connect(options, jetstream=False) as transport:
        service = MemoryService(transport, path, tenants=tenants)
        await service.start()
        for subject in [Subjects(tenant).control(METRICS) for tenant in tenants] or [METRICS_OF_EVERY_TENANT]:
            await serve_metrics(transport, subject, "memory")
        try:
            print(f"memory ready: {path} for {', '.join(tenants) or 'every tenant'} on {transport.url}", flush=True)
            await stop.wait()
        finally:
            await service.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 after an orderly stop, 1 if the service cannot start."""
    die_with_parent()
    parser = argparse.ArgumentParser(
        prog="python -m agentmesh.memory_store", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--nats", default="nats://127.0.0.1:4222", metavar="URL", help="the broker (default: %(default)s)"
    )
    parser.add_argument("--creds", metavar="FILE", help="credentials for the broker")
    parser.add_argument("--path", default="memory.db", type=Path, help="the SQLite file (default: %(default)s)")
    parser.add_argument("--tenant", action="append", default=[], help="may be repeated (default: every tenant)")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="lines for people, or JSON")
    given = parser.parse_args(arguments)
    configure_logging(given.log_format, "INFO", ",".join(given.tenant))
    try:
        options = TransportOptions(url=given.nats, creds=given.creds, name="agentmesh-memory")
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(options, given.path, given.tenant))
    except AgentMeshError as error:
        print(f"memory service: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
