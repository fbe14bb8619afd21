"""Progress of long work, on standard error: a bar where somebody watches, lines with `--verbose`, else nothing."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from agentmesh.cli.output import Output


class Bar:
    """`with Bar(out, "reviewing", total=12) as bar: bar.at(3, "a.py")`.

    Args:
        out: Where to.
        what: What is under way.
        total: How many steps; None while that is not known.
        fraction: Steps are fractions of one thing, shown in percent, and not a count.
    """

    def __init__(self, out: Output, what: str, *, total: float | None = None, fraction: bool = False) -> None:
        self._out = out
        self._what = what
        self._total = 1.0 if fraction else total
        self._fraction = fraction
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._out.live:
            self._progress = self._make()
            self._progress.start()
            self._task = self._progress.add_task(self._what, total=self._total, text="")
        return self

    def _make(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        count = TaskProgressColumn() if self._fraction else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), count, Elapsed(), TextColumn("{task.fields[text]}"))
        return Progress(*columns, console=Console(stderr=True), transient=True)

    def at(self, done: float, text: str = "", total: float | None = None) -> None:
        """So far `done` steps; `text` says what is done now."""
        if self._progress is not None and self._task is not None:
            known = {} if total is None else {"total": total}
            self._progress.update(self._task, completed=done, text=text, **known)  # type: ignore[arg-type]
        elif self._out.verbose:
            share = f"{done:.0%}" if self._fraction else f"{done:g}" + (f"/{self._total:g}" if self._total else "")
            self._out.note(f"{self._what}: {share} {text}".rstrip())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
