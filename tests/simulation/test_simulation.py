"""The whole engine under seeds: workers, clients, timers, takeovers, in one thread and virtual time, with faults.

More of them: `python -m tests.simulation --seeds 1000`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.simulation import run_seed

ROOT = Path(__file__).parents[2]


def check(seeds: range) -> None:
    for seed in seeds:
        report = run_seed(seed)
        assert not report.violations, report.text(f"python -m tests.simulation --seeds 1 --start {seed}")


@pytest.mark.parametrize("start", range(0, 30, 10))
def test_promises_hold_whatever_the_seed_brings(start: int) -> None:
    """Ten seeds each: I1 to I6, I10, I12, I15, I17, and results that the model allows."""
    check(range(start, start + 10))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1100, 20))
def test_promises_hold_over_a_hundred_seeds(start: int) -> None:
    check(range(start, start + 20))


@pytest.mark.parametrize("seed", [3, 8])
def test_a_seed_gives_the_same_events_twice(seed: int) -> None:
    assert run_seed(seed).hash == run_seed(seed).hash


def test_events_do_not_depend_on_the_hash_seed() -> None:
    """Three seeds in two processes whose sets of strings are ordered differently."""
    hashes = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seeds", "3", "--start", "4", "--hashes"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split(" seeds in ")[0]
        for hash_seed in ("1", "2")
    }
    assert len(hashes) == 1, hashes
