"""The judge: from what was recorded and what the streams hold, which promises were broken.

It uses nothing of agentmesh but its histories: it neither encodes, decodes nor decides anything the way the product
does. Every violation carries the lines of history that show it.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from agentmesh.chaos.evidence import Evidence
from agentmesh.chaos.history import Entry
from agentmesh.chaos.windows import Windows

NOTICE = 1.0
"""Seconds from a decision until a worker has noticed it, when nothing is broken. Promised: 0.5."""

SETTLE = 4.0
"""Seconds after a fault of broker or links in which everything may still be late, beside `ack_wait`."""

EARLY = 0.05
"""Seconds by which the clocks of broker and submitter may differ: they are the same clock here."""

ASK_SLACK = 1.0
"""Seconds by which an asker may learn later than its timeout that there is no answer."""

GROWTH = 24 * 1024 * 1024
"""Bytes by which a process may grow in the later half of its life."""

FLAT_AFTER = 60.0
"""Seconds a process must live for its memory to be judged."""


@dataclass(frozen=True)
class Violation:
    """A broken promise."""

    promise: str
    what: str
    lines: list[Entry] = field(default_factory=list)
    """Of the history, oldest first."""


@dataclass
class Story:
    """All that is known about one task."""

    task_id: str
    lines: list[Entry] = field(default_factory=list)
    results: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """As stored: when on the monotonic clock, and what."""

    def of(self, *kinds: str) -> list[Entry]:
        return [line for line in self.lines if line["kind"] in kinds]

    def first(self, kind: str) -> Entry | None:
        return next(iter(self.of(kind)), None)


class Checker:
    """Checks one run: `Checker(evidence).violations()`."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.windows = Windows(evidence.history, evidence.ack_wait + SETTLE)
        self.held_up = Windows(evidence.history, 0.0, without="link-acks")
        """When a delivery may have been held up or have been on its way to a process that stood still."""
        self.stories = _stories(evidence)

    def violations(self) -> list[Violation]:
        """All of them, by promise."""
        checks: tuple[Callable[[], Iterator[Violation]], ...] = (
            self._accepted_is_decided,
            self._one_result,
            self._results_do_not_change,
            self._all_readers_agree,
            self._results_have_a_reason,
            self._one_key,
            self._no_effect_after_the_end,
            self._no_start_after_the_end,
            self._no_needless_start,
            self._settled_is_settled,
            self._nothing_is_early,
            self._submits_succeed,
            self._asks_end_in_time,
            self._events_in_order,
            self._everything_drains,
            self._processes_behave,
            self._memory_is_flat,
        )
        return [violation for check in checks for violation in check()]

    # ------------------------------------------------------------ results

    def _accepted_is_decided(self) -> Iterator[Violation]:
        for story in self.stories.values():
            if story.first("accepted") and not story.results:
                yield Violation("accepted = decided", f"{story.task_id} was accepted and has no result", story.lines)

    def _one_result(self) -> Iterator[Violation]:
        for story in self.stories.values():
            if len(story.results) > 1:
                told = ", ".join(f"{body['status']} by {body.get('by')}" for _, body in story.results)
                yield Violation("one result", f"{story.task_id} has {len(story.results)} results: {told}", story.lines)

    def _results_do_not_change(self) -> Iterator[Violation]:
        now = {stored.sequence: stored for stored in self.evidence.results}
        for sequence, before in self.evidence.seen.items():
            if now.get(sequence) != before:
                became = "is gone" if sequence not in now else f"became {now[sequence].data!r}"
                yield Violation("one result", f"result {sequence} ({before.subject}) {became}; it was {before.data!r}")

    def _all_readers_agree(self) -> Iterator[Violation]:
        for story in self.stories.values():
            if not story.results:
                continue
            body = story.results[0][1]
            for line in story.of("decided"):
                if (line["status"], line["by"]) != (body["status"], body.get("by")):
                    text = f"{story.task_id} is {body['status']} by {body.get('by')}, and {line['role']} read otherwise"
                    yield Violation("all readers agree", text, story.lines)
            for line in story.of("cancelled"):
                if line["won"] != (body["status"] == "cancelled"):
                    text = f"{story.task_id} is {body['status']}, and its canceller was told won={line['won']}"
                    yield Violation("all readers agree", text, story.lines)

    def _results_have_a_reason(self) -> Iterator[Violation]:
        for story in self.stories.values():
            submitting = story.first("submitting")
            if submitting is None or not story.results:
                continue
            status = story.results[0][1]["status"]
            if status == "completed" and not story.of("effect"):
                yield Violation("results have a reason", f"{story.task_id} completed without its effect", story.lines)
            wrong = {
                "dead": submitting["step"] != "doomed",
                "expired": submitting["deadline"] is None,
                "failed": True,
            }
            if wrong.get(status, False):
                reason = story.results[0][1].get("reason", "")
                yield Violation("results have a reason", f"{story.task_id} is {status}: {reason}", story.lines)

    # ------------------------------------------------------------ effects and starts

    def _one_key(self) -> Iterator[Violation]:
        owners: dict[str, str] = {}
        for story in self.stories.values():
            keys = {line["key"] for line in story.of("effect")}
            if len(keys) > 1:
                text = f"{story.task_id} had its effect under {len(keys)} keys, so an outside store has it as often"
                yield Violation("effects once per key", text, story.lines)
            for key in keys:
                if owners.setdefault(key, story.task_id) != story.task_id:
                    text = f"{story.task_id} and {owners[key]} have the key {key}"
                    yield Violation("effects once per key", text, story.lines)

    def _no_effect_after_the_end(self) -> Iterator[Violation]:
        """A worker hears of a cancellation at once, or sees it within `ack_wait` when the prompt was lost."""
        for story in self.stories.values():
            if not story.results or story.results[0][1]["status"] not in ("cancelled", "expired"):
                continue
            decided = story.results[0][0]
            for line in story.of("effect"):
                late = line["mono"] - decided
                broken = self.windows.seconds(decided, line["mono"], line["pid"])
                hidden = self.windows.disturbed(decided - 1.0, decided + NOTICE, line["pid"])
                if late > broken + NOTICE + (self.evidence.ack_wait if hidden else 0.0):
                    status = story.results[0][1]["status"]
                    text = f"{story.task_id} had an effect {late:.2f} s after it was {status}"
                    yield Violation("no effect after cancel or expiry", text, story.lines)

    def _no_start_after_the_end(self) -> Iterator[Violation]:
        for story in self.stories.values():
            if not story.results:
                continue
            decided = story.results[0][0]
            for line in story.of("started"):
                late = line["mono"] - decided
                if late > NOTICE and not self.windows.disturbed(decided, line["mono"], line["pid"]):
                    text = f"{story.task_id} was started {late:.2f} s after it was decided"
                    yield Violation("decided is not run again", text, story.lines)

    def _no_needless_start(self) -> Iterator[Violation]:
        """A second start needs a reason: the first failed, its process died or stood still, the broker was away."""
        for story in self.stories.values():
            starts = story.of("started")
            for before, after in itertools.pairwise(starts):
                failed = any(
                    line["kind"] in ("raised", "interrupted") and line["pid"] == before["pid"]
                    for line in story.lines
                    if before["mono"] <= line["mono"] <= after["mono"]
                )
                if not failed and not self.windows.disturbed(before["mono"], after["mono"], before["pid"]):
                    gap = after["mono"] - before["mono"]
                    text = f"{story.task_id} was started again after {gap:.2f} s, and nothing was wrong with its worker"
                    yield Violation("no second run without a reason", text, story.lines)

    def _settled_is_settled(self) -> Iterator[Violation]:
        """What the broker confirmed to be done does not come again.

        Left out are tasks that may have been queued twice: copied there from the door or the schedule, or submitted
        again because there was no answer.
        """
        for story in self.stories.values():
            submitting, accepted, settled = story.first("submitting"), story.first("accepted"), story.first("settled")
            if submitting is None or accepted is None or settled is None or submitting["copied"]:
                continue
            if accepted["seconds"] > 1.0 or story.of("unknown"):
                continue
            again = [line for line in story.of("delivered") if line["mono"] > settled["mono"] + 0.05]
            if again and not self._under_way(story, accepted, settled):
                late = again[0]["mono"] - settled["mono"]
                text = f"{story.task_id} was delivered again {late:.2f} s after the broker had taken it off the queue"
                yield Violation("settled is settled", text, story.lines)

    def _under_way(self, story: Story, accepted: Entry, settled: Entry) -> bool:
        """Whether another delivery may be out already, unread or held up: an acknowledgement does not call it back.

        A server that was killed forgets that it delivered, so the one out may call itself the first, too.
        """
        before = [line for line in story.of("delivered") if line["mono"] <= settled["mono"]]
        if [line["delivery"] for line in before] != [1]:
            return True
        return self.held_up.disturbed(accepted["mono"], settled["mono"], settled["pid"], margin=0.0)

    def _nothing_is_early(self) -> Iterator[Violation]:
        for story in self.stories.values():
            submitting, started = story.first("submitting"), story.first("started")
            if submitting is None or started is None or submitting["delay"] is None:
                continue
            early = submitting["mono"] + submitting["delay"] - started["mono"]
            if early > EARLY:
                text = f"{story.task_id} was started {early:.2f} s before it was due"
                yield Violation("delayed tasks wait until they are due", text, story.lines)

    # ------------------------------------------------------------ submitters and askers

    def _submits_succeed(self) -> Iterator[Violation]:
        for story in self.stories.values():
            for line in story.of("refused"):
                yield Violation("submits outlast 30 s without a broker", f"{story.task_id}: {line['error']}", [line])
            for line in story.of("unknown"):
                broken = self.windows.seconds(line["mono"] - line["seconds"], line["mono"])
                if line["seconds"] < 29.0 or broken < 20.0:
                    text = f"{story.task_id} was given up after {line['seconds']:.1f} s: {line['error']}"
                    yield Violation("submits outlast 30 s without a broker", text, [line])

    def _asks_end_in_time(self) -> Iterator[Violation]:
        for line in self._lines("asked"):
            late = line["seconds"] - line["timeout"]
            if "wrong" in line["outcome"]:
                yield Violation("one outcome per request", f"request {line['n']} got {line['outcome']}", [line])
            elif late > ASK_SLACK + self.windows.seconds(line["mono"] - line["seconds"], line["mono"], line["pid"]):
                text = f"request {line['n']} ended {late:.2f} s after its deadline with {line['outcome']}"
                yield Violation("one outcome per request", text, [line])
        for line in self._lines("broken"):
            yield Violation("errors are typed", f"{line['role']} got {line['error']}", [line])

    def _events_in_order(self) -> Iterator[Violation]:
        handled: dict[str, dict[int, Entry]] = defaultdict(dict)
        for line in self._lines("noted"):
            handled[line["sender"]].setdefault(line["n"], line)
        told: dict[str, list[Entry]] = defaultdict(list)
        for line in self._lines("told"):
            told[line["sender"]].append(line)
        for sender, lines in told.items():
            last: Entry | None = None
            for line in lines:
                here = handled[sender].get(line["n"])
                if here is None:
                    yield Violation("durable events are handled", f"event {line['n']} of {sender} was not", [line])
                    continue
                if last is not None and here["mono"] < last["mono"]:
                    text = f"event {last['n']} of {sender} was handled after {here['n']}"
                    yield Violation("durable events keep their order", text, [here, last])
                last = here

    # ------------------------------------------------------------ the end, and the processes

    def _everything_drains(self) -> Iterator[Violation]:
        if self.evidence.drained is None:
            left = ", ".join(f"{count} {what}" for what, count in self.evidence.left.items())
            waiting = left or "its queues are empty, and somebody still waits for a result"
            text = f"not at rest {self.evidence.patience:g} s after the last fault: {waiting}"
            yield Violation("everything drains", text)

    def _processes_behave(self) -> Iterator[Violation]:
        for text in self.evidence.orphans:
            yield Violation("no orphans", text)
        for line in self._lines("exited"):
            if not line["meant"] and not self.windows.disturbed(line["mono"] - 10.0, line["mono"]):
                text = f"{line['member']} ({line['child']}) ended by itself with {line['code']}"
                yield Violation("no process ends by itself", text, [line])

    def _memory_is_flat(self) -> Iterator[Violation]:
        for pid, samples in memory(self.evidence.history).items():
            if samples[-1][0] - samples[0][0] < FLAT_AFTER:
                continue
            growth = later_growth(samples)
            if growth > GROWTH:
                text = f"process {pid} grew by {growth / 2**20:.0f} MB in the later half of its life"
                yield Violation("memory is flat", text)

    def _lines(self, kind: str) -> Iterator[Entry]:
        return (line for line in self.evidence.history if line["kind"] == kind)


def memory(history: list[Entry]) -> dict[int, list[tuple[float, int]]]:
    """What each process held, and when."""
    samples: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for line in history:
        if line["kind"] == "memory":
            samples[line["child"]].append((line["mono"], line["bytes"]))
    return samples


def later_growth(samples: list[tuple[float, int]]) -> int:
    """Bytes from the third quarter of a life to its last one, by their means."""
    quarter = max(1, len(samples) // 4)
    third, last = samples[2 * quarter : 3 * quarter] or samples[-1:], samples[-quarter:]
    return int(sum(size for _, size in last) / len(last) - sum(size for _, size in third) / len(third))


def _stories(evidence: Evidence) -> dict[str, Story]:
    stories: dict[str, Story] = {}
    offsets = sorted(line["at"] - line["mono"] for line in evidence.history) or [0.0]
    offset = offsets[len(offsets) // 2]
    for line in evidence.history:
        if task_id := line.get("task"):
            stories.setdefault(task_id, Story(task_id)).lines.append(line)
    for stored in evidence.results:
        task_id = stored.subject.rpartition(".")[2]
        stories.setdefault(task_id, Story(task_id)).results.append((stored.at - offset, json.loads(stored.data)))
    return stories
