"""Playing and judging a seed."""

from __future__ import annotations

import gc
from dataclasses import dataclass

from tests.simulation.checker import check
from tests.simulation.history import History
from tests.simulation.mutants import planted
from tests.simulation.scenario import Scenario, draw, play
from tests.simulation.world import simulated

COLLECT_EVERY = 16
"""Seeds between collections of garbage, which is off while one is played."""


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    mutant: str
    scenario: Scenario
    history: History
    problems: list[str]

    def __str__(self) -> str:
        again = f"python -m tests.simulation {self.seed}" + (f" --mutant {self.mutant}" if self.mutant else "")
        faults = ", ".join(self.scenario.faults) or "none"
        return "\n  ".join([f"seed {self.seed} (faults: {faults}); again with: {again}", *self.problems])


def run(seed: int, mutant: str = "") -> Outcome:
    """Play a seed, and check what happened."""
    scenario = draw(seed)
    with planted(mutant), simulated(seed, shuffle=scenario.shuffle) as world:
        play(world, scenario)
    if seed % COLLECT_EVERY == 0:
        gc.collect()
    return Outcome(seed, mutant, scenario, world.history, check(scenario, world.history))


def find(seeds: range, mutant: str = "") -> Outcome | None:
    """The first seed that fails."""
    for seed in seeds:
        outcome = run(seed, mutant)
        if outcome.problems:
            return outcome
    return None
