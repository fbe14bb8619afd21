"""The whole of it in one terminal: server and frontend, as two processes.

    python examples/ai_server_client/demo.py

It runs from any folder.
"""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from agentmesh.local import broker_here

HERE = Path(__file__).resolve().parent
CONVERSATIONS = ("conv-001", "conv-002", "conv-003")


async def start(program: str, *arguments: str, url: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "NATS_URL": url, "PYTHONUNBUFFERED": "1"}
    return await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / program), *arguments, env=environment, stdout=asyncio.subprocess.PIPE
    )


async def show(who: str, process: asyncio.subprocess.Process) -> None:
    """Each line of a process, as soon as it is complete."""
    assert process.stdout is not None
    async for line in process.stdout:
        print(f"{who} | {line.decode().rstrip()}", flush=True)


async def main() -> int:
    async with broker_here() as url:
        print("Starting the AI server and a frontend that watches three conversations at once", flush=True)
        frontend = await start("frontend_client.py", *CONVERSATIONS, url=url)
        server = await start("ai_server.py", url=url)
        showing = [asyncio.create_task(show("frontend", frontend)), asyncio.create_task(show("server  ", server))]
        try:
            code = await frontend.wait()
            await showing[0]
        finally:
            for process in (frontend, server):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
            await asyncio.gather(*showing)
        if code == 0:
            print("Demo complete", flush=True)
        return code


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except KeyboardInterrupt:
        sys.exit(130)
