"""The whole engine under seeds: workers, clients, timers, takeovers, in one thread and virtual time, with faults.

More of them: `python -m tests.simulation --seeds 1000`; CI runs 500.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.shrinking import Cut, Tried, shrunk
from tests.simulation.simulation import command, everything, run_seed

ROOT = Path(__file__).parents[2]


def check(seeds: range) -> None:
    for seed in seeds:
        report = run_seed(seed)
        assert not report.violations, report.text(command(seed))


@pytest.mark.parametrize("start", range(0, 12, 3))
def test_promises_hold_whatever_the_seed_brings(start: int) -> None:
    """Three seeds each: every rule of the checker, and results that the model allows."""
    check(range(start, start + 3))


@pytest.mark.slow
def test_promises_hold_where_few_kinds_of_steps_meet_often() -> None:
    """Narrow seeds, which come to a place that takes two or three certain kinds more often."""
    cut = Cut(is_narrow=True)
    for seed in range(12):
        report = run_seed(seed, cut=cut)
        assert not report.violations, report.text(command(seed, cut))


@pytest.mark.slow
@pytest.mark.long
def test_seeds_reach_everything_that_there_is() -> None:
    """Every kind of step and of fault, and whatever errands and the operator do. CI asks it of the five hundred that it runs anyway."""
    missing = everything()
    for seed in range(2000, 2500):
        if not missing:
            break
        report = run_seed(seed)
        missing -= {*report.features, *report.faults}

    assert not missing


@pytest.mark.parametrize("seed", [1164])
def test_seeds_that_once_found_something_find_it_no_more(seed: int) -> None:
    """Beside those that CI's five hundred hold; docs/reliability.md tells what each has found."""
    check(range(seed, seed + 1))


@pytest.mark.parametrize("seed", [3, 8])
def test_a_seed_gives_the_same_events_twice(seed: int) -> None:
    assert run_seed(seed).hash == run_seed(seed).hash


def test_events_do_not_depend_on_the_hash_seed() -> None:
    """Three seeds in two processes whose sets of strings are ordered differently."""
    hashes = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seeds", "3", "--start", "6", "--hashes"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split(" seeds in ")[0]
        for hash_seed in ("1", "2")
    }
    assert len(hashes) == 1, hashes


def test_a_failing_seed_is_made_smaller_as_long_as_the_same_rule_breaks() -> None:
    """Whatever is not needed for the failure goes: runs, strikes, kinds of faults, steps."""

    def run(cut: Cut) -> Tried:
        runs = set(range(12)) if cut.runs is None else set(cut.runs)
        strikes = set(range(9)) if cut.strikes is None else set(cut.strikes)
        breaks = {3, 7} <= runs and 5 in strikes and "pause" not in cut.without and (cut.steps or 5) >= 3
        violations = ["1.5 I3: run7 did it again"] if breaks else ["1.5 I2: something else"] * (7 in runs)
        return Tried(violations=violations, faults=["crash", "delay", "pause"], runs=12, strikes=9)

    smallest = shrunk(run, Cut())

    assert smallest == Cut(without=("crash", "delay"), runs=(3, 7), strikes=(5,), steps=3)
    assert command(4, smallest) == (
        "python -m tests.simulation --seeds 1 --start 4 --without 'crash' --without 'delay' --runs '3,7' --strikes '5' --steps 3"
    )
