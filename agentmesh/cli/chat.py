"""`agentmesh chat`: talk with an agent at the terminal, in a stored conversation."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli import exits
from agentmesh.cli.base import Commands, Session
from agentmesh.cli.output import as_json
from agentmesh.errors import AgentMeshError

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.streams import Chunk

commands = Commands()

HELP = "/history shows the conversation, /stop stops the answer (so does Ctrl-C), /quit ends (so does Ctrl-D)"

RECENT = 10
"""Messages shown of a conversation that is gone on with."""


@commands.command(
    "chat",
    example="""agentmesh chat llm
agentmesh chat writer --conversation notes
echo "Sum up the news" | agentmesh chat llm --json""",
    panel="Talk to agents",
)
def chat(
    session: Session,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Who answers.", show_default=False)],
    conversation: Annotated[
        str, typer.Option("--conversation", "-c", metavar="ID", help="Go on with this one; else a new one begins.")
    ] = "",
) -> None:
    """Chat with an agent: it answers word by word, and what was said stays.

    The conversation is stored: go on with it later, from another machine, or on the gateway's page `/ui/chat/AGENT`.
    Ctrl-C stops the answer and not the chat. In the chat, `/history`, `/stop` and `/quit` are commands.

    From a pipe, each line is a message; with `--json` each chunk of the answers is a line. Ends with 1 if an answer
    failed.
    """
    session.check("agent", agent.partition("/")[0])
    if conversation:
        session.check("conversation", conversation)
    failed = session.run(_chat(session, agent, conversation))
    if failed and not sys.stdin.isatty():
        raise typer.Exit(exits.FAILED)


async def _chat(session: Session, agent: str, conversation: str) -> bool:
    from agentmesh.chat import answerer
    from agentmesh.ids import new_id

    async with session.connect() as mesh:
        await answerer(mesh, agent)
        talk = Talk(session, mesh, agent, conversation or f"c{new_id()}")
        return await talk.go_on(resumed=bool(conversation))


class Talk:
    """One chat at the terminal.

    Args:
        session: The command's.
        mesh: Connected.
        agent: Who answers.
        conversation: Its id.
    """

    def __init__(self, session: Session, mesh: Client, agent: str, conversation: str) -> None:
        self._out = session.out
        self._mesh = mesh
        self._agent = agent
        self._conversation = conversation
        self._run = ""
        """The answer that is coming."""
        self._stopping: set[asyncio.Task[None]] = set()
        self._typed = sys.stdin.isatty()

    async def go_on(self, *, resumed: bool) -> bool:
        """Until the end of the input; returns whether the last answer failed."""
        loop = asyncio.get_running_loop()
        if self._typed:
            loop.add_signal_handler(signal.SIGINT, self._interrupted)
            self._out.note(f"{self._agent} · conversation {self._conversation} · {HELP}")
        failed = False
        try:
            if resumed:
                await self._resume()
            while (line := await self._read()) is not None:
                if line.strip() == "/quit":
                    break
                if line.strip():
                    failed = await self._take(line.strip())
        finally:
            if self._typed:
                loop.remove_signal_handler(signal.SIGINT)
        return failed

    async def _read(self) -> str | None:
        """A line; None at the end of the input."""
        prompt = self._out.style("› ", "bold") if self._typed else ""
        # In a thread, since waiting for keys would stop everything else.
        return await asyncio.to_thread(_line, prompt)

    async def _take(self, line: str) -> bool:
        match line:
            case "/history":
                await self._show_history(None)
            case "/stop":
                self._out.note("nothing is being answered")
            case "/help":
                self._out.note(HELP)
            case command if command.startswith("/") and self._typed:
                self._out.note(f"there is no {command.split()[0]}: {HELP}")
            case _:
                return await self._say(line)
        return False

    async def _say(self, message: str) -> bool:
        from agentmesh.chat import say

        try:
            asked = await say(self._mesh, self._agent, message, conversation_id=self._conversation)
        except AgentMeshError as error:
            if not self._typed:
                raise
            self._out.error(error)  # a chat goes on
            return True
        return await self._show_answer(asked.run_id, asked.offset)

    async def _show_answer(self, run_id: str, offset: int) -> bool:
        """Print an answer as it comes; returns whether it failed."""
        screen = _Screen(self._out)
        self._run = run_id
        end = ""
        try:
            chunks = self._mesh.streams.read(self._conversation, run_id=run_id, from_offset=offset)
            async with aclosing(_settled(self._mesh, self._conversation, run_id, chunks)) as settled:
                async for chunk in settled:
                    screen.show(chunk)
                    end = chunk.type
        finally:
            self._run = ""
            screen.end()
        return end == "error"

    def _interrupted(self) -> None:
        """Ctrl-C: the answer stops, and not the chat."""
        if not self._run:
            self._out.note("\n(Ctrl-D or /quit ends the chat)")
            return
        task = asyncio.get_running_loop().create_task(self._stop(self._run), name="chat: stop")
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _stop(self, run_id: str) -> None:
        from agentmesh.chat import stop

        with contextlib.suppress(AgentMeshError):  # it goes on, and may be stopped again
            await stop(self._mesh, self._conversation, run_id, "stopped at the terminal")

    async def _resume(self) -> None:
        """Show how far the conversation is, and the rest of an answer that is still coming."""
        if self._typed:
            await self._show_history(RECENT)
        state = await self._mesh.streams.state(self._conversation)
        for run_id in state.open_runs if state is not None else ():
            self._out.note("an answer is still coming:")
            await self._show_answer(run_id, 0)

    async def _show_history(self, limit: int | None) -> None:
        from agentmesh.chat import history

        messages = await history(self._mesh.streams, self._conversation)
        shown = messages if limit is None else messages[-limit:]
        if len(shown) < len(messages):
            self._out.note(f"{len(messages) - len(shown)} earlier messages: /history shows them")
        for message in shown:
            if self._out.json:
                self._out.document(message)
            else:
                who = "you" if message.role == "user" else self._agent
                self._out.answer(f"{self._out.style(who, 'bold')}: {message.content}")


class _Screen:
    """An answer for people: its text runs on, everything else is a line in between."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._in_line = False

    def show(self, chunk: Chunk) -> None:
        """Print a chunk."""
        if self._out.json:
            self._out.answer(chunk.to_json().decode())
        elif chunk.role == "user" and not chunk.is_final:
            return
        elif chunk.type == "text":
            self._out.answer(chunk.content, end="")
            self._in_line = not chunk.content.endswith("\n") if chunk.content else self._in_line
        elif chunk.type == "restarted":
            self._between("(interrupted, and begun again)", "yellow")
        elif chunk.type == "error":
            self._between(f"(failed: {chunk.content})", "red")
        elif chunk.type == "cancelled":
            self._between("(stopped)", "yellow")
        elif chunk.type not in ("finish", "usage", "role"):
            said = chunk.content or ("" if chunk.data is None else as_json(chunk.data))
            self._between(f"[{chunk.type}] {said}", "dim")

    def end(self) -> None:
        """End the line that has begun."""
        if self._in_line:
            self._out.answer("")
            self._in_line = False

    def _between(self, text: str, style: str) -> None:
        self.end()
        self._out.note(self._out.style(text, style, stream=sys.stderr))


def _line(prompt: str) -> str | None:
    try:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # the line can be edited, and earlier ones come back
        return input(prompt)
    except EOFError:
        return None


async def _settled(
    mesh: Client, conversation: str, run_id: str, chunks: AsyncGenerator[Chunk, None]
) -> AsyncGenerator[Chunk, None]:
    """The chunks of a run; its task is looked at, too, which may be decided without a word about it."""
    from agentmesh.chat import settle

    async def watch() -> None:
        with contextlib.suppress(AgentMeshError):
            outcome = await mesh.job(run_id).outcome()
            if outcome.status != "completed":
                await settle(mesh, conversation, run_id)

    watching = asyncio.get_running_loop().create_task(watch(), name="chat: task")
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
