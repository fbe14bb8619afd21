"""Which sentences say most about a question: BM25, with sentences as the documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentmesh.agents.llm.backends.offline.text import sentences, stems

K1, B = 1.2, 0.6


@dataclass(frozen=True)
class Piece:
    """A sentence, and where it is from."""

    text: str
    source: str = ""
    """Title of the document; empty for what was said."""
    weight: float = 1.0
    place: int = 0


@dataclass(frozen=True)
class Found:
    """A sentence that fits."""

    piece: Piece
    score: float
    covers: float
    """Fraction of what was asked for that the sentence has, rare words counting more; 0.0 to 1.0."""


class Index:
    """Sentences that can be asked.

    Args:
        pieces: In their order.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = list(pieces)
        self._counts = [Counter(stems(f"{piece.source} {piece.text}")) for piece in self.pieces]
        self._lengths = [sum(counts.values()) for counts in self._counts]
        self._mean = sum(self._lengths) / max(1, len(self._lengths)) or 1.0
        self._spread = Counter(stem for counts in self._counts for stem in counts)

    def idf(self, stem: str) -> float:
        count = self._spread[stem]
        return math.log(1 + (len(self.pieces) - count + 0.5) / (count + 0.5))

    def ask(self, question: Sequence[str]) -> list[Found]:
        """The sentences that have any of these stems, the best first; of equals the earlier."""
        wanted = list(dict.fromkeys(question))
        worth = {stem: self.idf(stem) if self._spread[stem] else math.log(2 + len(self.pieces)) for stem in wanted}
        whole = sum(worth.values()) or 1.0
        found = []
        for piece, counts, length in zip(self.pieces, self._counts, self._lengths, strict=True):
            shared = [stem for stem in wanted if counts[stem]]
            if not shared:
                continue
            norm = K1 * (1 - B + B * length / self._mean)
            score = sum(worth[stem] * counts[stem] * (K1 + 1) / (counts[stem] + norm) for stem in shared)
            found.append(Found(piece, score * piece.weight, sum(worth[stem] for stem in shared) / whole))
        return sorted(found, key=lambda one: (-one.score, one.piece.place))

    def central(self, count: int) -> list[Piece]:
        """The sentences that say most of the whole, in their order: those with the words that come up most."""
        frequent = Counter({stem: number for stem, number in self._spread.items() if number > 1})

        def worth(index: int) -> float:
            counts = self._counts[index]
            early = 1.35 if self.pieces[index].place == 0 else 1.0
            return early * sum(frequent[stem] for stem in counts) / (6 + self._lengths[index])

        best = sorted(range(len(self.pieces)), key=lambda index: (-worth(index), index))[:count]
        return [self.pieces[index] for index in sorted(best)]


def pieces_of(text: str, source: str = "", weight: float = 1.0) -> list[Piece]:
    """The sentences of a text."""
    return [Piece(sentence, source, weight, place) for place, sentence in enumerate(sentences(text))]
