"""`python -m tests.simulation SEEDS [--mutant NAME] [--show]`: play seeds again; see the package."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.mutants import MUTANTS
from tests.simulation.run import Outcome, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seeds", help="one seed such as 17, or a range such as 0-1999")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), default="", help="with this bug planted")
    parser.add_argument("--show", action="store_true", help="print the history (always, if one seed fails)")
    parser.add_argument("--digest", action="store_true", help="print the digest of each history")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    began, failed = time.perf_counter(), 0
    for seed in seeds:
        outcome = run(seed, options.mutant)
        failed += bool(outcome.problems)
        _report(outcome, show=options.show or (len(seeds) == 1 and bool(outcome.problems)))
        if options.digest:
            print(seed, outcome.history.digest())
    if not options.digest:
        seconds = time.perf_counter() - began
        print(f"{len(seeds)} seeds, {failed} failed, {seconds:.1f} s ({len(seeds) / seconds:.0f} seeds/s)")
    return 1 if failed else 0


def _report(outcome: Outcome, *, show: bool) -> None:
    if show:
        print(outcome.scenario)
        print(outcome.history)
    if outcome.problems:
        print(outcome)


if __name__ == "__main__":
    sys.exit(main())
