"""`agentmesh llm`: models, calls, costs, and cached answers."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli.base import Commands, Session
from agentmesh.errors import UsageError

if TYPE_CHECKING:
    from agentmesh.llmops import Cost, CostAlert, Operation

commands = Commands()
PANEL = "Work"

llm = commands.group("llm", help="Language models: how they are, what was asked of them, what it cost.", panel=PANEL)

Model = Annotated[str, typer.Option("--model", "-m", help="Only this configured model.")]
Day = Annotated[str, typer.Option("--day", metavar="DATE", help="Only this day, UTC: 2026-11-28, today, yesterday.")]


@llm.command("ls", example="agentmesh llm ls\nagentmesh llm ls --json")
def ls(session: Session) -> None:
    """List the models of the gateway: breaker, calls, and under which names they are reached.

    Each replica of the gateway has breakers of its own; this is what one of them says.
    """
    found = session.run(_models(session))
    if session.out.json:
        session.out.document(found)
        return
    rows = [
        (
            model["name"],
            model["backend"],
            model["model"],
            _state(model),
            model["calls"],
            model["failed"],
            model["under_way"] or None,
            model["waiting"] or None,
            ", ".join(model["routes"]) or None,
            ", ".join(model["fallbacks"]) or None,
        )
        for model in found
    ]
    columns = ["MODEL", "BACKEND", "CALLED", "BREAKER", "CALLS", "FAILED", "BUSY", "WAITING", "ROUTES", "FALLBACKS"]
    session.out.table(columns, rows, empty="no models")
    for model in found:
        if model["problem"]:
            session.out.warning(f"{model['name']}: {model['problem']}")


@llm.command("ops", example="agentmesh llm ops\nagentmesh llm ops --model small --day today\nagentmesh llm ops --json")
def ops(
    session: Session,
    model: Model = "",
    day: Day = "",
    user: Annotated[str, typer.Option("--user", help="Only on behalf of this user.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The most to show: the last ones.")] = 50,
) -> None:
    """List calls of language models, oldest first: what they used, cost, and what came of them."""
    found = session.run(_operations(session, model, _day(day), user, limit))
    if session.out.json:
        session.out.document(found)
        return
    rows = [
        (
            one.timestamp.astimezone().strftime("%m-%d %H:%M:%S"),
            one.model,
            "cached" if one.cached else one.error or one.status,
            one.tokens.prompt,
            one.tokens.completion,
            _dollars(one.cost),
            f"{one.latency_ms:.0f} ms",
            one.user_id or None,
            one.operation_id,
        )
        for one in found
    ]
    columns = ["TIME", "MODEL", "STATUS", "PROMPT", "ANSWER", "COST", "TOOK", "USER", "OPERATION"]
    session.out.table(columns, rows, empty="no calls")


@llm.command("cost", example="agentmesh llm cost\nagentmesh llm cost --day today\nagentmesh llm cost --days 30")
def cost(
    session: Session,
    model: Model = "",
    day: Day = "",
    days: Annotated[int, typer.Option("--days", min=1, max=90, help="How many days back, today included.")] = 7,
) -> None:
    """Show what calls of language models cost, per day and model."""
    found = session.run(_cost(session, model, _day(day), days))
    if session.out.json:
        session.out.document(found)
        return
    rows = [
        (
            one.day.isoformat(),
            one.model,
            one.calls,
            one.cached or None,
            one.errors or None,
            one.prompt_tokens,
            one.completion_tokens,
            _dollars(one.cost),
        )
        for one in found
    ]
    columns = ["DAY", "MODEL", "CALLS", "CACHED", "FAILED", "PROMPT", "ANSWER", "COST"]
    session.out.table(columns, rows, empty="no calls")
    if found:
        session.out.note(f"{_dollars(sum(one.cost for one in found))} in all")


@llm.command("alerts", example="agentmesh llm alerts")
def alerts(session: Session) -> None:
    """List the thresholds of budgets that were reached, oldest first."""
    found = session.run(_alerts(session))
    if session.out.json:
        session.out.document(found)
        return
    rows = [
        (
            one.timestamp.astimezone().strftime("%m-%d %H:%M:%S"),
            one.budget,
            f"{one.threshold:.0%}",
            f"{_dollars(one.spent)} of {_dollars(one.limit)}",
        )
        for one in found
    ]
    session.out.table(["TIME", "BUDGET", "REACHED", "SPENT"], rows, empty="no alerts")


@llm.command(
    "cache",
    example="agentmesh llm cache --tag prices\nagentmesh llm cache --prefix faq/\nagentmesh llm cache --all",
)
def cache(
    session: Session,
    keys: Annotated[list[str] | None, typer.Option("--key", help="The answer of this key.")] = None,
    prefixes: Annotated[list[str] | None, typer.Option("--prefix", help="Those whose keys begin like this.")] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Those with this tag.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the tenant.")] = False,
) -> None:
    """Have no replica of the gateway give these cached answers again."""
    if not (keys or prefixes or tags or everything):
        raise UsageError("say which answers: --key, --prefix, --tag or --all")
    invalidation = session.run(_invalidate(session, keys or [], prefixes or [], tags or [], everything))
    if session.out.json:
        session.out.document({"invalidation_id": invalidation})
    else:
        session.out.note("every replica has been told")


def _state(model: dict[str, Any]) -> str:
    wait = f" {model['retry_after']:.0f} s" if model["state"] == "open" else ""
    return f"{model['state']}{wait}"


def _dollars(amount: float) -> str:
    return f"${amount:.2f}" if amount >= 1 or not amount else f"${amount:.2g}" if amount < 0.01 else f"${amount:.4f}"


def _day(text: str) -> date | None:
    if not text:
        return None
    today = datetime.now(UTC).date()
    if text in ("today", "yesterday"):
        return today - timedelta(days=text == "yesterday")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--day {text}: expected a date such as {today}, today or yesterday") from None


async def _models(session: Session) -> list[dict[str, Any]]:
    from agentmesh.messages import Request

    class ListModels(Request[list[dict[str, Any]]]):
        """As the gateway's own, which the command line does not import."""

    async with session.connect() as mesh:
        return await mesh.ask("llm", ListModels(), timeout=session.timeout())


async def _operations(session: Session, model: str, day: date | None, user: str, limit: int) -> list[Operation]:
    from collections import deque

    async with session.connect() as mesh:
        last: deque[Operation] = deque(maxlen=limit)
        async for one in mesh.llmops.operations(model=model, day=day, user_id=user):
            last.append(one)
        return list(last)


async def _cost(session: Session, model: str, day: date | None, days: int) -> list[Cost]:
    since = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
    async with session.connect() as mesh:
        return await mesh.llmops.cost(model=model, day=day, since=None if day else since)


async def _alerts(session: Session) -> list[CostAlert]:
    async with session.connect() as mesh:
        return await mesh.llmops.alerts()


async def _invalidate(session: Session, keys: list[str], prefixes: list[str], tags: list[str], everything: bool) -> str:
    async with session.connect() as mesh:
        return await mesh.llmops.invalidate(keys=keys, prefixes=prefixes, tags=tags, everything=everything)
