"""The orders example: real processes, a payment service that misbehaves, workers that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
ORDERS: Final = ROOT / "examples" / "orders"


def environment() -> dict[str, str]:
    path = [str(ROOT), str(ROOT / "cli"), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = {"PYTHONPATH": os.pathsep.join(path)}
    return {name: value for name, value in os.environ.items() if not name.startswith("DURABLE_")} | chosen


def run_orders(tmp_path: Path, *options: str, timeout: float) -> str:
    done = subprocess.run(
        [sys.executable, str(ORDERS / "run_orders.py"), *options],
        cwd=tmp_path,
        env=environment() | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_workers_charge_every_order_exactly_once(tmp_path: Path, seed: int) -> None:
    """One ledger line per paid order, one receipt per shipped one, no run left open."""
    output = run_orders(tmp_path, "--orders", "100", "--kills", "5", "--seed", str(seed), timeout=300)

    assert output.count("killed worker") == 5
    assert "every order has exactly the charges, refunds and receipts it should have" in output


@pytest.mark.slow
@pytest.mark.stores("postgres")
def test_four_workers_on_a_server_charge_every_order_exactly_once(tmp_path: Path, url: str) -> None:
    """The same ledger, receipts and stock when workers share a server, and a dead one is noticed by its silence only."""
    options = ("--db", url, "--orders", "100", "--workers", "4", "--kills", "6")
    output = run_orders(tmp_path, *options, timeout=300)

    assert output.count("killed worker") == 6
    assert "every order has exactly the charges, refunds and receipts it should have" in output


def test_a_few_orders_and_one_kill(tmp_path: Path) -> None:
    """The same in small, so that it cannot break unnoticed."""
    output = run_orders(tmp_path, "--orders", "12", "--kills", "1", timeout=120)

    assert output.count("killed worker") == 1
    assert "every order has exactly the charges, refunds and receipts it should have" in output


# ─ the payment service ──


@contextmanager
def payment_service(world: Path) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, str(ORDERS / "payments.py"), str(world), "--seed", "7"])
    try:
        port = world / "payments.port"
        while not port.exists():
            assert process.poll() is None, "the payment service did not start"
        yield f"http://127.0.0.1:{port.read_text()}/charges"
    finally:
        process.terminate()
        process.wait(60)


def pay(url: str, key: str, order: str, card: str = "good") -> int:
    """Return the status of one request, 0 if the service hung up."""
    body = json.dumps({"order": order, "cents": 100, "card": card}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=body, headers={"Idempotency-Key": key}), timeout=10
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@pytest.mark.slow
def test_the_payment_service_books_a_key_once_whatever_it_answers(tmp_path: Path) -> None:
    """It misbehaves in every way, and its ledger is right all the same."""
    with payment_service(tmp_path) as url:
        statuses = [pay(url, f"key-{n}", f"{n:05}") for n in range(20) for _ in range(10)]
    booked = (tmp_path / "ledger.csv").read_text().splitlines()

    assert set(statuses) == {200, 500, 503, 0}
    assert sorted(line.split(",")[0] for line in booked) == sorted(f"key-{n}" for n in range(20))


def test_a_restarted_payment_service_knows_its_keys(tmp_path: Path) -> None:
    """The ledger is its memory."""
    for _ in range(2):
        (tmp_path / "payments.port").unlink(missing_ok=True)
        with payment_service(tmp_path) as url:
            while pay(url, "key", "00001") != 200:
                pass

    assert len((tmp_path / "ledger.csv").read_text().splitlines()) == 1


def test_a_declined_card_is_refused_and_not_booked(tmp_path: Path) -> None:
    """402 is an answer, not a fault."""
    with payment_service(tmp_path) as url:
        assert pay(url, "key", "00001", card="declined") == 402

    assert (tmp_path / "ledger.csv").read_text() == ""
