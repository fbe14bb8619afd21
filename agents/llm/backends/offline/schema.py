"""Values that fit a JSON schema, from what a text says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentmesh.agents.llm.backends.offline.arithmetic import expression_in
from agentmesh.agents.llm.backends.offline.text import STOPWORDS, clipped, sentences, stem, stems, words

Schema = Mapping[str, Any]

MISSING: Any = object()
"""The text says nothing that would fit."""

LONGEST = 20_000
"""Characters that are looked at: rules that look for everything everywhere take their time."""

_DEEP = 12
_NUMBER = re.compile(r"(?<![\w.-])-?\d{1,18}(?:,\d{3}){0,5}(?:\.\d{1,18})?(?![\w-])")
_QUOTED = re.compile(r"[\"“”`]([^\"“”`]+)[\"“”`]|(?<!\w)'([^']+)'(?!\w)")
_LINE = r"[;\n]|\.(?:\s|$)|$"
_NAME = r"[A-ZÀ-Þ][\w'’-]*(?:\s+(?:(?:de|van|von|of|la)\s+)?[A-ZÀ-Þ][\w'’-]*)*"
_FORMATS = {
    "email": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    "uri": re.compile(r"https?://[^\s<>\"')]+[^\s<>\"').,;]"),
    "date": re.compile(r"\b\d{4}-\d{2}-\d{2}\b"),
    "date-time": re.compile(r"\b\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2})?(?:Z|[+-]\d{2}:\d{2})?"),
    "time": re.compile(r"\b\d{1,2}:\d{2}(?::\d{2})?\b"),
    "uuid": re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"),
}
_FORMAT_BY_NAME = {"email": "email", "mail": "email", "url": "uri", "link": "uri", "uri": "uri", "date": "date"}
_PLACES = frozenset({"city", "location", "place", "town", "country", "destination", "region", "origin", "address"})
_WHOLE = frozenset(
    {"query", "question", "q", "text", "prompt", "message", "input", "content", "search", "request", "topic", "body",
     "term", "task", "subject", "goal", "description"}
)  # fmt: skip
_SUMS = frozenset({"expression", "formula", "calculation", "equation", "expr"})
_FILES = frozenset({"path", "file", "filename", "filepath"})
_NO = re.compile(r"\b(?:no|not|false|without|disabled?|off|never|isn't|doesn't)\b", re.IGNORECASE)


class Filler:
    """Fills schemas from a text.

    Args:
        text: What is said.
        root: The whole schema, in which `$ref` looks.
        whole: For fields that want all of it, such as `query`; by default the text.
        answer: Makes the text of fields that want an answer, such as `summary`.
    """

    def __init__(
        self, text: str, root: Schema, *, whole: str | None = None, answer: Callable[[str], str] | None = None
    ) -> None:
        self._text = text[:LONGEST]
        self._root = root
        self._whole = self._text if whole is None else whole
        self._answer = answer
        self._used: set[tuple[int, int]] = set()

    def filled(self, schema: Schema, name: str = "", depth: int = 0) -> Any:
        """A value that fits: what the text says, else the schema's default, null, or the emptiest there is."""
        schema = self._resolved(schema)
        value = self.said(schema, name, depth)
        if value is not MISSING:
            return value
        if "default" in schema:
            return schema["default"]
        return self._emptiest(schema, depth)

    def said(self, schema: Schema, name: str, depth: int = 0) -> Any:
        """The value that the text says, or `MISSING`."""
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._one_of(schema["enum"], name)
        kind = _type(schema)
        if depth > _DEEP:
            return MISSING
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind in ("integer", "number"):
            return self._number(schema, name, kind)
        if kind == "boolean":
            return self._boolean(name)
        return self._string(schema, name) if kind == "string" else MISSING

    def _object(self, schema: Schema, depth: int) -> Any:
        required = schema.get("required", ())
        found = {}
        for name, inner in schema.get("properties", {}).items():
            value = self.said(inner, name, depth + 1)
            if value is MISSING and name not in required:
                continue
            found[name] = self.filled(inner, name, depth + 1) if value is MISSING else value
        return found if found or not depth or not required else MISSING

    def _array(self, schema: Schema, name: str, depth: int) -> Any:
        items = self._resolved(schema.get("items", {}))
        most = schema.get("maxItems", 50)
        kind = _type(items)
        if kind in ("integer", "number"):
            numbers = [_as(kind, found) for found in _NUMBER.findall(self._text)]
            return numbers[:most] or MISSING
        if "enum" in items:
            return [value for value in items["enum"] if _has(self._text, str(value))][:most] or MISSING
        if kind == "object":
            rows = [Filler(part, self._root).said(items, name, depth + 1) for part in sentences(self._text)]
            wanted = set(items.get("required", ()))
            return [row for row in rows if isinstance(row, dict) and _tells(row) and wanted <= row.keys()][
                :most
            ] or MISSING
        if kind == "string":
            return self._strings(name)[:most] or MISSING
        return MISSING

    def _strings(self, name: str) -> list[str]:
        if (form := _FORMATS.get(_FORMAT_BY_NAME.get(_singular(name), ""))) is not None:
            return list(dict.fromkeys(form.findall(self._text)))
        labelled = self._labelled(name, _LINE) or self._labelled(_singular(name), _LINE)
        source = labelled or next(iter(re.findall(r":\s*([^:\n]+(?:,[^:\n]+)+)", self._text)), "")
        if source:
            return [item.strip(" .;") for item in re.split(r",|;|\band\b", source) if item.strip(" .;")]
        lines = [line for line in self._text.splitlines() if re.match(r"\s*(?:[-*•]|\d+[.)])\s+", line)]
        if lines:
            return [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", line).strip() for line in lines]
        if _singular(name) in ("keyword", "tag", "topic", "label"):
            return keywords(self._text)
        if _singular(name) in ("name", "person", "people", "entity", "place", "city", "author"):
            return names(self._text)
        if _singular(name) in ("sentence", "point", "fact", "item", "line", "step", "bullet"):
            return sentences(self._text)
        return []

    def _number(self, schema: Schema, name: str, kind: str) -> Any:
        near = self._near(name)
        for text, start in near:
            for found in _NUMBER.finditer(text):
                place = (start + found.start(), start + found.end())
                value = _as(kind, found.group())
                if place in self._used or not _fits(value, schema) or (kind == "integer" and "." in found.group()):
                    continue
                self._used.add(place)
                return value
        return MISSING

    def _near(self, name: str) -> list[tuple[str, int]]:
        """Parts of the text that may have the value of `name`, the likeliest first."""
        found = []
        for word in _parts(name):
            for match in re.finditer(rf"\b{re.escape(word)}\w*\b", self._text, re.IGNORECASE):
                after = self._text[match.end() : match.end() + 40]
                found.append((re.split(r"[;\n]|\.\s|,(?!\d)", after)[0], match.end()))
                begin = max(0, match.start() - 12)
                found.append((self._text[begin : match.start()], begin))
        if "age" in _parts(name):
            found += [(m.group(), m.start()) for m in re.finditer(r"(?<!\d)\d{1,3}[\s-]years?[\s-]old", self._text)]
        return [*found, (self._text, 0)]

    def _boolean(self, name: str) -> Any:
        labelled = self._labelled(name)
        if labelled:
            return not _NO.search(labelled)
        for sentence in sentences(self._text):
            if any(stem(word) in stems(sentence) for word in _parts(name)):
                return not _NO.search(sentence)
        return MISSING

    def _one_of(self, values: Sequence[Any], name: str) -> Any:
        labelled = self._labelled(name)
        for source in (labelled, self._text):
            found = [value for value in values if value is not None and _has(source, str(value))]
            if found:
                return min(found, key=lambda value: _where(source, str(value)))
        spoken = set(stems(self._text))
        found = [value for value in values if spoken & set(stems(str(value).replace("_", " ")))]
        return found[0] if found else MISSING

    def _string(self, schema: Schema, name: str) -> Any:
        value = self._some_string(schema, name)
        longest = schema.get("maxLength")
        return value[:longest] if isinstance(value, str) and isinstance(longest, int) else value

    def _some_string(self, schema: Schema, name: str) -> Any:
        last = _parts(name)[-1:] or [""]
        form = _FORMATS.get(schema.get("format") or _FORMAT_BY_NAME.get(last[0], ""))
        if form is not None:
            found = form.search(self._text)
            return found.group() if found else MISSING
        if isinstance(schema.get("pattern"), str):
            return _matching(schema["pattern"], self._text)
        if last[0] in _SUMS:
            return expression_in(self._text) or MISSING
        if last[0] in _FILES and (path := re.search(r"(?:[\w.~-]*/)+[\w.-]+|\b[\w-]+\.[a-z0-9]{1,5}\b", self._text)):
            return path.group()
        labelled = self._labelled(name)
        if labelled:
            return labelled
        quoted = next((one or other for one, other in _QUOTED.findall(self._text)), "")
        if last[0] in _PLACES:
            return self._place() or quoted or MISSING
        if self._answer is not None and (text := self._answer(last[0])):
            return text
        if last[0] in _WHOLE:
            return quoted or self._whole or MISSING
        if last[0] in ("name", "person", "author", "who", "customer", "user", "recipient"):
            return next(iter(names(self._text)), quoted) or MISSING
        if last[0] == "title":
            return clipped(next(iter(sentences(self._text)), "").rstrip("."), 60) or MISSING
        return quoted or MISSING

    def _labelled(self, name: str, end: str = r"[;\n]|\.(?:\s|$)|,\s|$") -> str:
        """What stands behind `name:`, `name is`, `name =`, up to `end`."""
        label = r"[\s_-]*".join(map(re.escape, _parts(name)))
        if not label:
            return ""
        found = re.search(rf"\b{label}\b\s*(?::|=|\bis\b|\bare\b|\bwas\b)\s*(.+?)\s*(?:{end})",
                          self._text, re.IGNORECASE)  # fmt: skip
        return found[1].strip("\"'“” ") if found else ""

    def _place(self) -> str:
        found = re.search(rf"\b(?:in|at|for|from|to|near|of)\s+({_NAME})", self._text)
        return found[1] if found else next(iter(names(self._text)), "")

    def _emptiest(self, schema: Schema, depth: int) -> Any:
        if _nullable(schema):
            return None
        if schema.get("enum"):
            return schema["enum"][0]
        kind = _type(schema)
        if kind == "object" and depth <= _DEEP:
            required = schema.get("required", ())
            inner = schema.get("properties", {})
            return {name: self.filled(inner[name], name, depth + 1) for name in required if name in inner}
        if kind == "array":
            return [self._emptiest(self._resolved(schema.get("items", {})), depth + 1)] * min(
                schema.get("minItems", 0), 50
            )
        if kind in ("integer", "number"):
            return _as(kind, str(max(0, schema.get("minimum", 0))))
        return {"boolean": False, "string": "", "null": None}.get(kind)

    def _resolved(self, schema: Any) -> Schema:
        """Without `$ref`, and of alternatives the first that is not null."""
        for _ in range(_DEEP):
            if not isinstance(schema, Mapping):
                return {}
            if isinstance(reference := schema.get("$ref"), str):
                target: Any = self._root
                for part in reference.removeprefix("#/").split("/") if reference.startswith("#/") else ():
                    target = target.get(part, {}) if isinstance(target, Mapping) else {}
                schema = target
                continue
            options = schema.get("anyOf") or schema.get("oneOf")
            if not options:
                every = schema.get("allOf")
                if every and len(every) == 1:
                    schema = {**schema, **self._resolved(every[0]), "allOf": None}
                return dict(schema)
            chosen = next((one for one in options if _type(one) != "null"), options[0])
            nullable = any(isinstance(one, Mapping) and one.get("type") == "null" for one in options)
            rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
            schema = {**rest, **self._resolved(chosen), **({"nullable": True} if nullable else {})}
        return {}


def names(text: str) -> list[str]:
    """Proper names: words that begin with a capital, though no sentence does there."""
    found = []
    for sentence in sentences(text):
        for match in re.finditer(_NAME, sentence):
            name = match.group()
            if match.start() == 0 and (name.split()[0].lower() in STOPWORDS or len(name.split()) == 1):
                rest = name.split()[1:]
                follows = re.match(r"\s+(?:is|was|has|lives?|works?|met|said)\b", sentence[match.end() :])
                if not rest and (follows is None or name.lower() in STOPWORDS):
                    continue
                name = " ".join(rest) or name
            if name.lower() not in STOPWORDS and not re.fullmatch(r"(?:I|Monday|What|Who|Where|Please)\b.*", name):
                found.append(re.sub(r"['’]s$", "", name))
    return list(dict.fromkeys(found))


def keywords(text: str, count: int = 5) -> list[str]:
    """The words that come up most, then the longest."""
    spoken = [word for word in words(text) if word not in STOPWORDS and len(word) > 3]
    return sorted(dict.fromkeys(spoken), key=lambda word: (-spoken.count(word), -len(word), spoken.index(word)))[:count]


def _type(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return ""
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if isinstance(kind, str):
        return kind
    return "object" if "properties" in schema else "array" if "items" in schema else "string"


def _nullable(schema: Schema) -> bool:
    kind = schema.get("type")
    return bool(schema.get("nullable")) or kind == "null" or (isinstance(kind, list) and "null" in kind)


def _parts(name: str) -> list[str]:
    """The words of a name such as `userName` or `user_name`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [part.lower() for part in re.split(r"[\s_-]+", spaced) if part]


def _singular(name: str) -> str:
    last = (_parts(name) or [""])[-1]
    return f"{last[:-3]}y" if last.endswith("ies") else last.removesuffix("s")


def _as(kind: str, text: str) -> int | float:
    value = float(text.replace(",", ""))
    return int(value) if kind == "integer" or (value.is_integer() and "." not in text) else value


def _fits(value: float, schema: Schema) -> bool:
    least, most = schema.get("minimum"), schema.get("maximum")
    return (least is None or value >= least) and (most is None or value <= most)


def _has(text: str, value: str) -> bool:
    return (
        re.search(rf"(?<!\w){re.escape(value.replace('_', ' '))}(?!\w)", text.replace("_", " "), re.IGNORECASE)
        is not None
    )


def _where(text: str, value: str) -> int:
    return text.replace("_", " ").lower().find(value.replace("_", " ").lower())


def _matching(pattern: str, text: str) -> Any:
    try:
        found = re.compile(pattern.removeprefix("^").removesuffix("$")).search(text)
    except re.error:
        return MISSING
    return found.group() if found and found.group() else MISSING


def _tells(row: Mapping[str, Any]) -> bool:
    return any(value not in ("", None, [], {}) for value in row.values())
