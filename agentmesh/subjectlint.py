"""Subjects and queue groups that do not fit together, in code and in what a broker has.

    for use in uses(Path("agents.py").read_text()):
        if (problem := misuse(use)):
            print(use.line, problem.says, problem.fix)

A queue group gives each message to one of its members: right for work, wrong for what everybody should hear and for
what has an address. Code is read, not run: calls of `subscribe`, `publish` and `request` with a `subject`, whose
variable parts count as one token.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from agentmesh.subjects import may_overlap


@dataclass(frozen=True)
class Use:
    """One use of a subject."""

    verb: str
    """`subscribe`, `publish` or `request`."""
    subject: str
    """With `*` for what is not known."""
    queue: str | None = None
    """Of a subscription: empty without a group, None if it is not known."""
    line: int = 0


@dataclass(frozen=True)
class Misuse:
    """What is wrong with a use, and what to do."""

    says: str
    fix: str


BROADCASTS = {
    "ai.agent.topic.>": "events of a topic",
    "ai.agent.control.>": "control messages",
    "ai.agent.events.>": "what happened",
    "ai.gateway.cache.invalidate.*": "invalidations of caches",
    "ai.gateway.rate-limit.*": "events about limits",
}
"""What everybody who listens is to get."""

WORK = {
    "svc.>": "requests",
    "ai.agent.tools.>": "tool calls",
    "ai.agent.memory.>": "memory operations",
    "ai.gateway.requests.*": "model requests",
    "ai.rag.ingest.*": "documents",
    "ai.rag.queries.*": "queries",
    "ai.agent.tasks.>": "tasks",
}
"""What one of several is to do."""

UNANSWERED = {
    "ai.gateway.responses.*": "ai.gateway.requests.TENANT",
    "ai.rag.results.*": "ai.rag.queries.TENANT",
    "ai.rag.status.*": "ai.rag.ingest.TENANT",
}
"""Where answers are published and nobody answers, and where to ask instead."""

_DOOR = "ai.agent.message.*"
_KEEPERS = "doors"
"""Those of `agentmesh up`, which forward what comes there."""
_MAIL = "ai.agent.message.*.*"


def misuse(use: Use) -> Misuse | None:
    """What is wrong with it; None if nothing is, or nothing can be known."""
    if use.verb == "request":
        return _unanswered(use)
    return _subscribed(use) if use.verb == "subscribe" else None


def _unanswered(use: Use) -> Misuse | None:
    for pattern, instead in UNANSWERED.items():
        if _within(use.subject, pattern):
            return Misuse(f"a request to {use.subject}: nobody answers there", f"request on {instead}")
    return None


def _subscribed(use: Use) -> Misuse | None:
    group = "a queue group" if use.queue is None else f"the queue group {use.queue!r}"
    for pattern, what in BROADCASTS.items():
        if pattern == "ai.agent.topic.>" and (use.queue or "").startswith("agent."):
            continue  # replicas of one agent: each agent hears it once
        if use.queue != "" and _within(use.subject, pattern):
            says = f"{use.subject} with {group}: of {what} only one member of the group gets each"
            return Misuse(says, "leave the queue out: everybody who subscribes gets it")
    if use.queue not in ("", _KEEPERS) and _within(use.subject, _DOOR):
        if use.queue is None or use.queue.startswith("agent."):
            problem = "every agent is a group of its own and gets all messages of the tenant"
        else:
            problem = "a message goes to any one member, whomever it is for"
        says = f"{use.subject} with {group}: {problem}"
        return Misuse(says, "subscribe to the agent's own subject: ai.agent.message.TENANT.AGENT")
    if use.queue and _within(use.subject, _MAIL):
        agent = use.subject.rpartition(".")[2]
        if agent != "*" and "*" not in use.queue and use.queue != f"agent.{agent}":
            says = f"{use.subject} with {group}: that agent's group is agent.{agent}, so each message is handled twice"
            return Misuse(says, f"use the queue group agent.{agent}, or a topic")
    if use.queue == "":
        for pattern, what in WORK.items():
            if _within(use.subject, pattern) and ">" not in use.subject:
                says = f"{use.subject} without a queue group: of several subscribers each does all {what}"
                return Misuse(says, 'give a queue, such as queue="agent.workers"')
    return None


def _within(subject: str, pattern: str) -> bool:
    """Whether all that the subject stands for may be of that pattern; a subject that is all wildcards is of none."""
    first = subject.split(".")[0]
    return first not in ("*", ">", "") and may_overlap(subject, pattern)


# ------------------------------------------------------------ code


def uses(code: str) -> Iterator[Use]:
    """Every use of a subject in a source file; nothing if it cannot be parsed."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            verb = node.func.attr
            if verb in ("subscribe", "publish", "request", "publish_with_retry"):
                named = {keyword.arg: keyword.value for keyword in node.keywords}
                given = named.get("subject") or (node.args[0] if node.args else None)
                subject = _pattern(given) if given is not None else ""
                if subject:
                    yield Use(verb.partition("_")[0], subject, _group(named.get("queue")), node.lineno)


def _group(node: ast.expr | None) -> str | None:
    if node is None:
        return ""
    return _pattern(node) or None


def _pattern(node: ast.expr) -> str:
    """A text with `*` for each part that is not known; empty if nothing is."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        tokens = "".join(parts).split(".")
        return ".".join("*" if "\0" in token else token for token in tokens)
    return ""
