"""`durable check`: what a replay would answer differently, in the source; and which runs today's code would break."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.cli_harness import Cli

FAULTY = """
import asyncio
import os
import random
import time
from datetime import datetime
from pathlib import Path
from time import time as clock

import durable
from durable import activity, workflow

SEEN: dict[str, int] = {}
NAMES = {"a", "b"}


@activity
async def charge(cents: int) -> int:
    return round(time.time()) * 0 + cents


def dice() -> int:
    return random.randint(1, 6)  # LINE randomness


@workflow
async def faulty(tags: set[str]) -> int:
    %s
    return 0
"""
CLASSES = """
import time
from durable import workflow
@workflow
class Hasty:
    def __init__(self) -> None:
        self.began = time.time()
    async def run(self) -> float:
        return self.waited()
    def waited(self) -> float:
        time.sleep(1)
        return self.began
"""
RULES = [
    ("time.time()", "wall-clock"),
    ("clock()", "wall-clock"),
    ("datetime.now()", "wall-clock"),
    ("time.localtime()", "wall-clock"),
    ("random.random()", "randomness"),
    ("os.urandom(3)", "randomness"),
    ("import uuid; uuid.uuid4()", "randomness"),
    ("time.sleep(1)", "blocking"),
    ("open('x')", "input-output"),
    ("Path('x').read_text()", "input-output"),
    ("import requests; requests.get('x')", "input-output"),
    ("os.getenv('A')", "environment"),
    ("os.environ['A']", "environment"),
    ("[tag for tag in tags]", "set-order"),
    ("for name in NAMES: pass", "set-order"),
    ("list({1, 2} | {3})", "set-order"),
    ("x = set('ab'); x.pop()", "set-order"),
    ("asyncio.as_completed([charge(1)])", "as-completed"),
    ("await asyncio.to_thread(dice)", "threads"),
    ("SEEN['a'] = 1", "global-state"),
    ("SEEN.update(a=1)", "global-state"),
    ("charge(1)", "not-awaited"),
    ("asyncio.sleep(1)", "not-awaited"),
    ("hash('x')", "address"),
]
FINE = [
    "durable.now(), durable.random().random(), durable.uuid4()",
    "for tag in sorted(tags): pass",
    "await charge(1)",
    "await asyncio.wait([asyncio.ensure_future(charge(1))])",
    "time.localtime(3)",
    "random.Random(3).random()",
    "time = 3; time",
    "len(tags), 'a' in tags, min(tags)",
    "seen = {}; seen['a'] = 1; seen.update(b=2)",
    "with durable.unguarded(): time.time()",
    "time.time()  # durable: ignore",
]
SHOP = """
import asyncio
from durable import Signal, activity, workflow

go = Signal("go", bool)

@activity
async def charge(n: int) -> int:
    return n

@workflow
async def order(n: int) -> int:
    paid = await charge(n)
    await go.wait()
    return paid

@workflow
async def quick(names: list[str]) -> int:
    for name in {*names}:  # durable: ignore
        await charge.options(name=name)(1)
    return 0

@workflow
async def other(names: list[str]) -> int:
    for name in {*names}:  # durable: ignore
        await charge(len(name))
    return 0
"""


def written(here: Path, name: str, text: str) -> str:
    (here / name).write_text(text)
    return name


def faults(cli: Cli, here: Path, name: str, line: str) -> list[tuple[str, int]]:
    target = written(here, f"{name}.py", FAULTY % line)
    ended = cli("check", target, "-o", "json")
    told = json.loads(ended.out)["faults"]
    assert ended.code == int(bool(told))
    return [(fault["rule"], fault["line"]) for fault in told]


def test_what_a_replay_answers_differently_is_found(cli: Cli, tmp_path: Path) -> None:
    """Whatever it was imported as; each with its line."""
    line = FAULTY[: FAULTY.index("%s")].count("\n") + 1

    for number, (code, rule) in enumerate(RULES):
        assert (rule, line) in faults(cli, tmp_path, f"faulty_{number}", code), code


def test_what_is_deterministic_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    for number, code in enumerate(FINE):
        assert faults(cli, tmp_path, f"fine_{number}", code) == [], code


def test_functions_that_a_workflow_calls_are_read_too(cli: Cli, tmp_path: Path) -> None:
    """And activities are not: they may do what they like."""
    target = written(tmp_path, "calling.py", FAULTY % "dice(), await charge(1)")
    ended = cli("check", target)
    line = 1 + FAULTY[: FAULTY.index("LINE")].count("\n")

    assert ended.out == (
        f"calling.py:{line}:12: randomness: random.randint() in dice(), which workflow 'faulty' calls: use durable.random()\n"
    )
    assert ended.err == "1 workflow read: 1 fault\n"
    assert ended.code == 1


def test_the_methods_of_a_class_are_read(cli: Cli, tmp_path: Path) -> None:
    """All of them: whatever an object of a workflow does is workflow code."""
    target = written(tmp_path, "classes.py", CLASSES)
    ended = cli("check", target)

    assert ended.out.splitlines() == [
        "classes.py:7:22: wall-clock: time.time() in workflow 'Hasty': use durable.now()",
        "classes.py:11:9: blocking: time.sleep() in workflow 'Hasty': use `await durable.sleep()`, a durable timer",
    ]


@pytest.fixture
def shop(cli: Cli, tmp_path: Path) -> Path:
    """A database with a run that waits and one that has ended, and their code."""
    written(tmp_path, "shop.py", SHOP)
    assert cli("run", "shop.py:quick", 'names:=["ab"]', "--id", "q-1").code == 0
    assert cli("start", "order", "n:=1", "--id", "o-1", "--app", "shop.py").code == 0
    assert cli("start", "order", "n:=2", "--id", "o-2", "--app", "shop.py").code == 0
    cli("worker", "shop.py", "--drain")
    return tmp_path


def test_runs_that_fit_are_counted(cli: Cli, shop: Path) -> None:
    ended = cli("check", "shop.py", "--against", "durable.db", "--hash-seeds", "0")

    assert (ended.code, ended.out) == (0, "")
    assert ended.err.splitlines()[-1] == "3 runs replayed: none would break"


def test_runs_that_would_break_are_listed_with_both_lines(cli: Cli, shop: Path) -> None:
    """Live ones and closed ones; the database is as it was, and so are the runs."""
    before = cli("show", "o-1", "--events").out
    written(shop, "newer.py", SHOP.replace("paid = await charge(n)", "paid = n"))
    ended = cli(
        "check", "newer.py", "--against", "sqlite:///durable.db", "--hash-seeds", "0", "--junit", "r.xml"
    )

    assert ended.code == 1
    assert "✗ o-1 (order, waiting) would break" in ended.out
    assert "activity 'charge' (call 1), asked for at" in ended.out
    assert "shop.py:13" in ended.out
    assert "newer.py:14" in ended.out
    assert ended.err.splitlines()[-1] == "3 runs replayed: 2 would break"
    assert cli("show", "o-1", "--events").out == before
    suites = {one.get("name"): one for one in ElementTree.parse(shop / "r.xml").getroot()}
    assert (suites["runs of order"].get("tests"), suites["runs of order"].get("failures")) == ("2", "2")
    assert suites["runs of quick"].get("failures") == "0"


def test_filters_and_a_limit_choose_the_runs(cli: Cli, shop: Path) -> None:
    written(shop, "newest.py", SHOP.replace("paid = await charge(n)", "paid = n"))
    words = ("check", "newest.py", "--against", "durable.db", "--hash-seeds", "0")

    assert cli(*words, "--workflow", "quick").code == 0
    assert cli(*words, "--id", "o-*", "--limit", "1").err.splitlines()[-1] == "1 run replayed: 1 would break"


def test_a_run_is_checked_from_a_file(cli: Cli, shop: Path) -> None:
    """What `durable show --events -o json` prints, elsewhere, without the database."""
    written(shop, "o-1.json", cli("show", "o-1", "--events", "-o", "json").out)
    written(shop, "other.py", SHOP.replace("paid = await charge(n)", "paid = n"))

    assert cli("check", "shop.py", "--against", "o-1.json", "--hash-seeds", "0").code == 0
    assert cli("check", "other.py", "--against", "o-1.json", "--hash-seeds", "0").code == 1
    written(shop, "broken.json", "{}")
    assert "this is no recorded run" in cli("check", "shop.py", "--against", "broken.json").out


@pytest.mark.slow
def test_what_breaks_under_another_hash_seed_only_is_found(cli: Cli, shop: Path) -> None:
    """Text in sets has another order there: with one item it cannot be seen, with ten it is."""
    names = json.dumps([f"{'x' * n}" for n in range(1, 11)])
    assert cli("run", "shop.py:quick", f"names:={names}", "--id", "q-2").code == 0
    assert cli("run", "shop.py:other", f"names:={names}", "--id", "q-3").code == 0
    ended = cli("check", "shop.py", "--against", "durable.db", "--hash-seeds", "2")

    assert ended.code == 1
    assert "✗ q-2 (quick, completed) would break, under PYTHONHASHSEED=" in ended.out
    assert "! q-3 (other, completed) differs, under PYTHONHASHSEED=" in ended.out


def test_another_argument_is_a_warning_that_may_count(cli: Cli, shop: Path) -> None:
    """The journal's result stands, as it does in a worker; `--strict` wants to know."""
    written(shop, "dearer.py", SHOP.replace("paid = await charge(n)", "paid = await charge(n + 1)"))
    words = ("check", "dearer.py", "--against", "durable.db", "--hash-seeds", "0")
    ended = cli(*words)

    assert (ended.code, cli(*words, "--strict").code) == (0, 1)
    assert "! o-1 (order, waiting) differs: event 1: charge" in ended.out
    assert ended.err.splitlines()[-1] == "3 runs replayed: none would break, 2 differ without breaking"


def test_a_database_that_would_be_migrated_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Checking writes nothing: opening would."""
    written(tmp_path, "shop.py", SHOP)
    (tmp_path / "empty.db").touch()

    assert cli("check", "shop.py", "--against", "empty.db").code == 4
    assert cli("check", "shop.py", "--against", "missing.db").code == 4


def test_without_a_target_it_says_what_is_missing(cli: Cli) -> None:
    ended = cli("check")

    assert ended.code == 2
    assert "do not know which code to check" in ended.err
