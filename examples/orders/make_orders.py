"""Write DIR/orders.csv: orders by seeded chance, some large, some with a card that will be declined.

python examples/orders/make_orders.py FILE [--orders N] [--seed N]
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path
from typing import NamedTuple

ITEMS = ("anvil", "bolt", "candle", "drum", "easel", "flute")


class Order(NamedTuple):
    """One line of the file."""

    id: str
    item: str
    cents: int
    card: str


def make_orders(count: int, seed: int) -> list[Order]:
    """Return the orders; about one in five is large, about one in twenty has a bad card."""
    chance = random.Random(seed)
    return [
        Order(
            id=f"{number:05}",
            item=chance.choice(ITEMS),
            cents=chance.randint(50_000, 200_000) if chance.random() < 0.2 else chance.randint(500, 49_999),
            card="declined" if chance.random() < 0.05 else "good",
        )
        for number in range(1, count + 1)
    ]


def write_orders(path: Path, orders: list[Order]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Order._fields)
        writer.writerows(orders)


def read_orders(path: Path) -> list[Order]:
    with path.open(newline="") as file:
        return [Order(row["id"], row["item"], int(row["cents"]), row["card"]) for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description="write the orders of the orders example")
    parser.add_argument("file", type=Path)
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_orders(options.file, make_orders(options.orders, options.seed))


if __name__ == "__main__":
    main()
