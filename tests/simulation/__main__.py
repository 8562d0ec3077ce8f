"""`python -m tests.simulation --seeds N --start K`: run seeds; a failing one tells how to see it again."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial

from tests.simulation.faults import KINDS
from tests.simulation.shrinking import Cut
from tests.simulation.simulation import Report, command, everything, run_seed, shrunk_command


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--start", type=int, default=0, help="the first one (default 0)")
    parser.add_argument(
        "--without", action="append", default=[], choices=KINDS, help="leave a kind of fault out"
    )
    parser.add_argument("--runs", type=_numbers, help="keep these runs alone, by number")
    parser.add_argument("--strikes", type=_numbers, help="keep these strikes alone, by number")
    parser.add_argument("--steps", type=int, help="keep so many steps of each program")
    parser.add_argument(
        "--narrow", action="store_true", help="let each seed draw from few kinds of steps and errands"
    )
    parser.add_argument("--no-shrink", action="store_true", help="do not look for a smaller failure")
    parser.add_argument("--tail", type=int, default=80, help="how many of the last events a failure shows")
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare")
    parser.add_argument("--hashes", action="store_true", help="print each seed's hash")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first failing seed")
    parser.add_argument(
        "--everything",
        action="store_true",
        help="fail if some kind of step, fault or feature was not reached",
    )
    parser.add_argument("--jobs", type=int, default=1, help="so many processes (default 1)")
    options = parser.parse_args()
    began = time.monotonic()
    faults: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    features: Counter[str] = Counter()
    failed: list[int] = []
    virtual = callbacks = bodies = 0.0
    seeds = range(options.start, options.start + options.seeds)
    done = 0
    with _reports(seeds, options) as reports:
        for report in reports:
            done += 1
            if options.hashes:
                print(report.seed, report.hash)
            faults.update(report.faults)
            outcomes.update(report.outcomes)
            features.update(report.features)
            virtual += report.virtual_seconds
            callbacks += report.callbacks
            bodies += report.bodies
            if report.violations:
                failed.append(report.seed)
                print(report.text(command(report.seed, _cut(options))), flush=True)
                if not options.no_shrink:
                    print(f"smaller: {shrunk_command(report.seed, _cut(options))}", flush=True)
                if not options.go_on:
                    break
    seconds = time.monotonic() - began
    print(
        f"{done} seeds in {seconds:.1f} s: {virtual / 3600:.2f} virtual hours, "
        f"{callbacks:.0f} callbacks, {bodies:.0f} bodies; failed: {failed or 'none'}"
    )
    for title, counts in (("faults", faults), ("features", features), ("outcomes", outcomes)):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    missing = everything() - {*features, *faults} if options.everything else set()
    if missing:
        print(f"NOT REACHED: {', '.join(sorted(missing))}")
    return 1 if failed or missing else 0


def _cut(options: argparse.Namespace) -> Cut:
    return Cut(
        without=tuple(options.without),
        runs=options.runs,
        strikes=options.strikes,
        steps=options.steps,
        is_narrow=options.narrow,
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _run(seed: int, options: argparse.Namespace) -> Report:
    report = run_seed(seed, cut=_cut(options), tail=options.tail)
    if options.twice and (again := run_seed(seed, cut=_cut(options))).hash != report.hash:
        report.violations.append(f"not deterministic: {report.hash} and {again.hash}")
    return report


@contextmanager
def _reports(seeds: Iterable[int], options: argparse.Namespace) -> Iterator[Iterator[Report]]:
    run = partial(_run, options=options)
    if options.jobs == 1:
        yield map(run, seeds)
        return
    pool = ProcessPoolExecutor(options.jobs)
    try:
        yield pool.map(run, seeds)
    finally:
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
