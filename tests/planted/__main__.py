"""`python -m tests.planted [NAME...] --seeds N`: plant each bug in a copy of the tree and tell how many seeds found it."""

from __future__ import annotations

import argparse
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.planted.bugs import BUGS
from tests.planted.harness import Bug, Finding, NotPlanted, seek


def main() -> int:
    names = [bug.name for bug in BUGS]
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all): " + ", ".join(names))
    parser.add_argument("--seeds", type=int, default=200, help="at most so many for each (default 200)")
    parser.add_argument("--start", type=int, default=0, help="the first one (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="so many bugs at a time (default 1)")
    parser.add_argument("--limit", type=float, default=600, help="seconds for each (default 600)")
    parser.add_argument("--list", action="store_true", help="list the bugs and plant none")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no such bug: {', '.join(sorted(unknown))}")
    wanted = [bug for bug in BUGS if not options.names or bug.name in options.names]
    if options.list:
        for bug in wanted:
            print(f"{bug.name}: {bug.rule}")
        return 0

    def sought(bug: Bug) -> Finding | NotPlanted:
        try:
            return seek(bug, seeds=options.seeds, start=options.start, limit_seconds=options.limit)
        except NotPlanted as error:
            return error

    missed: list[str] = []
    taken: list[int] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for bug, finding in zip(wanted, pool.map(sought, wanted), strict=True):
            if isinstance(finding, NotPlanted):
                print(f"{bug.name:34} NOT PLANTED {finding}", flush=True)
                missed.append(bug.name)
                continue
            how = "a test" if bug.tests else f"{finding.seeds} {'narrow ' * bug.is_narrow}seeds"
            verdict = f"found by {how}" if finding.found else f"MISSED by {how}"
            print(f"{bug.name:34} {verdict}, {finding.seconds:.0f} s  {finding.told[:160]}", flush=True)
            if not finding.found:
                missed.append(bug.name)
            elif not bug.tests:
                taken.append(finding.seeds)
    median = f", median {statistics.median(taken):g} seeds, at most {max(taken)}" if taken else ""
    print(f"{len(wanted) - len(missed)} of {len(wanted)} found{median}; missed: {missed or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
