"""A script like those in the guides of other libraries, killed in the middle of one effect after the other and run again.

What it does is in `programs/guides_used.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
OUTPUT: Final = """\
first-trip is confirmed
second-trip is undone: ['hold']
graded {'booked': True, 'passed': True, 'score': 60}
order compensated {'reserve': 'compensated', 'items': 'completed', 'pay': 'failed'}
"""
EFFECTS: Final = 19
AT_ONCE: Final = 2  # at most so many activities are in flight when it dies
SHORT: Final = (12,)  # of them, in the short suite
SAMPLE: Final = (*SHORT, 3, 9, 17)  # of them, in CI on a server, too
SLOW: Final = (pytest.mark.slow,)
POINTS: Final = [
    pytest.param(
        point,
        marks=() if point in SHORT else SLOW if point in SAMPLE else (*SLOW, pytest.mark.long_on_postgres),
    )
    for point in range(1, EFFECTS + 1)
]


def run(url: str, effects: Path, *, die_after: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.crash.programs.guides_used"],
        env={
            **os.environ,
            "DURABLE_DB": url,
            "DURABLE_LEASE_TTL": "2",
            "EFFECTS": str(effects),
            "DIE_AFTER": str(die_after),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "cli"))),
        },
        cwd=effects.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("point", POINTS)
def test_rerun_with_its_run_ids_it_goes_on_where_it_was_killed(url: str, tmp_path: Path, point: int) -> None:
    """The same output; no effect is missing; only what was in flight happened twice; what was undone is undone once."""
    effects = tmp_path / "effects"
    effects.touch()

    assert run(url, effects, die_after=point).returncode == -signal.SIGKILL
    done = run(url, effects)

    assert (done.returncode, done.stdout) == (0, OUTPUT), done.stderr
    counted = Counter(effects.read_text(encoding="utf-8").splitlines())
    assert len(counted) == EFFECTS
    assert set(counted.values()) <= {1, 2}
    assert sum(counted.values()) - EFFECTS <= AT_ONCE
