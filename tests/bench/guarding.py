"""The scenario `guards`: what they cost, in two processes that take turns."""

from __future__ import annotations

from statistics import median, quantiles
from typing import Final

from tests.bench.place import Settings, fresh_url
from tests.bench.processes import Child
from tests.bench.rows import Row, rated

PAIRS: Final = 60


def guards(settings: Settings) -> list[Row]:
    """The same waves of runs with and without guards, turn about: CPU of the loop a step. The ratio is the median of the pairs."""
    with fresh_url(settings) as one, fresh_url(settings) as other:
        guarded, plain = Child("compute", one, "yes"), Child("compute", other, "no")
        try:
            for child in (guarded, plain):
                _step_seconds(child, is_guarded=child is guarded)  # warms up
            pairs = [
                _pair(guarded, plain, is_first=number % 2 == 0) for number in range(settings.size(PAIRS))
            ]
        finally:
            for child in (guarded, plain):
                child.kill()
    costs = [seconds / beside - 1 for seconds, beside in pairs]
    row = rated(
        "guards",
        1 / median(seconds for seconds, _ in pairs),
        "steps/CPU s",
        1 / median(beside for _, beside in pairs),
        cost=median(costs),
        cost_quartiles=quantiles(costs, n=4),
        pairs=len(pairs),
    )
    row.ratio = 1 / (1 + median(costs))
    return [row]


def _pair(guarded: Child, plain: Child, *, is_first: bool) -> tuple[float, float]:
    """Return the seconds of loop CPU a step with guards and without; `is_first`: the guarded ones begin."""
    if is_first:
        first = _step_seconds(guarded, is_guarded=True)
        return first, _step_seconds(plain, is_guarded=False)
    first = _step_seconds(plain, is_guarded=False)
    return _step_seconds(guarded, is_guarded=True), first


def _step_seconds(child: Child, *, is_guarded: bool) -> float:
    told = child.ask()
    assert told["installed"] is is_guarded
    return float(told["loop_cpu"] / told["steps"])
