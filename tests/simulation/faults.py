"""What goes wrong, and how often: drawn from the seed, counted by kind. Healed, nothing does any more."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, Final

import msgspec

from tests.simulation.shrinking import Cut

# Kinds at a transaction, at a verb, at a hint, and those that strike a node or the machine.
TRANSACTION: Final = ("rolled back", "unknown", "busy once", "busy", "disk full")
VERB: Final = ("error before", "delay")
COMMIT: Final = ("crash at a commit", "pause at a commit")  # written, and nothing of it released yet
ROWS: Final = ("lost reply",)  # rows of a pattern are written, and nobody says so
CLAIM: Final = ("pause at a claim",)  # looked for, and not written yet
NARROW: Final = ("unknown", "rolled back", *COMMIT, *CLAIM)  # one of them comes often in a narrow seed
HINT: Final = ("hint lost", "hint doubled", "hint late")
STRIKES: Final = (
    "crash",
    "pause",
    "blocked loop",
    "graceful stop",
    "clock step",
    "client crash",
    "full disk for a while",
    "busy for a while",
)
KINDS: Final = (*TRANSACTION, *VERB, *COMMIT, *CLAIM, *ROWS, *HINT, *STRIKES, "clock skew", "deploy")


class Strike(msgspec.Struct, frozen=True):
    """One fault with a time: what, when, at whom (an index of the worker places), for how long or by how much."""

    at: float
    kind: str
    victim: int
    amount: float


class Faults:
    """The weather of one seed."""

    def __init__(self, seed: int, *, cut: Cut, lease: float) -> None:
        chance = random.Random(f"faults {seed}")
        self._chance = random.Random(f"dice {seed}")
        self._without = frozenset(cut.without)
        self.counts: Counter[str] = Counter()
        self.is_over = False
        self.outage: str | None = None  # the disk is full, or locked by somebody, for everybody
        rate = chance.choice((0.0, 0.005, 0.02, 0.06))
        self._rates = {kind: rate * chance.choice((0, 1, 1, 2)) for kind in (*TRANSACTION, "error before")}
        self._rates |= {kind: chance.choice((0.0, 0.0, 0.01, 0.04)) for kind in (*COMMIT, *CLAIM)}
        self._rates["lost reply"] = chance.choice((0.0, 0.2))
        if cut.is_narrow:  # one of them comes often
            self._rates[random.Random(f"narrow faults {seed}").choice(NARROW)] = 0.06
        self._pause = lease * chance.choice((0.5, 1.2, 2.5))
        self._delayed = chance.choice((0.0, 0.05, 0.3))
        self._delay = chance.choice((0.002, 0.05, 0.5, 1.5))
        self._hints = chance.choice((0.0, 0.1, 0.5, 1.0))
        self._is_deaf = chance.random() < 0.15  # no hint ever arrives: polling must do (I18)
        self.length = chance.uniform(15.0, 60.0)
        self.strikes = sorted(
            [
                *(self._strike(chance, lease) for _ in range(chance.choice((0, 1, 3, 6, 12)))),
                *self._storm(chance),
            ],
            key=lambda strike: strike.at,
        )
        self.deploys_at = chance.uniform(1.0, 0.5 * self.length)
        self.drawn = len(self.strikes)
        if cut.strikes is not None:
            self.strikes = [strike for i, strike in enumerate(self.strikes) if i in cut.strikes]
        self.is_skewed = chance.random() < 0.3
        self.has_odd_clocks = self.is_skewed or any(one.kind == "clock step" for one in self.strikes)

    def _storm(self, chance: random.Random) -> list[Strike]:
        """Return, for some seeds, crash after crash: whoever is always there must not be blamed for it."""
        if chance.random() > 0.12:
            return []
        begin = chance.uniform(0.5, 5.0)
        return [
            Strike(at=begin + 1.5 * count + victim / 10, kind="crash", victim=victim, amount=0.2)
            for count in range(6)
            for victim in range(3)
        ]

    def _strike(self, chance: random.Random, lease: float) -> Strike:
        kind = chance.choice(("crash", "crash", "pause", "pause", *STRIKES))
        amount = {
            "crash": chance.uniform(0.0, 6.0),
            "client crash": chance.uniform(0.0, 3.0),
            "pause": lease * chance.choice((0.3, 0.7, chance.uniform(1.0, 1.4), 2.0, 3.0)),
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
        return self._struck(self.draw(COMMIT))

    def claim(self) -> tuple[str, float] | None:
        """As `commit`, of a worker that is about to claim."""
        return self._struck(self.draw(CLAIM))

    def _struck(self, kind: str | None) -> tuple[str, float] | None:
        return None if kind is None else (kind, self._pause * (0.5 + self._chance.random()))

    def delay(self) -> float:
        """Return how long a verb is held up here: often not at all, sometimes for one turn of the loop (0)."""
        if self.is_over or "delay" in self._without or self._chance.random() >= self._delayed:
            return -1.0
        self.count("delay")
        return self._chance.choice((0.0, 0.0, self._chance.random() * self._delay))

    def hint(self) -> str | None:
        if self._is_deaf and "hint lost" not in self._without:
            return "hint lost"
        if self.is_over or self._chance.random() >= self._hints:
            return None
        return self._noted(self._chance.choice(HINT))

    @property
    def struck(self) -> int:
        """How often something went wrong so far that may hold work up; hints only save time (I18)."""
        return sum(count for kind, count in self.counts.items() if kind not in HINT)

    def fraction(self) -> float:
        return self._chance.random()

    def _noted(self, kind: str) -> str | None:
        if kind in self._without:
            return None
        self.count(kind)
        return kind

    def summary(self) -> dict[str, Any]:
        return dict(sorted(self.counts.items()))
