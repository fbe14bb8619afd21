"""`agentmesh chaos`: break things on purpose, and judge whether the promises held."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli import exits
from agentmesh.cli.base import Commands, Session

if TYPE_CHECKING:
    from agentmesh.chaos.report import Report
    from agentmesh.chaos.run import Options

commands = Commands()

_TOLD = ("mono", "at", "kind", "pid", "role", "task")
"""What a line of history begins with, or the violation says."""

SHOWN = 5
"""Violations that are told in full; the others are in the report."""


@commands.command(
    "chaos",
    example="""agentmesh chaos --minutes 1
agentmesh chaos --seed 7 --faults worker,server-kill
agentmesh chaos --cluster
agentmesh chaos --scenario A5,A10
agentmesh chaos --without heartbeat --minutes 0.2""",
    panel="Project",
)
def chaos(
    session: Session,
    minutes: Annotated[float, typer.Option("--minutes", min=0.05, help="How long faults strike.")] = 10.0,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the plan of faults and work; else by chance, and told.")
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Three servers with three replicas, not one.")] = False,
    faults: Annotated[
        str | None, typer.Option("--faults", metavar="LIST", help="Which, with commas; all without. See --list.")
    ] = None,
    without: Annotated[
        str | None, typer.Option("--without", metavar="LIST", help="Switch protections off: it must then fail.")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option("--scenario", metavar="IDS", help="Rows of the test matrix: A3,A5; A for all of them; all."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep histories, logs and stores there.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Say what faults, protections and scenarios there are.")] = False,
) -> None:
    """Kill, freeze and cut off real processes and servers under load, and check what was promised.

    Everything it touches is its own: servers of its own on free ports, processes of its own, a folder of its own.
    Exit code 0: every promise was kept; 1: one was broken, and the lines that show it are printed.
    """
    if show:
        _list(session)
        return
    if scenario is not None:
        _play(session, scenario, seed, _words(without), keep)
        return
    options = _options(minutes, seed, cluster, faults, without, keep)
    from agentmesh.chaos.run import run

    session.out.note(f"seed {options.seed}, {options.seconds:g} s, {len(options.faults)} faults")
    report = session.run(run(options, session.out.note))
    _tell(session, report)
    if options.without:
        session.out.note(_expected(options.without, report.held))
    if not report.held:
        raise typer.Exit(exits.FAILED)


def _expected(without: tuple[str, ...], held: bool) -> str:
    missing = ", ".join(without)
    if held:
        return f"nothing was found, although this ran without {missing}: try more minutes, or another seed"
    return f"as it should be: this ran without {missing}"


def _play(session: Session, words: str, seed: int | None, without: tuple[str, ...], keep: Path | None) -> None:
    """Run scenarios one after the other; what cannot run here is skipped, and said."""
    from agentmesh.chaos import failpoints, scenarios
    from agentmesh.chaos.run import run

    failpoints.check(without)
    number = _seed(seed)
    rows: list[tuple[str, str, str]] = []
    broken = False
    for name, one in scenarios.chosen(_words(words)).items():
        if why := one.why_not():
            rows.append((name, "skipped", why))
            continue
        session.out.note(f"{name}: {one.means} (seed {number}, {one.seconds:g} s)")
        options = replace(one.options(number), without=without, keep=keep / name if keep else None)
        report = one.judged(session.run(run(options, session.out.note)))
        _tell(session, report)
        broken |= not report.held
        rows.append((name, "kept" if report.held else "violated", one.means))
    if not session.out.json:
        session.out.answer("")
        session.out.table(["SCENARIO", "PROMISES", "WHAT"], rows)
    elif skipped := {name: why for name, verdict, why in rows if verdict == "skipped"}:
        session.out.document({"skipped": skipped})
    if broken:
        raise typer.Exit(exits.FAILED)


def _seed(given: int | None) -> int:
    return random.randrange(10_000) if given is None else given


def _options(
    minutes: float,
    seed: int | None,
    cluster: bool,
    faults: str | None,
    without: str | None,
    keep: Path | None,
) -> Options:
    from agentmesh.chaos import failpoints
    from agentmesh.chaos.plan import DEFAULT, kinds, plan
    from agentmesh.chaos.run import Options
    from agentmesh.chaos.workload import Shape
    from agentmesh.errors import UsageError

    missing = _words(without)
    failpoints.check(missing)
    if "sync" in missing:
        raise UsageError("without sync only a power failure shows: --scenario A3 --without sync, as root")
    showing = [failpoints.PROTECTIONS[name] for name in missing]
    chosen = _words(faults) or tuple(fault for protection in showing for fault in protection.faults) or DEFAULT
    number = _seed(seed)
    seconds = 60.0 * minutes
    return Options(
        seed=number,
        seconds=seconds,
        faults=plan(number, seconds, kinds(chosen, cluster=cluster)),
        servers=3 if cluster else 1,
        shape=Shape(rate=max((protection.rate for protection in showing), default=Shape.rate)),
        without=missing,
        keep=keep,
    )


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _list(session: Session) -> None:
    from agentmesh.chaos import failpoints
    from agentmesh.chaos.plan import KINDS
    from agentmesh.chaos.scenarios import SCENARIOS

    if session.out.json:
        session.out.document(
            {
                "faults": {name: kind.means for name, kind in KINDS.items()},
                "protections": {name: one.means for name, one in failpoints.PROTECTIONS.items()},
                "scenarios": {name: one.means for name, one in SCENARIOS.items()},
            }
        )
        return
    session.out.table(["FAULT", "WHAT"], [(name, kind.means) for name, kind in KINDS.items()])
    session.out.answer("")
    session.out.table(["--without", "WHAT"], [(name, one.means) for name, one in failpoints.PROTECTIONS.items()])
    session.out.answer("")
    session.out.table(
        ["SCENARIO", "WHAT", "NEEDS"],
        [(name, one.means, "root" if one.disk_mb else "") for name, one in SCENARIOS.items()],
    )


def _tell(session: Session, report: Report) -> None:
    out = session.out
    if out.json:
        out.document(report.document())
        return
    out.fields([*report.counts.items(), *((f"decided {name}", count) for name, count in report.results.items())])
    out.answer("")
    out.table(["FAULT", "TIMES"], sorted(report.faults.items()), empty="no faults")
    out.answer("")
    out.table(
        ["SECONDS", "TIMES", "MEDIAN", "LONGEST"],
        [(one.what, len(one.seconds), one.median, one.longest) for one in report.figures],
    )
    rest = "never" if report.drained is None else f"{report.drained:.1f} s after the last fault"
    out.answer(f"\neverything at rest: {rest}")
    for violation in report.violations[:SHOWN]:
        out.answer(f"\n{out.style('violated', 'red')} {violation.promise}: {violation.what}")
        for line in violation.lines[-12:]:
            out.answer(f"    {_entry(line, violation.lines[0])}")
    count = len(report.violations)
    verdict = f"{count} violation{'s' * (count != 1)}; see {report.folder}" if count else "every promise was kept"
    out.answer(f"\n{out.style(verdict, 'green' if report.held else 'red')} (seed {report.seed})")


def _entry(line: dict[str, Any], first: dict[str, Any]) -> str:
    """A line of history: seconds since the first one, who, what, and the rest as it is."""
    rest = " ".join(
        f"{name}={value}" for name, value in line.items() if name not in _TOLD and value not in (None, False, "")
    )
    who = f"{line.get('role', '?')}[{line.get('pid', '?')}]"
    return f"{line['mono'] - first['mono']:+8.3f} s  {who}  {line['kind']}  {rest}".rstrip()
