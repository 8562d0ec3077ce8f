"""Makes a failing seed smaller: fewer kinds of faults, fewer strikes, fewer runs, shorter programs, as long as the same rule breaks.

What is left out is named by a `Cut`, which is part of the command that shows the failure again. Every random choice of a run has a
source of its own, so that leaving one out changes no other run's program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

TRIES_MAX: Final = 80


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """What of a seed is left out, or (not None) what alone is kept."""

    without: tuple[str, ...] = ()  # kinds of faults
    runs: tuple[int, ...] | None = None
    strikes: tuple[int, ...] | None = None
    steps: int | None = None  # of each program, at most
    is_narrow: bool = False  # most kinds of steps and errands are left out, see `choices`

    def options(self) -> str:
        """Return it as options of the command line."""
        told = [f"--without '{kind}'" for kind in self.without]
        for name in ("runs", "strikes"):
            if (kept := getattr(self, name)) is not None:
                told.append(f"--{name} '{','.join(map(str, kept))}'")
        if self.steps is not None:
            told.append(f"--steps {self.steps}")
        if self.is_narrow:
            told.append("--narrow")
        return " ".join(told)


WHOLE: Final = Cut()


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a seed with a cut: what shrinking needs to know of it."""

    violations: list[str]
    faults: list[str]  # their kinds
    runs: int
    strikes: int


def rule_of(violation: str) -> str:
    """Return the rule that was broken: what stands between the instant and the first colon."""
    return violation.partition(" ")[2].partition(":")[0]


def shrunk(run: Callable[[Cut], Tried], cut: Cut) -> Cut:
    """Return the smallest cut that was found which breaks the rule that `cut` breaks; `cut` itself if it breaks none again."""
    first = run(cut)
    if not first.violations:
        return cut
    rule = rule_of(first.violations[0])
    tries = 0
    kept, outcome = cut, first
    while True:
        for smaller in _smaller(kept, outcome):
            tries += 1
            if tries > TRIES_MAX:
                return kept
            tried = run(smaller)
            if tried.violations and rule_of(tried.violations[0]) == rule:
                kept, outcome = smaller, tried
                break
        else:
            return kept


def _smaller(cut: Cut, outcome: Tried) -> Iterator[Cut]:
    """Yield cuts that leave more out, the boldest first."""
    replace = msgspec.structs.replace
    named = tuple(sorted({int(number) for number in re.findall(r"\brun(\d+)\b", outcome.violations[0])}))
    runs = cut.runs if cut.runs is not None else tuple(range(outcome.runs))
    if named and set(named) < set(runs):
        yield replace(cut, runs=named)
    yield from (replace(cut, runs=fewer) for fewer in _fewer(runs) if fewer)
    strikes = cut.strikes if cut.strikes is not None else tuple(range(outcome.strikes))
    yield from (replace(cut, strikes=fewer) for fewer in _fewer(strikes))
    for kind in outcome.faults:
        if kind not in cut.without:
            yield replace(cut, without=(*cut.without, kind))
    for steps in range(1, cut.steps if cut.steps is not None else 5):
        yield replace(cut, steps=steps)


def _fewer(kept: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield parts of it: none, either half, all but one."""
    if kept:
        yield ()
    if len(kept) > 2:
        yield kept[: len(kept) // 2]
        yield kept[len(kept) // 2 :]
    if len(kept) > 1:
        yield from (kept[:i] + kept[i + 1 :] for i in range(len(kept)))
