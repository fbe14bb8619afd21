"""Agents to chat with, for tests: they say as many tokens as they are asked for, as fast as they are asked to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from agentmesh import Agent, Prompt, TaskContext, handler
from agentmesh.chat import Chat, ChatPart, Turn


def number(name: str, text: str, otherwise: int) -> int:
    """`pace=20` in a text."""
    found = re.search(rf"\b{name}=(\d+)", text)
    return int(found[1]) if found else otherwise


def tokens(count: int) -> list[str]:
    """Numbered, so that a missing or doubled one is seen."""
    return [f"t{number} " for number in range(count)]


class Counter(Agent):
    """Says numbered tokens: `tokens=40 pace=20` (milliseconds each).

    `fail=7` fails after that many; `hold=7` says no more than that many, the first time it is asked in a conversation.
    """

    concurrency = 200

    def __init__(self) -> None:
        self.held: set[str] = set()

    @handler
    async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
        """A token at a time."""
        said = chat.messages[-1].content
        count, pace, fail = number("tokens", said, 10), number("pace", said, 0), number("fail", said, -1)
        hold = number("hold", said, -1) if chat.conversation_id not in self.held else -1
        for at, token in enumerate(tokens(count)):
            if at == hold:
                self.held.add(chat.conversation_id)
                await asyncio.Event().wait()
            if at == fail:
                raise ValueError("secret path /home/ada")
            yield ChatPart(content=token)
            await asyncio.sleep(pace / 1000)
        yield ChatPart(type="usage", data={"prompt_tokens": 3, "completion_tokens": count, "total_tokens": count + 3})
        yield ChatPart(type="finish", data={"finish_reason": "stop"})


class Parrot(Agent):
    """Says what it heard: takes a prompt, and knows nothing of chats."""

    @handler
    async def on_prompt(self, prompt: Prompt) -> str:
        """The same, louder."""
        return prompt.text.upper()


class Stuck(Agent):
    """Says one word, and then nothing until it is stopped; what it notices is in `stopped`."""

    concurrency = 20

    def __init__(self, stopped: asyncio.Event | None = None) -> None:
        self.stopped = stopped or asyncio.Event()

    @handler
    async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
        """One word."""
        yield ChatPart(content="well ")
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()


class Calculator(Agent):
    """Calls the tool it is offered, thinks aloud, and answers in the format it is asked for."""

    concurrency = 20

    @handler
    async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
        """A tool call, or the result of one, or JSON."""
        last = chat.messages[-1]
        yield ChatPart(type="reasoning", content="Let me see. ")
        if chat.params.get("tools") and last.role == "user":
            for number, arguments in enumerate(('{"a": 1, "b": 2}', '{"a": 3, "b": 4}')):
                call = {"id": f"call_{number}", "function": {"name": "add", "arguments": arguments}}
                yield ChatPart(type="tool_call", data=call)
            yield ChatPart(type="finish", data={"finish_reason": "tool_calls"})
            return
        if chat.params.get("response_format", {}).get("type") == "json_object":
            yield ChatPart(content='{"sum": 3}')
            return
        yield ChatPart(content=f"It is {last.content}.")


class Painter(Agent):
    """Shows everything that a chat page can show."""

    concurrency = 20

    @handler
    async def on_chat(self, chat: Chat) -> AsyncIterator[ChatPart]:
        """Markdown, reasoning, tools, citations, progress, data and usage."""
        yield ChatPart(type="progress", content="Looking", data={"fraction": 0.5})
        yield ChatPart(type="reasoning", content="I will *look* first.")
        call = {"id": "c1", "function": {"name": "search", "arguments": '{"query": "streams"}'}}
        yield ChatPart(type="tool_call", data=call)
        yield ChatPart(type="tool_result", data={"id": "c1", "result": ["a.md"]})
        yield ChatPart(type="data", content="Figures", data={"readers": 100})
        yield ChatPart(content=PAINTING)
        yield ChatPart(type="citation", content="a.md", data={"url": "https://example.com/a"})
        yield ChatPart(type="citation", content="evil", data={"url": "javascript:alert(1)"})
        yield ChatPart(type="usage", data={"total_tokens": 1234})
        yield ChatPart(type="of-the-future", content="not shown")


PAINTING = """## A heading

Some **bold**, *emphasis*, `code` and ~~old~~ text, [a link](https://example.com) and https://example.org/x.

1. one
2. two
   - nested

```html
<b>not bold</b>
```

| a | b |
| --- | ---: |
| 1 | 2 |

> quoted

<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>
[evil](javascript:window.hacked=1) ![evil](data:text/html,x) **<u>x</u>**
"""


class Careful(Agent):
    """Takes its turns itself, as a task: asks for permission first, and begins again once."""

    concurrency = 20

    @handler
    async def on_prompt(self, prompt: Prompt) -> str:
        """Only so that it can be chatted with."""
        return "no"

    @handler
    async def on_turn(self, turn: Turn, ctx: TaskContext) -> str:
        """A call that a person must allow."""
        run = self.mesh.streams.run(turn.conversation_id, run_id=turn.run_id, epoch=ctx.attempt, owner=ctx.task_id)
        async with run:
            await run.send("never mind ")
            await run.send(type="restarted")
            call = {"id": "c1", "name": "erase", "arguments": {"path": "/"}}
            wish = {**call, "status": "approval", "task_id": ctx.task_id, "signal": "allow-c1"}
            await run.send(type="tool_call", data=wish)
            verdict = await ctx.signal("allow-c1", timeout=60)
            said = "erased" if verdict["approved"] else "kept"
            await run.send(said, type="tool_result", data={"id": "c1", "is_error": not verdict["approved"]})
            await run.send(f"All {said}.")
            await run.finish()
        return said
