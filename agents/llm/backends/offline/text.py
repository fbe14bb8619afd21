"""Sentences and words of English text, as plainly as it can be done."""

from __future__ import annotations

import re

_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9À-Þ])")
_LINE = re.compile(r"\n\s*(?:[-*•]\s+|\d{1,3}[.)]\s+)?|^\s*(?:[-*•]\s+|\d{1,3}[.)]\s+)")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|Mr|Mrs|Ms|Dr|Prof|St|No|approx|Fig|cf)|\b[A-Z])\.$")
_BLANK = re.compile(r"\s{3,}")
_LONGEST = 500
"""Characters of a sentence to which another one is joined."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SUFFIXES = (
    ("ational", "ate"), ("ization", "ize"), ("fulness", "ful"), ("ities", "y"), ("ness", ""), ("ments", ""),
    ("ment", ""), ("ingly", ""), ("edly", ""), ("ies", "y"), ("ied", "y"), ("sses", "ss"), ("ings", ""), ("ing", ""),
    ("ions", ""), ("ion", ""), ("ers", ""), ("er", ""), ("ed", ""), ("es", ""), ("ly", ""), ("s", ""), ("e", ""),
)  # fmt: skip

STOPWORDS = frozenset(
    """a about above after again all also am an and any are as at be been before being below between both but by can
    could did do does doing down during each either else ever few for from further get give given gives had has have
    having he her here hers him his how i if in into is it its itself just know let may me might mine more most much
    must my myself no nor not now of off on once one only or other our ours out over own please said same say says
    shall she should so some such tell than that the their theirs them then there these they thing things this those
    through to too under until up us very was we were what when where which while who whom whose why will with would
    yes you your yours describe explain show answer question find look mean""".split()  # noqa: SIM905
)


def tidied(text: str) -> str:
    """Without long gaps: what looks for the end of each takes its time."""
    return _BLANK.sub(lambda gap: "\n\n" if "\n" in gap.group() else "  ", text)


def sentences(text: str) -> list[str]:
    """The sentences of a text, without marks of lists; each line is one at least."""
    found: list[str] = []
    for line in _LINE.split(text):
        parts = [part for part in _END.split(line.strip()) if part]
        for part in parts:
            last = found[-1] if found and part is not parts[0] else ""
            if last and len(last) < _LONGEST and _ABBREVIATION.search(last[-12:]):
                found[-1] = f"{last} {part}"
            else:
                found.append(part)
    return [sentence for sentence in found if _WORD.search(sentence)]


def words(text: str) -> list[str]:
    """The words, in lower case."""
    return [word.lower().replace("’", "'").removesuffix("'s") for word in _WORD.findall(text)]


def stem(word: str) -> str:
    """What different forms of a word have in common, roughly."""
    if len(word) <= 3 or word[0].isdigit():
        return word
    for suffix, other in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not (suffix == "s" and word.endswith("ss")):
            root = word[: len(word) - len(suffix)] + other
            return root[:-1] if len(root) > 3 and root[-1] == root[-2] and root[-1] not in "lsz" else root
    return word


def stems(text: str) -> list[str]:
    """The stems of the words that mean something."""
    return [stem(word) for word in words(text) if word not in STOPWORDS]


def clipped(text: str, longest: int) -> str:
    """The text, shortened at a word if it is too long."""
    if len(text) <= longest:
        return text
    return text[:longest].rsplit(" ", 1)[0].rstrip(",;:-") + " …"
