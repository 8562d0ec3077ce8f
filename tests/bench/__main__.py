"""The command line: `python -m tests.bench --store sqlite|postgres [SCENARIO...] [-o json] [--quick]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.bench import (
    bulk,
    claims,
    crowds,
    guarding,
    in_process,
    machine,
    neighbours,
    patterns,
    processes,
    sleepers,
)
from tests.bench.place import Settings
from tests.bench.rows import Row, as_json, merged, table

STORES: Final = ("sqlite", "postgres")
SCENARIOS: Final[dict[str, Callable[[Settings], list[Row]]]] = {
    "sequential": in_process.sequential,
    "throughput": in_process.throughput,
    "latency": in_process.latency,
    "pipeline": patterns.pipelines,
    "graph": patterns.graphs,
    "saga": patterns.sagas,
    "bulk": bulk.bulk,
    "resume": processes.resume,
    "restart": processes.restart,
    "workers": processes.workers,
    "takeover": neighbours.takeover,
    "wakeup": neighbours.wakeup,
    "enqueue": crowds.enqueue,
    "signals": crowds.signals,
    "fanout": crowds.fanout,
    "heartbeats": crowds.heartbeats,
    "claims": claims.claims,
    "sleepers": sleepers.sleepers,
    "guards": guarding.guards,
    "import": processes.imports,
}
ROUNDS: Final = {
    "sequential": 5,
    "throughput": 5,
    "pipeline": 3,
    "graph": 3,
    "saga": 3,
    "bulk": 3,
    "resume": 3,
    "restart": 3,
    "workers": 3,
    "signals": 3,
    "enqueue": 3,
    "fanout": 3,
}  # others: 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status, which is 0 whatever the figures say."""
    options = _parser().parse_args(arguments)
    settings = Settings(
        store=options.store,
        directory=Path(options.dir),
        durability=options.durability,
        quick=options.quick,
    )
    rows: list[Row] = []
    for name in options.scenarios or SCENARIOS:
        rows += _measured(name, settings, options.rounds, as_lines=options.output == "json")
    if options.output == "text":
        print(table(rows))
        print(f"\n{machine.description()}; durability={settings.durability}")
        print(
            "ratio: against the same store calls alone, in the same process on the same database; higher is better"
        )
    return 0


def _measured(name: str, settings: Settings, rounds: int | None, *, as_lines: bool) -> list[Row]:
    """Run one scenario for its rounds, each with a look at the machine's speed; return the medians."""
    began = time.monotonic()
    done: list[list[Row]] = []
    for _ in range(rounds or (1 if settings.quick else ROUNDS.get(name, 1))):
        calibration = machine.calibration_ms()
        syncs = machine.syncs_per_second(settings.directory)
        found = SCENARIOS[name](settings)
        for row in found:
            row.extra["fdatasync_per_s"] = syncs
            row.extra["calibration_ms"] = calibration
            row.extra["store"] = settings.store
            if settings.quick:
                row.extra["quick"] = True
        done.append(found)
    rows = merged(done)
    print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    if as_lines:
        for row in rows:
            print(as_json(row), flush=True)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", type=_scenario, metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--store", required=True, type=_store, metavar="STORE", help=", ".join(STORES))
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--quick", action="store_true", help="a fifth of everything, once")
    parser.add_argument("--rounds", type=int, help="how often; the median is printed")
    parser.add_argument("--durability", choices=("full", "process"), default="full")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where the databases are made")
    return parser


def _scenario(name: str) -> str:
    if name not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"no scenario {name!r}: choose from {', '.join(SCENARIOS)}")
    return name


def _store(name: str) -> str:
    if name not in STORES:
        raise argparse.ArgumentTypeError(f"no benchmarks for store {name!r}: choose from {', '.join(STORES)}")
    return name


if __name__ == "__main__":
    sys.exit(main())
