"""Put a thousand orders through two workers that get killed, and count afterwards.

    python examples/orders/run_orders.py --orders 1000 --kills 8

Starts the payment service and the workers (`durable worker app.py`, own processes; one SQLite file, or with
`--db postgresql://...` a server), enqueues one run per order, approves the large ones, and kills a random worker with SIGKILL
again and again while they work. Then it looks at the outside world: is there exactly one charge in the ledger for every order
that was paid, one receipt for every parcel?
Exits with 0 if all is well, with 1 and the differences otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from app import LARGE_CENTS, Outcome, approved, order
from make_orders import Order, make_orders, read_orders, write_orders

import durable

HERE = Path(__file__).parent


class Fleet:
    """The processes of this example: one payment service, some workers. Their output goes to files."""

    def __init__(self, world: Path, db: str, seed: int) -> None:
        self.world = world
        self.db = db
        self.seed = seed
        self.workers: list[subprocess.Popen[bytes]] = []
        self.payments: subprocess.Popen[bytes] | None = None

    def _start(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        environment = {"DURABLE_LEASE_TTL": "2"} | os.environ | {"ORDERS_DIR": str(self.world)}
        with (self.world / log).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def start_payments(self) -> None:
        service = str(HERE / "payments.py")
        self.payments = self._start("payments.log", service, str(self.world), "--seed", str(self.seed))

    def start_worker(self, number: int) -> None:
        worker = self._start(
            f"worker-{number}.log", "-m", "durable", "worker", str(HERE / "app.py"), "--db", self.db
        )
        if number < len(self.workers):
            self.workers[number] = worker
        else:
            self.workers.append(worker)

    def kill_worker(self, number: int) -> None:
        """SIGKILL: no warning, no cleanup."""
        self.workers[number].kill()
        self.workers[number].wait()

    def stop(self) -> None:
        """End all politely, then not."""
        everyone = [*self.workers, *([self.payments] if self.payments else [])]
        for process in everyone:
            process.send_signal(signal.SIGTERM)
        for process in everyone:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_approved(one: Order) -> bool:
    """The person who approves large orders dislikes every fourth."""
    return int(one.id) % 4 != 0


async def approve_large_orders(client: durable.Client, orders: list[Order], chance: random.Random) -> None:
    """Answer in any order, some before the workflow asks: signals wait in the database."""
    large = [one for one in orders if one.cents >= LARGE_CENTS and one.card == "good"]
    for one in chance.sample(large, len(large)):
        await client.signal(f"order-{one.id}", approved, is_approved(one))
        await asyncio.sleep(chance.random() * 0.02)


async def kill_workers(
    client: durable.Client, fleet: Fleet, orders: list[Order], kills: int, chance: random.Random
) -> None:
    """Kill a worker whenever the ledger has grown to the next random length, and start it again a moment later."""
    ledger = fleet.world / "ledger.csv"
    expected = sum(one.card == "good" for one in orders)
    for length in sorted(chance.sample(range(1, max(expected * 9 // 10, kills + 1)), kills)):
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < length:  # noqa: ASYNC110  # a file cannot tell us
            await asyncio.sleep(0.01)
        await asyncio.sleep(chance.random() * 0.1)
        number = await busiest_worker(client, fleet)
        if number is None or chance.random() < 0.3:
            number = chance.randrange(len(fleet.workers))
        fleet.kill_worker(number)
        print(
            f"  killed worker {number} (pid {fleet.workers[number].pid}) after {length} ledger lines",
            flush=True,
        )
        await asyncio.sleep(chance.random() * 0.5)
        fleet.start_worker(number)


async def busiest_worker(client: durable.Client, fleet: Fleet) -> int | None:
    """Return which worker holds most runs: its death has most to show. None if nobody holds any."""
    held = {worker.pid: worker.runs for worker in await client.workers()}
    runs, number = max((held.get(process.pid, 0), number) for number, process in enumerate(fleet.workers))
    return number if runs else None


async def outcome_of(run: durable.RunHandle[Outcome]) -> str:
    """Wait for the run's end; an end that is no result is one of the differences."""
    try:
        return await run.result()
    except durable.DurableError as error:
        return repr(error)


async def run_all(fleet: Fleet, orders: list[Order], options: argparse.Namespace) -> dict[str, str]:
    """Enqueue, approve, kill, wait; return each order's outcome."""
    chance = random.Random(options.seed)
    async with durable.connect(fleet.db) as client:
        runs = await client.start_many(
            order,
            [(one.id, one.item, one.cents, one.card) for one in orders],
            run_ids=[f"order-{one.id}" for one in orders],
        )
        async with asyncio.timeout(options.deadline), asyncio.TaskGroup() as group:
            group.create_task(approve_large_orders(client, orders, chance))
            group.create_task(kill_workers(client, fleet, orders, options.kills, chance))
            results = [group.create_task(outcome_of(run)) for run in runs]
        return {one.id: result.result() for one, result in zip(orders, results, strict=True)}


async def unfinished_runs(db: str) -> list[str]:
    """Name every run that is not closed, and what it waits for."""
    async with durable.connect(db) as client:
        runs = await client.list(status=["pending", "running", "waiting", "parked"], limit=10_000)
    return [f"{run.run_id} is {run.status}: {'; '.join(b.text for b in run.waiting_on)}" for run in runs]


def expected_outcome(one: Order) -> str:
    if one.card != "good":
        return "refused"
    return "shipped" if one.cents < LARGE_CENTS or is_approved(one) else "rejected"


def differences(world: Path, orders: list[Order], outcomes: dict[str, str]) -> list[str]:
    """Compare the outside world with what must have happened, order by order."""
    with (world / "ledger.csv").open(newline="") as file:
        booked = Counter((kind, order_id, int(cents)) for _, kind, order_id, cents in csv.reader(file))
    receipts = {path.stem: json.loads(path.read_text()) for path in (world / "receipts").glob("*.json")}
    reserved = {path.name for path in (world / "stock").iterdir()}
    found: list[str] = []
    for one in orders:
        outcome = expected_outcome(one)
        facts = {
            "outcome": (outcomes.get(one.id), outcome),
            "charges": (booked.pop(("charge", one.id, one.cents), 0), int(outcome != "refused")),
            "refunds": (booked.pop(("refund", one.id, one.cents), 0), int(outcome == "rejected")),
            "receipts": (int(receipts.pop(one.id, {}).get("order") == one.id), int(outcome == "shipped")),
            "reservations": (int(one.id in reserved), int(outcome == "shipped")),
        }
        found += [
            f"order-{one.id}: {what}: {is_} instead of {must_be}"
            for what, (is_, must_be) in facts.items()
            if is_ != must_be
        ]
    found += [f"ledger: a line for nobody: {line}" for line in booked]
    found += [f"receipt for nobody: {order_id}" for order_id in receipts]
    return found


def summary(world: Path, outcomes: dict[str, str], seconds: float) -> str:
    counts = Counter(outcomes.values())
    labels = (world / "labels.txt").read_text().split()
    again = len(labels) - len(set(labels))
    return (
        f"{len(outcomes)} orders in {seconds:.1f} s: {counts['shipped']} shipped, {counts['refused']} refused, "
        f"{counts['rejected']} rejected\n"
        f"{len(labels)} labels printed, {again} of them twice: an activity without an idempotency key runs at least once"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="orders through workers that get killed")
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--db", help="a file, or a postgresql:// URL (default: orders.db in the directory of the run)"
    )
    parser.add_argument("--deadline", type=float, default=600, help="give up after so many seconds")
    parser.add_argument("--keep", action="store_true", help="keep the directory of the run")
    options = parser.parse_args()

    world = Path(tempfile.mkdtemp(prefix="durable-orders-"))
    db = options.db or str(world / "orders.db")
    if "://" not in db:
        db = f"sqlite:///{Path(db).absolute()}"
    write_orders(world / "orders.csv", make_orders(options.orders, options.seed))
    orders = read_orders(world / "orders.csv")
    print(
        f"{len(orders)} orders, {options.workers} workers, {options.kills} kills, seed {options.seed}, in {world}",
        flush=True,
    )

    fleet = Fleet(world, db, options.seed)
    began = time.monotonic()
    outcomes: dict[str, str] = {}
    try:
        fleet.start_payments()
        for number in range(options.workers):
            fleet.start_worker(number)
        outcomes = asyncio.run(run_all(fleet, orders, options))
        seconds = time.monotonic() - began
    except TimeoutError:
        seconds = time.monotonic() - began
        print(f"not done after {options.deadline:g} s")
    finally:
        fleet.stop()

    problems = asyncio.run(unfinished_runs(db)) + differences(world, orders, outcomes)
    print(summary(world, outcomes, seconds))
    if problems:
        print("\n".join(problems[:20]), f"\n{len(problems)} differences; look into {world}")
        return 1
    print("every order has exactly the charges, refunds and receipts it should have")
    if not options.keep:
        shutil.rmtree(world)
    return 0


if __name__ == "__main__":
    sys.exit(main())
