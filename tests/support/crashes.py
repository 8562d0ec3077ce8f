"""Scenes of the crash suite: one database each, the processes around it, and what was seen of it in between.

A test launches processes with a plan of their death, waits for what it asks of them, and lets the scene check everything.
Knows how to run many scenes at once: they wait more than they work.
"""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from durable import Activity
from durable.journal.events import ActivityCompleted
from tests.crash.programs import workflows
from tests.crash.programs.main import Options
from tests.support import crash_ledger, postgres
from tests.support.crash_checks import (
    Checks,
    Outcome,
    Reading,
    differences,
    entries_of,
    read_database,
    read_schema,
)
from tests.support.crash_ledger import Line
from tests.support.crash_points import Death

ROOT: Final = Path(__file__).parents[2]
WAIT_SECONDS: Final = 60.0
SERVER_LEASE_SECONDS: Final = 1.0
SERVER_SLACK_US: Final = 20_000
_schemas = itertools.count(1)
AT_ONCE: Final = 6  # scenes side by side
LOG_CHARACTERS_MAX: Final = 6000
OF_A_RUN: Final = (  # tables with a column `run`
    "journal",
    "attempt",
    "inbox",
    "message_id",
    "request",
    "run_payload",
    "generation",
    "activity_task",
    "child",
)

ATTEMPTS_MAX: Final = {
    value.name: value.definition.retry.max_attempts
    for value in vars(workflows).values()
    if isinstance(value, Activity)
}


class Child:
    """One process of a scene."""

    def __init__(self, options: Options, log: Path, hash_seed: str) -> None:
        self.options = options
        self.log = log
        self.hash_seed = hash_seed
        self.pid = 0
        self.status: int | None = None
        self.began = threading.Event()
        self.ended = threading.Event()

    def __str__(self) -> str:
        plan = f", to be killed {self.options.plan}" if self.options.plan.n else ""
        return f"{self.options.program} {self.pid} (hash seed {self.hash_seed}{plan}): {self.status}"

    @property
    def is_over(self) -> bool:
        return self.ended.is_set()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if not self.is_over:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass  # it went meanwhile

    def kill(self) -> None:
        """Kill it and see it gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        """Return its exit status; minus the signal's number if one killed it."""
        if not self.ended.wait(seconds):
            raise AssertionError(f"{self} did not end within {seconds:g} s")
        assert self.status is not None
        return self.status


class Zygote:
    """Where children come from. Thread-safe."""

    def __init__(self, hash_seed: str, *, preload: Path | None = None) -> None:
        self.hash_seed = hash_seed
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        chosen = {name: value for name, value in os.environ.items() if not name.startswith("DURABLE_")}
        if preload is not None:
            chosen["LD_PRELOAD"] = str(preload)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crash_zygote"],
            cwd=ROOT,
            env=chosen | {"PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._lock = threading.Lock()
        self._tags = itertools.count(1)
        self._by_tag: dict[int, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def launch(self, options: Options, log: Path) -> Child:
        child = Child(options, log, self.hash_seed)
        with self._lock:
            tag = next(self._tags)
            self._by_tag[tag] = child
            line = msgspec.json.encode({"tag": tag, "log": str(log), "options": options})
            assert self._process.stdin is not None
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        if not child.began.wait(WAIT_SECONDS):
            raise AssertionError("the zygote does not answer")
        return child

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = msgspec.json.decode(line)
            with self._lock:
                if "tag" in message:
                    child = self._by_tag.pop(message["tag"])
                    child.pid = message["pid"]
                    self._by_pid[child.pid] = child
                    child.began.set()
                else:
                    child = self._by_pid.pop(message["pid"])
                    child.status = message["status"]
                    child.ended.set()

    def close(self) -> None:
        """End it and all its children."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        self._process.stdout.close()


class Stage:
    """Where scenes are played: on files, or in schemas of one server."""

    def __init__(self, zygotes: Sequence[Zygote], server_url: str | None) -> None:
        self._zygotes = zygotes
        self._server_url = server_url

    @property
    def is_server(self) -> bool:
        return self._server_url is not None

    def __call__(self, directory: Path) -> Scene:
        if self._server_url is None:
            return Scene(directory, self._zygotes)
        return Scene(
            directory,
            self._zygotes,
            url=postgres.in_schema(self._server_url, f"c{os.getpid()}_{next(_schemas)}"),
        )


class Scene:
    """One database and its processes. As a context manager, it kills what is left.

    On a server only silence tells of a death: leases are short there unless a launch says otherwise.
    """

    def __init__(self, directory: Path, zygotes: Sequence[Zygote], *, url: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.url = url
        self.is_server = bool(url)
        self.database = directory / "runs.db"
        self.children: list[Child] = []
        self.shaken: set[int] = set()
        self.drained: set[int] = set()
        self.readings: list[Reading] = []
        self._zygotes = zygotes

    @property
    def database_url(self) -> str:
        return self.url or f"sqlite:///{self.database}"

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.kill()

    def launch(self, program: str, **options: Any) -> Child:
        """Start a process. Its neighbour gets another hash seed."""
        number = len(self.children)
        where: dict[str, Any] = {"program": program, "directory": str(self.directory), "url": self.url}
        if self.is_server:
            where["lease_seconds"] = SERVER_LEASE_SECONDS
        chosen = msgspec.convert(where | msgspec.to_builtins(options), Options)
        zygote = self._zygotes[number % len(self._zygotes)]
        child = zygote.launch(chosen, self.directory / f"{number}-{program}.log")
        self.children.append(child)
        return child

    # ─ looking ──

    def read(self) -> Reading:
        """Read the database; what is read must hold for ever."""
        reading = self._read()
        self.readings.append(reading)
        return reading

    def _read(self) -> Reading:
        return read_schema(self.url) if self.is_server else read_database(self.database)

    def select(self, *statements: str) -> list[list[tuple[Any, ...]]]:
        """Return the rows of each statement, all as of one moment."""
        if self.is_server:
            return postgres.snapshot(self.url, "journal", statements) or []
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)) as connection:
            connection.execute("BEGIN")
            return [connection.execute(statement).fetchall() for statement in statements]

    def alter(self, statement: str) -> None:
        """Change rows, as time would have."""
        if self.is_server:
            postgres.tampered(self.url, statement)
            return
        with closing(sqlite3.connect(self.database, timeout=10)) as connection, connection:
            connection.execute(statement)

    def ownerless(self) -> list[str]:
        """Return the tables that hold rows of runs that are not there."""
        tables = OF_A_RUN if self.is_server else (*OF_A_RUN, "payload")
        found = self.select(
            *(f"SELECT count(*) FROM {table} WHERE run NOT IN (SELECT id FROM run)" for table in tables),  # noqa: S608  # our own names
            "SELECT count(*) FROM retention_run",
        )
        return [table for table, [(count,)] in zip((*tables, "retention_run"), found, strict=True) if count]

    def peek(self) -> Reading:
        """Read the database and forget it again: for conditions that are looked at often."""
        return self._read()

    def ledger(self) -> list[Line]:
        return crash_ledger.read(self.directory / "ledger.jsonl")

    def deaths(self) -> list[Death]:
        path = self.directory / "deaths.jsonl"
        return [msgspec.json.decode(line, type=Death) for line in lines_of(path)]

    def acknowledged(self) -> list[list[Any]]:
        """What calls of clients have returned, in order."""
        return [msgspec.json.decode(line) for line in lines_of(self.directory / "acknowledged.jsonl")]

    def wait_until(self, what: str, condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> float:
        """Wait for a condition and return how long that took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.story()}")
            time.sleep(0.05 if self.is_server else 0.005)  # a look at a server costs more
        return time.monotonic() - began

    def wait_until_closed(self, run_ids: Sequence[str], seconds: float = WAIT_SECONDS) -> Reading:
        """Wait until the runs are closed, and return the reading that says so."""

        def is_closed() -> bool:
            runs = self.peek().runs
            return all(run_id in runs and runs[run_id].status.is_closed for run_id in run_ids)

        self.wait_until(f"{len(run_ids)} runs are closed", is_closed, seconds)
        return self.read()

    def has_started(self, activity: str, *, pid: int | None = None, times: int = 1) -> bool:
        starts = [
            line
            for line in self.ledger()
            if line.what == "start" and f"/{activity}#" in line.key and pid in (None, line.pid)
        ]
        return len(starts) >= times

    def has_unrecorded_effect(self) -> bool:
        """Whether some body has ended, and its result is not in the database. For runs of one generation."""
        recorded = 0
        for (run_id, generation), entries in entries_of(self.peek()).items():
            recorded += sum(isinstance(entry, ActivityCompleted) for entry in entries)
            assert generation == 1, run_id
        return sum(line.what == "end" for line in self.ledger()) > recorded

    # ─ dying ──

    def kill(self, *children: Child) -> None:
        """Kill processes, all at once, and read what they left."""
        for child in children:
            self.shaken.add(child.pid)
            child.send(signal.SIGKILL)
        for child in children:
            child.wait()
        self.read()

    def has_died(self, child: Child) -> bool:
        """Wait for a process that may kill itself, note its death and read what it left; False if it got through."""
        status = child.wait()
        if status == 0:
            return False
        if status != -signal.SIGKILL:
            raise AssertionError(f"{child} failed\n{self.story()}")
        self.shaken.add(child.pid)
        self.read()
        return True

    def stop(self, *children: Child) -> None:
        """Drain workers (SIGTERM): they must end in order."""
        for child in children:
            self.send_term(child)
        for child in children:
            if (status := child.wait()) != 0:
                raise AssertionError(f"{child} did not drain: status {status}\n{self.story()}")

    def send_term(self, child: Child) -> None:
        """Ask a worker to drain."""
        self.drained.add(child.pid)
        self.shaken.add(child.pid)
        child.send(signal.SIGTERM)

    # ─ judging ──

    def check(self, expected: Mapping[str, Outcome], rules: type[Checks] = Checks) -> Reading:
        """Read for the last time; raise AssertionError with the whole story unless everything is as promised."""
        final = self.read()
        wrong = [line for earlier in self.readings for line in differences(earlier, final)]
        checks = rules(
            final,
            self.ledger(),
            shaken=self.shaken,
            drained=self.drained,
            undisturbed_starts=workflows.UNDISTURBED_STARTS,
            attempts_max=ATTEMPTS_MAX,
            slack_us=SERVER_SLACK_US if self.is_server else 0,
        )
        wrong.extend(checks.violations(expected))
        if wrong:
            listed = "\n".join(f"  - {one}" for one in dict.fromkeys(wrong))
            raise AssertionError(f"not as promised:\n{listed}\n{self.story()}")
        return final

    def story(self) -> str:
        """Return who was killed where, and what everybody said."""
        lines = [f"in {self.directory}:", *(f"  {child}" for child in self.children)]
        lines.extend(f"  {death.pid} died {death.where}" for death in self.deaths())
        for child in self.children:
            said = child.log.read_text(errors="replace") if child.log.exists() else ""
            lines.append(f"--- {child.log.name}\n{said[-LOG_CHARACTERS_MAX:]}")
        return "\n".join(lines)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []


def until_untouched(attempt: Callable[[int], bool], numbers: Sequence[int] | None = None) -> int:
    """Run `attempt(n)` for n = 1, 2, ... until one says that its process got through untouched; return how many died.

    Several run at once. With `numbers`, only these.
    """
    chosen = iter(numbers) if numbers is not None else itertools.count(1)
    lock = threading.Lock()
    is_over = threading.Event()
    died = 0

    def work() -> None:
        nonlocal died
        while not is_over.is_set():
            with lock:
                number = next(chosen, None)
            if number is None:
                return
            try:
                was_killed = attempt(number)
            except BaseException:
                is_over.set()
                raise
            if was_killed:
                with lock:
                    died += 1
            elif numbers is None:
                is_over.set()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(work) for _ in range(AT_ONCE)]
    for future in futures:
        future.result()
    return died
