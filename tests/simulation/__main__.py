"""`python -m tests.simulation --seeds N --start K`: run seeds; a failing one tells how to see it again."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.faults import KINDS
from tests.simulation.simulation import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--start", type=int, default=0, help="the first one (default 0)")
    parser.add_argument(
        "--without", action="append", default=[], choices=KINDS, help="leave a kind of fault out"
    )
    parser.add_argument("--tail", type=int, default=80, help="how many of the last events a failure shows")
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare")
    parser.add_argument("--hashes", action="store_true", help="print each seed's hash")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first failing seed")
    options = parser.parse_args()
    began = time.monotonic()
    faults: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    failed: list[int] = []
    virtual = callbacks = bodies = 0.0
    for seed in range(options.start, options.start + options.seeds):
        report = run_seed(seed, without=options.without, tail=options.tail)
        if options.twice and (again := run_seed(seed, without=options.without)).hash != report.hash:
            report.violations.append(f"not deterministic: {report.hash} and {again.hash}")
        if options.hashes:
            print(seed, report.hash)
        faults.update(report.faults)
        outcomes.update(report.outcomes)
        virtual += report.virtual_seconds
        callbacks += report.callbacks
        bodies += report.bodies
        if report.violations:
            failed.append(seed)
            without = "".join(f" --without '{kind}'" for kind in options.without)
            print(report.text(f"python -m tests.simulation --seeds 1 --start {seed}{without}"), flush=True)
            if not options.go_on:
                break
    seconds = time.monotonic() - began
    print(
        f"{seed - options.start + 1} seeds in {seconds:.1f} s: {virtual / 3600:.2f} virtual hours, "
        f"{callbacks:.0f} callbacks, {bodies:.0f} bodies; failed: {failed or 'none'}"
    )
    for title, counts in (("faults", faults), ("outcomes", outcomes)):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
