"""The types of the public API, as mypy sees them: `check_*.py` must pass under strict, unused ignores included.

By hand: these files are among those that `mypy` alone checks, and CI runs that.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.name for path in Path(__file__).parent.glob("check_*.py")))
def test_calls_starts_results_and_signals_have_exact_types(name: str, tmp_path: Path) -> None:
    """A wrong argument is found by the type checker, and every result has its own type."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), f"tests/typing/{name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
