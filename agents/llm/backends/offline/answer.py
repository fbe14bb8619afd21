"""The text of an answer: what kind is wanted, and how it is made from what there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from agentmesh.agents.llm.backends.offline.arithmetic import worked_out
from agentmesh.agents.llm.backends.offline.knowledge import FACTS, WHO
from agentmesh.agents.llm.backends.offline.material import Material, plain
from agentmesh.agents.llm.backends.offline.rank import Found, Index, Piece, pieces_of
from agentmesh.agents.llm.backends.offline.text import clipped, stems, words

ENOUGH = 0.45
"""Of what was asked for, a sentence must have this fraction to count as an answer."""

LONGEST_LIST = 50

_NUMBERS = {word: n for n, word in enumerate("one two three four five six seven eight nine ten".split(), 1)}  # noqa: SIM905
_GREETING = re.compile(r"^\W*(hi|hello|hey|good (?:morning|afternoon|evening)|greetings)\b[^?]{0,40}$", re.IGNORECASE)
_THANKS = re.compile(r"^\W*(thanks|thank you|thx|cheers)\b", re.IGNORECASE)
_WHO = re.compile(
    r"\b(who are you|what are you|what can you do|your name|what model|are you (?:an? )?(?:ai|bot|human))\b",
    re.IGNORECASE,
)
_SUMMARY = re.compile(r"\b(summari[sz]e|summary|sum up|tl;?dr|gist|in short|key points?|main points?|shorten)\b",
                      re.IGNORECASE)  # fmt: skip
_LIST = re.compile(r"\b(list|bullets?|bullet points?|enumerate|name (?:all|the|some|three|two|\d+))\b", re.IGNORECASE)
_RECALL = re.compile(
    r"\bwhat (?:did|have|had) (?:i|we|you) (?:just |ever )?"
    r"(?:say|said|tell|told|talk|talked|mention|mentioned|discuss(?:ed)?|ask|asked)(?: you)?"
    r"(?:\s+(?:about|regarding|on|of)\s+(?P<topic>.+?))?\s*\??$"
    r"|\bdo you remember\s+(?P<thing>.+?)\s*\??$",
    re.IGNORECASE,
)
_ECHO = re.compile(
    r"^(?:please )?(?:repeat|say|echo)(?: after me)?(?: (?:this|exactly|the following))?\s*[:,]?\s+(?P<text>.+)$",
    re.IGNORECASE | re.DOTALL,
)
_COUNT = re.compile(r"\bhow many (words|sentences|characters|letters)\b", re.IGNORECASE)
_CANNOT = re.compile(
    r"\b(translate|write (?:me )?(?:a|an|some) (?:poem|story|song|essay|code)|"
    r"joke|weather|news|today'?s date|what time)\b",
    re.IGNORECASE,
)


def answer(material: Material) -> str:
    """The answer to what is asked. It says so when there is none."""
    if material.results:
        return _from_results(material)
    for rule in _RULES:
        text = rule(material)
        if text:
            return text
    return _unknown(material)


def summary(pieces: Sequence[Piece], count: int = 3) -> str:
    """The few sentences that say most."""
    return " ".join(_ended(piece.text) for piece in Index(pieces).central(count))


def looked_up(question: str, pieces: Sequence[Piece], enough: float = ENOUGH) -> str:
    """What the sentences say about the question; empty if they do not."""
    found = best(question, pieces, enough)
    if not found:
        return ""
    text = " ".join(_ended(one.piece.text) for one in sorted(found, key=lambda one: pieces.index(one.piece)))
    sources = list(dict.fromkeys(one.piece.source for one in found if one.piece.source))
    return f"{text} [{', '.join(sources)}]" if sources else text


def best(question: str, pieces: Sequence[Piece], enough: float = ENOUGH) -> list[Found]:
    """The sentences that answer, at most three: the best, and those nearly as good."""
    asked = stems(question)
    found = [one for one in Index(pieces).ask(asked) if one.covers >= enough] if asked else []
    return [one for one in found[:3] if one.score >= 0.7 * found[0].score]


def _greeting(material: Material) -> str:
    if _GREETING.match(material.ask):
        return "Hello! Ask me about the text you give me; without any, I can do sums and remember what you say."
    return "You are welcome." if _THANKS.match(material.ask) else ""


def _who(material: Material) -> str:
    return WHO if _WHO.search(material.ask) and not _WHO_ELSE.search(material.ask) else ""


_WHO_ELSE = re.compile(r"\bwhat are you (?:going|doing|talking)\b", re.IGNORECASE)


def _recall(material: Material) -> str:
    asked = _RECALL.search(material.ask)
    if asked is None:
        return ""
    said = material.told
    topic = asked["topic"] or asked["thing"] or ""
    if not said:
        return "You have said nothing before this in our conversation."
    if not stems(topic):
        return "You said: " + " ".join(_quoted(piece.text) for piece in said[-3:])
    found = [one for one in Index(said).ask(stems(topic)) if one.covers >= ENOUGH][:3]
    if not found:
        return f"You have said nothing about {topic.strip(' ?.')} in this conversation."
    quoted = [_quoted(one.piece.text) for one in sorted(found, key=lambda one: said.index(one.piece))]
    return f"About {topic.strip(' ?.')} you said: {' '.join(quoted)}"


def _echo(material: Material) -> str:
    if material.given and not _ECHO.match(material.ask):
        return ""
    asked = _ECHO.match(material.ask)
    return asked["text"].strip().strip("\"'“”") if asked else ""


def _count(material: Material) -> str:
    asked = _COUNT.search(material.ask)
    if asked is None or not material.given:
        return ""
    text = " ".join(piece.text for piece in material.given)
    count = {
        "words": len(words(text)),
        "sentences": len(material.given),
        "characters": len(text),
        "letters": sum(map(str.isalpha, text)),
    }[asked[1].lower()]
    return f"There are {count} {asked[1].lower()}."


def _sum(material: Material) -> str:
    return worked_out(material.ask)


def _summary(material: Material) -> str:
    if not _SUMMARY.search(material.ask):
        return ""
    pieces = material.given or [piece for message in material.said for piece in pieces_of(message.content)]
    if not pieces:
        return "There is nothing to summarise: give me the text."
    count = number_in(material.ask) or 3
    if re.search(r"\b(points|bullets?)\b", material.ask, re.IGNORECASE):
        return bullets(Index(pieces).central(count))
    return summary(pieces, count)


def _list(material: Material) -> str:
    if not _LIST.search(material.ask) or not material.given:
        return ""
    topic = [stem for stem in stems(material.ask) if stem not in _LIST_WORDS]
    found = [one.piece for one in Index(material.given).ask(topic)] if topic else material.given
    count = number_in(material.ask)
    chosen = sorted(found[: count or 5], key=material.given.index)
    items = enumerated(chosen[0].text) if len(chosen) == 1 else []
    return bullets([Piece(item) for item in items[: count or LONGEST_LIST]] or chosen)


_LIST_WORDS = frozenset(stems("list bullet bullets points enumerate name all some text document following items"))


def _given(material: Material) -> str:
    return looked_up(material.ask, material.given)


def _told(material: Material) -> str:
    """From what the user said before, in the second person."""
    found = best(_first_person(material.ask), material.told)
    return " ".join(f"You said: {_quoted(one.piece.text)}" for one in found[:1])


def _heard(material: Material) -> str:
    earlier = [message for message in material.said if message.role == "assistant"]
    return looked_up(material.ask, [piece for message in earlier for piece in pieces_of(message.content)], 0.6)


def _known(material: Material) -> str:
    """What everybody may ask the model itself; not where documents were given, which are to be believed alone."""
    return "" if material.given else looked_up(material.ask, pieces_of(FACTS), 0.5)


def _noted(material: Material) -> str:
    """A statement asks nothing; it is remembered by being in the conversation."""
    if "?" in material.ask or _ORDER.match(material.ask) or len(words(material.ask)) < 4:
        return ""
    return "Noted. Ask me about it."


_ORDER = re.compile(
    r"^\W*(please|can|could|would|will|do|does|did|is|are|was|were|who|what|when|where|why|which|how|tell|give|show|"
    r"find|explain|describe|write|make|create|list|name|say|answer|translate|compare|call|use|send|let|help|if)\b",
    re.IGNORECASE,
)

_RULES: tuple[Callable[[Material], str], ...] = (
    _greeting, _who, _recall, _echo, _count, _summary, _list, _sum, _given, _told, _heard, _known, _noted,
)  # fmt: skip


def _from_results(material: Material) -> str:
    texts = [plain(result) for result in material.results]
    if sum(map(len, texts)) <= 400:
        return (
            "\n".join(_ended(text) if " " in text else text for text in texts if text) or "The tool answered nothing."
        )
    pieces = [piece for text in texts for piece in pieces_of(text)]
    return looked_up(material.ask, pieces, 0.3) or summary(pieces)


def _unknown(material: Material) -> str:
    about = clipped(material.ask.strip().rstrip("?.! "), 120)
    if _CANNOT.search(material.ask) and not material.given:
        return f"I cannot do that: {about}. I only work with text I am given; see what I can do with: what can you do?"
    if material.given:
        return f"I do not know: the text I was given does not say. (Asked: {about})"
    return f"I do not know: I was given no text about this. (Asked: {about})"


def number_in(text: str) -> int:
    """The small number in an order such as `in two sentences`; 0 if there is none."""
    for word in words(text):
        if word in _NUMBERS:
            return _NUMBERS[word]
        if word.isdigit() and 0 < int(word) <= 50:
            return int(word)
    return 0


def enumerated(sentence: str) -> list[str]:
    """The items of `A, B and C` in a sentence; none if it has fewer than three."""
    _, _, tail = sentence.rpartition(":")
    tail = re.split(r"\b(?:are|include|includes|including|such as|consists? of|contains?|has|have|needs?)\b", tail)[-1]
    items = [item.strip(" .;") for item in re.split(r",|;|\band\b|\bor\b", tail)]
    items = [item for item in items if item]
    return items if len(items) >= 3 else []


def bullets(pieces: Sequence[Piece]) -> str:
    return "\n".join(f"- {piece.text.strip()}" for piece in pieces)


def _first_person(question: str) -> str:
    return re.sub(r"\byour?\b", "", question, flags=re.IGNORECASE)


def _quoted(text: str) -> str:
    return f"“{clipped(text.strip(), 300)}”"


def _ended(text: str) -> str:
    text = text.strip()
    return text if text[-1:] in ".!?…:;”\"')" else f"{text}."
