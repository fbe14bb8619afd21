"""The form in which figures travel: families of samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]


class Sample(msgspec.Struct, array_like=True):
    """One figure."""

    labels: dict[str, str]
    value: float
    suffix: str = ""
    """Of the name: `_bucket`, `_sum` or `_count` in a histogram."""


class Family(msgspec.Struct):
    """All figures of one name."""

    name: str
    kind: Kind
    help: str
    samples: list[Sample] = []

    def add(self, value: float, **labels: object) -> None:
        """One more figure."""
        self.samples.append(Sample({name: str(label) for name, label in labels.items()}, float(value)))


def merge(families: Iterable[Family]) -> list[Family]:
    """One family of each name, by name. Of two that say they are different things, the first one is kept."""
    merged: dict[str, Family] = {}
    for family in families:
        known = merged.get(family.name)
        if known is None:
            merged[family.name] = Family(family.name, family.kind, family.help, list(family.samples))
        elif known.kind == family.kind:
            known.samples += family.samples
    return [merged[name] for name in sorted(merged)]
