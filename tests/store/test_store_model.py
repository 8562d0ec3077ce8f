"""Every store does what the model does, whatever is asked of it in whatever order; see `store_model.py`."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from store_model import Machine

from tests.support.postgres import in_schema

_numbers = itertools.count(1)


def run(examples: int, steps: int, **made: Any) -> None:
    """Let Hypothesis look for an order of steps in which a store and the model disagree, and shrink it."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=examples < 100,  # the short one is the same every time
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    run_state_machine_as_test(type("Chosen", (Machine,), made), settings=chosen)


@pytest.mark.stores("sqlite")
def test_a_file_does_what_the_model_does(tmp_path: Path, store_kind: str) -> None:
    """A few hundred steps."""
    run(12, 40, new_urls=lambda: [f"sqlite:///{tmp_path / str(next(_numbers))}.db"])


@pytest.mark.slow
@pytest.mark.stores("postgres")
def test_a_file_and_a_server_do_what_the_model_does(
    tmp_path: Path, store_kind: str, request: pytest.FixtureRequest
) -> None:
    """Both are asked the same, step by step."""
    server = os.environ.get("DURABLE_TEST_PG") or request.getfixturevalue("postgres").url

    def new_urls() -> list[str]:
        number = next(_numbers)
        return [
            f"sqlite:///{tmp_path / str(number)}.db",
            in_schema(server, f"m{os.getpid()}_{number}"),
        ]

    run(8, 40, new_urls=new_urls)


@pytest.mark.slow
@pytest.mark.stores("sqlite")
def test_a_file_does_what_the_model_does_for_long(tmp_path: Path, store_kind: str) -> None:
    """Two thousand steps, others each time."""
    run(40, 50, new_urls=lambda: [f"sqlite:///{tmp_path / str(next(_numbers))}.db"])
