"""What a process counts: values that cost an addition, and sources that are asked when somebody wants to know."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from agentmesh.errors import DefinitionError
from agentmesh.metrics.family import Family, Kind, Sample, merge
from agentmesh.metrics.text import LABEL, NAME

log = logging.getLogger("agentmesh.metrics")

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds for durations."""

MOST_LABELS = 1_000
"""Sets of labels a name may have; what comes beyond is counted under `(other)`: a label must not eat the memory."""

Source = Callable[[], Iterable[Family]]


class Value:
    """A counter, which only grows, or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        self.value += amount

    def set(self, value: float) -> None:
        """Of a gauge."""
        self.value = value

    def samples(self, labels: dict[str, str]) -> list[Sample]:
        return [Sample(labels, self.value)]


class Histogram:
    """How values are spread: how many were at most each bound, how many in all, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, fraction: float) -> float:
        """The bound that `fraction` (0.0 to 1.0) of the values do not exceed; 0 if there are none."""
        wanted = fraction * self.count
        for bound, total in zip(self.bounds, accumulate(self.counts), strict=False):
            if total >= wanted:
                return bound if total else 0.0
        return float("inf")

    def samples(self, labels: dict[str, str]) -> list[Sample]:
        """As Prometheus wants them: cumulative."""
        totals = list(accumulate(self.counts))
        bounds = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        buckets = [
            Sample({**labels, "le": bound}, total, "_bucket") for bound, total in zip(bounds, totals, strict=True)
        ]
        return [*buckets, Sample(labels, self.sum, "_sum"), Sample(labels, totals[-1], "_count")]


class Metrics:
    """The figures of one process."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[Kind, str, tuple[str, ...]]] = {}
        self._values: dict[str, dict[tuple[str, ...], Value | Histogram]] = {}
        self._sources: list[Source] = []
        self.process = ""
        """What it is called among the others; see `serve`."""

    def counter(self, name: str, help: str, /, **labels: object) -> Value:
        """The counter of that name and these labels, made at the first call; its name ends in `_total`.

        Raises:
            DefinitionError: The name or a label cannot be, or is something else already.
        """
        found = self._get("counter", name, help, labels, Value)
        assert isinstance(found, Value)
        return found

    def gauge(self, name: str, help: str, /, **labels: object) -> Value:
        """Like `counter`, for what goes up and down."""
        found = self._get("gauge", name, help, labels, Value)
        assert isinstance(found, Value)
        return found

    def histogram(self, name: str, help: str, /, *, bounds: Sequence[float] = SECONDS, **labels: object) -> Histogram:
        """Like `counter`, for durations and sizes. `bounds`: ascending."""
        found = self._get("histogram", name, help, labels, lambda: Histogram(bounds))
        assert isinstance(found, Histogram)
        return found

    def add_source(self, source: Source) -> Callable[[], None]:
        """Ask `source` for families whenever somebody wants the figures.

        Returns:
            What to call to have it asked no more.
        """
        self._sources.append(source)
        return lambda: self._sources.remove(source) if source in self._sources else None

    def families(self) -> list[Family]:
        """Everything that is known now."""
        own = [self._family(name) for name in self._families]
        for source in list(self._sources):
            try:
                own += source()
            except Exception:  # one source that fails must not keep the others from being read
                log.exception("a source of metrics failed")
        return merge(own)

    def _family(self, name: str) -> Family:
        kind, help, names = self._families[name]
        samples = [
            sample
            for values, one in self._values[name].items()
            for sample in one.samples(dict(zip(names, values, strict=True)))
        ]
        return Family(name, kind, help, samples)

    def _get(
        self, kind: Kind, name: str, help: str, labels: dict[str, object], make: Callable[[], Value | Histogram]
    ) -> Value | Histogram:
        names, values = tuple(labels), tuple(map(str, labels.values()))
        known = self._families.get(name)
        if known is None:
            _check(kind, name, names)
            self._families[name], self._values[name] = (kind, help, names), {}
        elif (known[0], known[2]) != (kind, names):
            raise DefinitionError(name, f"is a {known[0]} with the labels {', '.join(known[2]) or '(none)'} already")
        ones = self._values[name]
        found = ones.get(values)
        if found is None:
            if len(ones) >= MOST_LABELS:
                values = ("(other)",) * len(names)
            found = ones.setdefault(values, make())
        return found


def _check(kind: Kind, name: str, labels: tuple[str, ...]) -> None:
    if NAME.fullmatch(name) is None:
        raise DefinitionError(name, "is no name of a metric: letters, digits and '_', not beginning with a digit")
    if kind == "counter" and not name.endswith("_total"):
        raise DefinitionError(name, "the name of a counter ends in _total")
    for label in labels:
        if LABEL.fullmatch(label) is None or label in ("le", "process"):
            raise DefinitionError(name, f"{label!r} is no label of a metric")
