"""How a graph is run: limits and policies. Data, checked when it is made."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from durable import Seconds
from durable.patterns.policies import as_seconds


class GraphConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and policies of a graph. An unknown field is a TypeError, a value out of bounds a ValueError.

    `enabled=False`: `execute` starts nothing and returns `Err`. `max_iterations` counts the nodes that run, gates included.
    `node_timeout` limits each attempt of a node that has no timeout of its own, `total_timeout` a whole run, the time it waits for
    people included; in seconds or timedelta, 0: no limit. Nodes of a wave run side by side, at most `max_parallel_branches` at a time
    (0: all); with `parallel_branches=False` one after the other, on the same state. `on_conflict="last"`: of nodes that write one
    key side by side the last declared wins. `checkpoint_enabled=False`: what nodes of a wave return is recorded together if they
    end soon one after the other, which costs fewer commits; a crash meanwhile repeats those nodes. True: each at once.
    """

    enabled: bool = True
    max_iterations: int = 25
    node_timeout: Seconds = 120.0
    total_timeout: Seconds = 0.0
    checkpoint_enabled: bool = False
    parallel_branches: bool = True
    max_parallel_branches: int = 0
    on_conflict: Literal["error", "last"] = "error"

    def __post_init__(self) -> None:
        for name in ("enabled", "checkpoint_enabled", "parallel_branches"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is True or False, not {getattr(self, name)!r}")
        _check_count("max_iterations", self.max_iterations, least=1)
        _check_count("max_parallel_branches", self.max_parallel_branches, least=0)
        if self.on_conflict not in ("error", "last"):
            raise ValueError(f"on_conflict is 'error' or 'last', not {self.on_conflict!r}")
        for name in ("node_timeout", "total_timeout"):
            as_seconds(name, getattr(self, name))

    @property
    def node_seconds(self) -> float:
        return as_seconds("node_timeout", self.node_timeout)

    @property
    def total_seconds(self) -> float:
        return as_seconds("total_timeout", self.total_timeout)

    @property
    def branches_max(self) -> int:
        """How many nodes may run at a time; 0: all."""
        return self.max_parallel_branches if self.parallel_branches else 1


def _check_count(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is an integer >= {least}, not {value!r}")
