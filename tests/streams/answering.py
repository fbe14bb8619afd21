"""A node that can be killed: `python -m tests.streams.answering URL TENANT`. It answers in conversations, as a task.

It prints `ready`, and `speaking <attempt>` once the first words are stored.
"""

from __future__ import annotations

import asyncio
import sys

from agentmesh import Agent, Task, TaskContext, connect, handler


class Answer(Task[str], max_attempts=3, backoff=0.05):
    conversation_id: str
    words: int = 100


class Answerer(Agent):
    @handler
    async def answer(self, task: Answer, ctx: TaskContext) -> str:
        run = self.mesh.streams.run(task.conversation_id, run_id="answer", epoch=ctx.attempt, owner=ctx.task_id)
        async with run:
            for number in range(task.words):
                await run.send(f"{ctx.attempt}.{number} ")
                if number == 10:
                    await run.flush()
                    print(f"speaking {ctx.attempt}", flush=True)
                await asyncio.sleep(0.01)
            await run.finish()
        return f"answered by attempt {ctx.attempt}"


async def main(url: str, tenant: str) -> None:
    async with connect(url, tenant=tenant) as mesh:
        await mesh.spawn(Answerer)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
