"""What goes wrong, and how often: drawn from the seed, counted by kind. Healed, nothing does any more."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from typing import Any, Final

import msgspec

# Kinds at a transaction, at a verb, at a hint, and those that strike a node or the machine.
TRANSACTION: Final = ("rolled back", "unknown", "busy once", "busy", "disk full")
VERB: Final = ("error before", "delay")
COMMIT: Final = ("crash at a commit", "pause at a commit")  # written, and nothing of it released yet
HINT: Final = ("hint lost", "hint doubled", "hint late")
STRIKES: Final = (
    "crash",
    "pause",
    "blocked loop",
    "graceful stop",
    "clock step",
    "full disk for a while",
    "busy for a while",
)
KINDS: Final = (*TRANSACTION, *VERB, *COMMIT, *HINT, *STRIKES, "clock skew")


class Strike(msgspec.Struct, frozen=True):
    """One fault with a time: what, when, at whom (an index of the worker places), for how long or by how much."""

    at: float
    kind: str
    victim: int
    amount: float


class Faults:
    """The weather of one seed."""

    def __init__(self, seed: int, *, without: Collection[str], lease: float) -> None:
        chance = random.Random(f"faults {seed}")
        self._chance = random.Random(f"dice {seed}")
        self._without = frozenset(without)
        self.counts: Counter[str] = Counter()
        self.is_over = False
        self.outage: str | None = None  # the disk is full, or locked by somebody, for everybody
        rate = chance.choice((0.0, 0.005, 0.02, 0.06))
        self._rates = {kind: rate * chance.choice((0, 1, 1, 2)) for kind in (*TRANSACTION, "error before")}
        self._rates |= {kind: chance.choice((0.0, 0.0, 0.01, 0.04)) for kind in COMMIT}
        self._pause = lease * chance.choice((0.5, 1.5, 2.5))
        self._delayed = chance.choice((0.0, 0.05, 0.3))
        self._delay = chance.choice((0.002, 0.05, 0.5, 1.5))
        self._hints = chance.choice((0.0, 0.1, 0.5, 1.0))
        self.length = chance.uniform(15.0, 60.0)
        self.strikes = sorted(
            (self._strike(chance, lease) for _ in range(chance.choice((0, 1, 3, 6, 12)))),
            key=lambda strike: strike.at,
        )
        self.is_skewed = chance.random() < 0.3

    def _strike(self, chance: random.Random, lease: float) -> Strike:
        kind = chance.choice(("crash", "crash", "pause", "pause", *STRIKES))
        amount = {
            "crash": chance.uniform(0.0, 6.0),
            "pause": lease * chance.choice((0.3, 0.7, 1.2, 2.0, 3.0)),
            "blocked loop": lease * chance.choice((0.5, 0.9, 3.0)),
            "graceful stop": chance.choice((0.0, 0.5, 5.0)),
            "clock step": chance.choice((-20.0, -1.0, 0.5, 10.0)),
        }.get(kind, chance.uniform(0.2, 8.0))
        return Strike(
            at=chance.uniform(0.0, self.length), kind=kind, victim=chance.randrange(100), amount=amount
        )

    def is_on(self, kind: str) -> bool:
        return not self.is_over and kind not in self._without

    def count(self, kind: str) -> None:
        self.counts[kind] += 1

    def draw(self, kinds: tuple[str, ...]) -> str | None:
        """Return the fault that strikes here, if any."""
        if self.is_over:
            return None
        die = self._chance.random()
        for kind in kinds:
            die -= self._rates.get(kind, 0.0)
            if die < 0:
                return self._noted(kind)
        return None

    def transaction(self) -> str | None:
        if self.outage is not None and not self.is_over:
            return self._noted(self.outage)
        return self.draw(TRANSACTION)

    def verb(self) -> str | None:
        return self.draw(("error before",))

    def commit(self) -> tuple[str, float] | None:
        """Return what happens to a worker whose commit has just been written, and for how long."""
        kind = self.draw(COMMIT)
        return None if kind is None else (kind, self._pause * (0.5 + self._chance.random()))

    def delay(self) -> float:
        """Return how long a verb is held up here: often not at all, sometimes for one turn of the loop (0)."""
        if self.is_over or "delay" in self._without or self._chance.random() >= self._delayed:
            return -1.0
        self.count("delay")
        return self._chance.choice((0.0, 0.0, self._chance.random() * self._delay))

    def hint(self) -> str | None:
        if self.is_over or self._chance.random() >= self._hints:
            return None
        return self._noted(self._chance.choice(HINT))

    def fraction(self) -> float:
        return self._chance.random()

    def _noted(self, kind: str) -> str | None:
        if kind in self._without:
            return None
        self.count(kind)
        return kind

    def summary(self) -> dict[str, Any]:
        return dict(sorted(self.counts.items()))
