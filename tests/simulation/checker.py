"""Whether a history keeps the promises. It reads what was stored, started and told, and knows nothing of how."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from tests.simulation.history import Event, History
from tests.simulation.scenario import Plan, Scenario

MAX_ATTEMPTS = {"Work": 3, "Once": 1}

PATIENCE = 30.0
"""Seconds a submit must have tried before it may say that it does not know."""

NETWORK = {"cut", "hole", "stall", "kill", "restart", "election", "full", "again", "freeze", "lag", "weather"}
"""Faults after which a delivery may be repeated without its worker having died."""

STOP_WITHIN = 0.5
"""Seconds within which a handler ends once its task is decided, as long as nothing is broken."""


def check(scenario: Scenario, history: History) -> list[str]:
    """What was broken; empty if nothing was."""
    return list(_Check(scenario, history).run())


class _Check:
    def __init__(self, scenario: Scenario, history: History) -> None:
        self.scenario = scenario
        self.history = history
        self.is_network_fine = not NETWORK.intersection(scenario.faults)
        self.accepted = {event["task"] for event in history.of("accepted")}
        self.decisions: dict[str, list[tuple[float, dict[str, Any]]]] = defaultdict(list)
        self.letters: dict[str, int] = Counter()
        self.copies: dict[str, list[int]] = defaultdict(list)
        self.returned: dict[str, int] = Counter()
        for event in history.of("store"):
            self._stored(event)
        for event in history.of("removed"):
            if event["stream"] == "DEAD":
                self.letters[event["subject"].rpartition(".")[2]] -= 1
        self.owner = {sequence: task for task, sequences in self.copies.items() for sequence in sequences}

    def _stored(self, event: Event) -> None:
        subject, stream = event["subject"], event["stream"]
        last = subject.rpartition(".")[2]
        document = json.loads(event["data"])
        if stream == "RESULTS":
            self.decisions[last].append((event.time, document))
        elif stream == "DEAD":
            self.letters[last] += 1
        elif stream == "TASKS" and subject.count(".") > 3:
            self.copies[document["task_id"]].append(event["seq"])
        elif stream == "STREAMS":
            entries = document if isinstance(document, list) else [document]
            self.returned[last] += sum(entry.get("type") == "returned" for entry in entries)

    def run(self) -> Iterator[str]:
        for event in self.history.of("internal"):
            yield f"internal error: {event['what']}: {event['error']}"
        yield from self._decided()
        yield from self._told()
        yield from self._started()
        yield from self._stopped()
        yield from self._redelivered()
        yield from self._dead()
        yield from self._read()
        yield from self._ended()

    # -- one decision, the same for everybody

    def _decided(self) -> Iterator[str]:
        for task in sorted(self.accepted):
            if not self.decisions[task]:
                yield f"{task} was accepted and never decided"
        for task, found in sorted(self.decisions.items()):
            if len(found) > 1:
                yield f"{task} was decided {len(found)} times: {[body['status'] for _, body in found]}"
        ends: dict[tuple[str, str, int], float] = {}
        for event in self.history.of("end"):
            ends.setdefault((event["who"], event["task"], event["attempt"]), event.time)
        for plan in self.scenario.plans:
            for at, body in self.decisions[plan.task_id][:1]:
                yield from self._justified(plan, at, body, ends)

    def _justified(
        self, plan: Plan, at: float, body: dict[str, Any], ends: dict[tuple[str, str, int], float]
    ) -> Iterator[str]:
        status = body["status"]
        if status == "completed":
            done = (body["worker"], plan.task_id, body["attempt"])
            if ends.get(done, float("inf")) > at:
                yield f"{plan.task_id} is completed, but {body['worker']} has not ended attempt {body['attempt']}"
            if body["result"] != f"{body['worker']}.{body['attempt']}":
                yield f"{plan.task_id} has the wrong result {body['result']!r}"
        elif status == "cancelled" and plan.cancel_at is None:
            yield f"{plan.task_id} is cancelled, and nobody wanted that"
        elif status == "expired" and (plan.deadline is None or at < plan.at + plan.deadline):
            yield f"{plan.task_id} expired before its deadline"

    def _told(self) -> Iterator[str]:
        for event in self.history.of("told"):
            decision = self._decision(event["task"], event.time)
            if decision is None or (decision["status"], decision["by"]) != (event["status"], event["by"]):
                yield f"a client was told that {event['task']} is {event['status']}, the slot says {decision}"
        for event in self.history.of("cancel"):
            decision = self._decision(event["task"], event.time)
            if decision is None or event["won"] != (decision["status"] == "cancelled"):
                yield f"cancel of {event['task']} answered {event['won']}, the slot says {decision}"
        for event in self.history.of("unknown"):
            if event["error"] == "PublishTimeoutError" and event["waited"] < PATIENCE - 0.1:
                yield f"submit of {event['task']} gave up after {event['waited']:.1f} s"

    def _decision(self, task: str, until: float) -> dict[str, Any] | None:
        found = self.decisions[task]
        return found[0][1] if found and found[0][0] <= until else None

    # -- attempts

    def _started(self) -> Iterator[str]:
        delivered: dict[tuple[str, str], float] = {}
        starts: dict[str, int] = Counter()
        for event in self.history.of("deliver", "start"):
            if event.kind == "deliver":
                if event["stream"] == "TASKS" and event["seq"] in self.owner:
                    delivered[event["to"], self.owner[event["seq"]]] = event.time
                continue
            task = event["task"]
            starts[task] += 1
            if event["attempt"] > self._max_attempts(task):
                yield f"{task} was started as attempt {event['attempt']}"
            decided = self.decisions[task]
            if "lag" in self.scenario.faults or not decided:
                continue
            if decided[0][0] < delivered[event["who"], task]:
                yield f"{task} was started by {event['who']}, to whom it was delivered after its decision"
        forgotten = Counter[str]()
        for event in self.history.of("forgotten"):
            if event["stream"] == "TASKS" and event["seq"] in self.owner:
                forgotten[self.owner[event["seq"]]] += event["deliveries"]
        for task, count in sorted(starts.items()):
            allowed = self._max_attempts(task) * len(self.copies[task]) + self.returned[task] + forgotten[task]
            if count > allowed:
                yield f"{task} was started {count} times, {allowed} were allowed"

    def _max_attempts(self, task: str) -> int:
        (plan,) = (plan for plan in self.scenario.plans if plan.task_id == task)
        return MAX_ATTEMPTS[type(plan.task).__name__]

    def _stopped(self) -> Iterator[str]:
        """A decision ends the handler, as long as nothing is broken."""
        if not self.is_network_fine:
            return
        scripts = {plan.task_id: plan.task.script for plan in self.scenario.plans}
        for event in self.history.of("end"):
            decided = self.decisions[event["task"]]
            if decided and decided[0][0] + STOP_WITHIN < event.time and "stubborn" not in scripts[event["task"]]:
                yield f"{event['task']} went on for {event.time - decided[0][0]:.1f} s after its decision"

    def _redelivered(self) -> Iterator[str]:
        """As long as the network is fine, a task is delivered again only if it was given back or its worker died."""
        if not self.is_network_fine:
            return
        holder: dict[int, str] = {}
        excused: set[int] = set()
        gone: set[str] = set()
        for event in self.history.of("deliver", "settle", "crash", "leave", "gave_up"):
            if event.kind in ("crash", "leave", "gave_up"):
                gone.add(event["who"])
            elif event["stream"] != "TASKS" or event["seq"] not in self.owner:
                continue
            elif event.kind == "settle":
                if event["verdict"] == "-NAK":
                    excused.add(event["seq"])
            else:
                sequence = event["seq"]
                if event["attempt"] > 1 and sequence not in excused and holder[sequence] not in gone:
                    yield f"{self.owner[sequence]} was delivered again, though {holder[sequence]} had it"
                holder[sequence] = event["to"]
                excused.discard(sequence)

    # -- dead letters, streams, the end

    def _dead(self) -> Iterator[str]:
        for task, found in sorted(self.decisions.items()):
            if found and found[0][1]["status"] == "dead" and self.letters[task] < 1:
                yield f"{task} is dead without a dead letter"
        for task, count in sorted(self.letters.items()):
            decided = self.decisions[task]
            if count > 0 and not decided:
                yield f"{task} has a dead letter and was not decided"
            elif count > 0 and decided[0][1]["status"] != "dead":
                yield f"{task} has a dead letter and was decided {decided[0][1]['status']}"

    def _read(self) -> Iterator[str]:
        """Chunks of one attempt, from the first one on, without a gap."""
        for event in self.history.of("read"):
            parts = event["text"].split()
            writer = parts[0].rpartition(":")[0] if parts else ""
            if parts != [f"{writer}:{number}" for number in range(len(parts))]:
                yield f"a reader of {event['task']} saw {parts}"

    def _ended(self) -> Iterator[str]:
        for event in self.history.of("restless"):
            yield f"no rest: {event['queued']} tasks queued, {event['errands']} errands of clients not done"
        for event in self.history.of("rest"):
            if event["queued"] or event["pending"]:
                yield f"in the end {event['queued']} tasks are queued, {event['pending']} deliveries unsettled"
