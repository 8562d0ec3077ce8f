"""The examples of pipelines and sagas, run as a newcomer would run them."""

from __future__ import annotations

from pathlib import Path

from tests.examples.test_small_examples import run_example


def test_the_pipeline_prices_sends_and_fails(tmp_path: Path) -> None:
    """The second run of the script repeats nothing."""
    lines = run_example("pipeline.py", tmp_path).splitlines()
    again = run_example("pipeline.py", tmp_path).splitlines()

    said = [line for line in lines if not line.startswith("(")]
    assert said[:2] == ["Ada pays 900; label for Ada", "Bob pays 250; label for Bob"]
    assert said[2].startswith("order-eve: step price failed: invalid literal")
    assert again == said


def test_the_saga_steps_of_a_workflow_are_undone(tmp_path: Path) -> None:
    """On failure and on cancellation; the inner scope by itself."""
    lines = run_example("saga.py", tmp_path).splitlines()

    assert lines[:6] == [
        "cheap: flight booked",
        "cheap: hotel booked",
        "cheap: car booked",
        "cheap: car released",
        "cheap: paid",
        "cheap: ['flight-7', 'hotel-7', 'a bus ticket']",
    ]
    assert lines[10:13] == [
        "dear: hotel released",
        "dear: flight released",
        "dear: the card was declined",
    ]
    assert lines[-3:] == [
        "dropped: hotel released",
        "dropped: flight released",
        "dropped: changed our minds",
    ]


def test_a_saga_of_steps_tells_what_it_undid(tmp_path: Path) -> None:
    """One goes well, one does not."""
    assert run_example("saga_steps.py", tmp_path).splitlines() == [
        "anvil: on its way",
        "p-rocket: 5000 given back",
        "shelf 4 for rocket: free again",
        "rocket: compensated, because ship failed: no truck is big enough",
        "undone: charge, reserve",
    ]


def test_a_manager_follows_its_sagas(tmp_path: Path) -> None:
    """By their records."""
    lines = run_example("saga_manager.py", tmp_path).splitlines()

    assert "light: completed (reserve completed, charge completed, ship completed)" in lines
    assert "heavy: compensated (reserve compensated, charge compensated, ship failed)" in lines
    assert lines[-1] == "compensated: ['heavy']"
    assert "heavy: charging for 1 items under key heavy@1/charge#1" in lines


def test_an_orchestrated_saga_takes_its_ways(tmp_path: Path) -> None:
    """The short one, the one out of a failure, and back."""
    assert run_example("saga_orchestrator.py", tmp_path).splitlines() == [
        "pick-up: completed; done: reserve, charge",
        "expired: completed; done: reserve, invoice, deliver, pack, truck",
        "far: shelf 4 is free again",
        "far: compensated; done: charge, pack",
    ]
