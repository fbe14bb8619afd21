"""`agentmesh memory`: look at what agents remember."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli import exits
from agentmesh.cli.base import Commands, Session
from agentmesh.cli.output import age, as_json

if TYPE_CHECKING:
    from agentmesh.memory import Namespaces, Record, Records

commands = Commands()
memory = commands.group("memory", help="What agents remember.", panel="Watch and steer")

Namespace = Annotated[str, typer.Argument(metavar="NAMESPACE", help="Usually an agent's name.", show_default=False)]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="The most to show.")]


@memory.command(
    "ls",
    example="""agentmesh memory ls
agentmesh memory ls reviewer --prefix runs/""",
)
def ls(
    session: Session,
    namespace: Annotated[
        str | None, typer.Argument(metavar="NAMESPACE", help="Without it: all namespaces.", show_default=False)
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="How the keys start.", show_default=False)] = "",
    limit: Limit = 100,
) -> None:
    """List namespaces, or the records of one."""
    if namespace is None:
        _show_namespaces(session, session.run(_namespaces(session)))
        return
    session.check("namespace", namespace)
    records, more = session.run(_records(session, namespace, prefix, limit))
    if session.out.json:
        session.out.document(records)
        return
    rows = [
        (record.key, record.kind or None, record.tags or None, record.size, record.revision, age(record.updated_at))
        for record in records
    ]
    session.out.table(
        ["KEY", "KIND", "TAGS", "BYTES", "REVISION", "CHANGED"], rows, empty=f"{namespace} has no such records"
    )
    if more:
        session.out.note(f"there are more; --limit or --prefix (these are the first {len(records)})")


async def _namespaces(session: Session) -> Namespaces:
    async with session.connect() as mesh:
        return await mesh.memory("cli").namespaces()


def _show_namespaces(session: Session, found: Namespaces) -> None:
    if session.out.json:
        session.out.document(found)
        return
    rows = [(info.namespace, info.records, info.size) for info in found]
    session.out.table(["NAMESPACE", "RECORDS", "BYTES"], rows, empty=f"nothing is remembered in {session.tenant} yet")


async def _records(session: Session, namespace: str, prefix: str, limit: int) -> tuple[Records, bool]:
    async with session.connect() as mesh:
        page = await mesh.memory(namespace).list(prefix, limit=limit, values=session.out.json)
        return page.records, bool(page.cursor)


@memory.command(
    "get",
    example="""agentmesh memory get reviewer runs/1
agentmesh memory get reviewer runs/1 --json | jq .revision""",
)
def get(
    session: Session,
    namespace: Namespace,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The record.", show_default=False)],
) -> None:
    """Print the value of a record; with `--json` the whole record."""
    session.check("namespace", namespace)
    record = session.run(_get(session, namespace, key))
    if record is None:
        session.out.error(f"{namespace} has no record {key!r}; see: agentmesh memory ls {namespace}")
        raise typer.Exit(exits.FAILED)
    session.out.value(record if session.out.json else record.value)


async def _get(session: Session, namespace: str, key: str) -> Record | None:
    async with session.connect() as mesh:
        return await mesh.memory(namespace).get(key)


@memory.command("search", example='agentmesh memory search reviewer "flaky tests"')
def search(
    session: Session,
    namespace: Namespace,
    query: Annotated[str, typer.Argument(metavar="WORDS", help="Words to look for.", show_default=False)],
    limit: Limit = 10,
) -> None:
    """Find records that contain the words, best first."""
    session.check("namespace", namespace)
    records = session.run(_search(session, namespace, query, limit))
    if session.out.json:
        session.out.document(records)
        return
    rows = [(record.key, age(record.updated_at), _glimpse(record)) for record in records]
    session.out.table(["KEY", "CHANGED", "VALUE"], rows, empty=f"{namespace} has nothing about {query!r}")


async def _search(session: Session, namespace: str, query: str, limit: int) -> Records:
    async with session.connect() as mesh:
        return await mesh.memory(namespace).search(query, limit=limit)


def _glimpse(record: Record) -> str:
    text = record.value if isinstance(record.value, str) else as_json(record.value)
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
