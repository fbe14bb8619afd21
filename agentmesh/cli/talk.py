"""`agentmesh ask`, `tell` and `publish`: say something to agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli import typed
from agentmesh.cli.base import Commands, Session
from agentmesh.errors import UsageError

if TYPE_CHECKING:
    from agentmesh.messages import Event

commands = Commands()
PANEL = "Talk to agents"

Agent = Annotated[str, typer.Argument(metavar="AGENT", help="Name of the agent.", show_default=False)]
Text = Annotated[
    str | None, typer.Argument(metavar="TEXT|@FILE|-", help="What to say; - reads standard input.", show_default=False)
]
Type = Annotated[str | None, typer.Option("--type", "-t", help="Type of message, instead of plain text.")]
Data = Annotated[
    str | None, typer.Option("--data", "-d", metavar="JSON|@FILE|-", help="Fields of the message, as a JSON object.")
]


@commands.command(
    "ask",
    example="""agentmesh ask greeter "hi"
agentmesh ask writer @notes.txt --timeout 2m
agentmesh ask writer --type Summarise --data '{"text": "…"}'""",
    panel=PANEL,
)
def ask(
    session: Session,
    agent: Agent,
    text: Text = None,
    type: Type = None,
    data: Data = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", metavar="KEY", help="Asked once; the others get its answer.")
    ] = None,
) -> None:
    """Ask an agent and print its answer, as it comes.

    TEXT is sent as a `Prompt`; with `--type` and `--data` any request can be sent. With `--json` each part of a
    streaming answer is one line. `--timeout` is how long to wait for the answer, or for its next part.

    With `--idempotency-key` the agent answers the first one who asks with that key, and for a day everybody else who
    does gets the same answer.
    """
    kind, content = typed.content(text, type, data, "Prompt")
    session.check("agent", agent)
    if idempotency_key is None:
        session.run(_ask(session, agent, kind, content))
    else:
        session.run(_ask_once(session, agent, kind, content, idempotency_key))


async def _ask_once(session: Session, agent: str, kind: str, content: dict[str, Any], key: str) -> None:
    async with session.connect() as mesh:
        answer = await mesh.ask_raw(agent, kind, content, timeout=session.timeout(), idempotency_key=key)
    if isinstance(answer, str) and not session.out.json:
        session.out.answer(answer)
    else:
        session.out.value(answer)


async def _ask(session: Session, agent: str, kind: str, content: dict[str, Any]) -> None:
    out, ended = session.out, True
    async with session.connect() as mesh:
        try:
            async for part in mesh.stream_raw(agent, kind, content, timeout=session.timeout()):
                if isinstance(part, str) and not out.json:
                    out.answer(part, end="")
                    ended = part.endswith("\n")
                else:
                    out.value(part)
        finally:
            if not ended:
                out.answer("")


@commands.command(
    "tell",
    example="""agentmesh tell greeter "the door is open"
agentmesh tell audit --type Entry --data '{"who": "Ada"}' --durable""",
    panel=PANEL,
)
def tell(
    session: Session,
    agent: Agent,
    text: Text = None,
    type: Type = None,
    data: Data = None,
    durable: Annotated[
        bool, typer.Option("--durable", help="Keep it until the agent has handled it, for events declared durable.")
    ] = False,
    id: Annotated[
        str | None, typer.Option("--id", help="An id of yours for a durable event: told again, it is stored once.")
    ] = None,
) -> None:
    """Tell an agent something; nobody answers.

    TEXT is sent as a `Text` event. Returns when the agent's mailbox has taken it, or, with `--durable`, when it is
    stored.
    """
    kind, content = typed.content(text, type, data, "Text")
    session.check("agent", agent)
    if id is not None:
        session.check("message id", id)
        if not durable:
            raise UsageError("--id is for durable events: add --durable")
    session.run(_tell(session, agent, typed.message(_event(), kind, content, durable=durable), id))


async def _tell(session: Session, agent: str, message: Event, message_id: str | None) -> None:
    async with session.connect() as mesh:
        await mesh.tell(agent, message, timeout=session.timeout(), message_id=message_id)
    if session.out.json:
        session.out.document({"agent": agent, "taken": True})
    else:
        session.out.note(f"{agent} has it" if not message.durable else f"stored for {agent}")


@commands.command(
    "publish",
    example="""agentmesh publish news "the door is open"
agentmesh publish orders.new --type Order --data '{"id": 7}'""",
    panel=PANEL,
)
def publish(
    session: Session,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Topic: words joined by dots.", show_default=False)],
    text: Text = None,
    type: Type = None,
    data: Data = None,
) -> None:
    """Publish an event to every agent that listens to a topic.

    TEXT is sent as a `Text` event. At most once: who is not listening now does not get it.
    """
    kind, content = typed.content(text, type, data, "Text")
    session.subjects.topic(topic)
    session.run(_publish(session, topic, typed.message(_event(), kind, content)))


async def _publish(session: Session, topic: str, message: Event) -> None:
    async with session.connect() as mesh:
        await mesh.publish(topic, message)
    if session.out.json:
        session.out.document({"topic": topic, "published": True})
    else:
        session.out.note(f"published to {topic}")


def _event() -> type[Event]:
    from agentmesh.messages import Event

    return Event
