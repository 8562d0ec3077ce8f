"""The examples of bulk operations, state machines and applications, run as a newcomer would."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.examples.test_small_examples import EXAMPLES, environment, run_example


def test_bulk_charges_and_tells_who_was_declined(tmp_path: Path) -> None:
    """The second run of the script reads the record."""
    for _ in range(2):
        lines = run_example("bulk.py", tmp_path, "60").splitlines()
        assert lines[-2:] == [
            f"charged {sum(100 + n for n in range(60)) - 149} in 59 of 60 invoices",
            "  49: the card of invoice 49 was declined",
        ]


def test_bulk_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    """Killed in the middle: the next run finishes it."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "bulk.py"), "2000"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.read(20)  # some progress
        process.send_signal(signal.SIGKILL)
        process.wait(60)

    assert "in 1960 of 2000 invoices" in run_example("bulk.py", tmp_path, "2000")


def test_state_machine_goes_on_from_where_it_was(tmp_path: Path) -> None:
    """Each run of the script is another process."""
    assert run_example("state_machine.py", tmp_path, "approve").splitlines() == [
        "approved",
        "  pending -- approve --> approved",
    ]
    assert run_example("state_machine.py", tmp_path, "ship").splitlines()[:2] == [
        "(sending the invoice)",
        "shipped",
    ]
    assert run_example("state_machine.py", tmp_path, "cancel").startswith("no: order-7 is 'shipped'")


def test_application_starts_each_subscriber_once(tmp_path: Path) -> None:
    """However often the event is published, and the script run."""
    first = run_example("application.py", tmp_path)
    second = run_example("application.py", tmp_path)

    assert first.count("for real") == 2
    assert second.count("for real") == 0
    assert (
        second.splitlines()
        == [
            "ship-order.paid-o-7 -> parcel for o-7",
            "thank-order.paid-o-7 -> thank-you note for o-7",
        ]
        * 2
    )
