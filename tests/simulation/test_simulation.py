"""K1: the task protocol keeps its promises in simulated worlds, and the simulation finds planted bugs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.harness.process import REPOSITORY
from tests.simulation.mutants import MUTANTS
from tests.simulation.run import find, run

MANY = 2000


def play_elsewhere(*arguments: str, hash_seed: str = "0") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=REPOSITORY, env={"PYTHONHASHSEED": hash_seed}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def outputs(*players: subprocess.Popen[str]) -> Iterator[tuple[int, str]]:
    for player in players:
        output, _ = player.communicate(timeout=300)
        yield player.returncode, output


def test_k1_a_hundred_worlds_keep_the_promises() -> None:
    failed = [outcome for outcome in map(run, range(100)) if outcome.problems]

    assert not failed, "\n".join(map(str, failed))


@pytest.mark.slow
def test_k1_two_thousand_worlds_keep_the_promises() -> None:
    half = MANY // 2

    played = list(outputs(play_elsewhere(f"0-{half - 1}"), play_elsewhere(f"{half}-{MANY - 1}")))

    assert [code for code, _ in played] == [0, 0], "\n".join(output for _, output in played)


QUICKLY_FOUND = ("ack-first", "no-cas", "msg-id-only", "no-retry", "no-heartbeat")


@pytest.mark.parametrize(
    "mutant", [name if name in QUICKLY_FOUND else pytest.param(name, marks=pytest.mark.slow) for name in MUTANTS]
)
def test_k1_a_planted_bug_is_found_within_200_seeds(mutant: str) -> None:
    outcome = find(range(200), mutant)

    assert outcome is not None, f"{mutant} was not found"
    assert f"python -m tests.simulation {outcome.seed} --mutant {mutant}" in str(outcome)
    assert run(outcome.seed, mutant).problems == outcome.problems


def test_k1_a_seed_is_one_history_whatever_the_hashes_are() -> None:
    here = "".join(f"{seed} {run(seed).history.digest()}\n" for seed in range(12))

    elsewhere = list(outputs(*(play_elsewhere("0-11", "--digest", hash_seed=hash_seed) for hash_seed in ("1", "4242"))))

    assert elsewhere == [(0, here), (0, here)]
    assert len({run(seed).history.digest() for seed in range(4)}) == 4
