"""Guards: what a workflow must not touch raises, names the way out, and parks the run; nobody else notices."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import random
import secrets
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from random import choice
from typing import Any

import pytest

import durable
from durable.engine import guards
from durable.engine.instance import Instance
from durable.errors import DefinitionError, PlatformFault, WorkflowGuardError
from durable.failures import record
from tests.support.engine_harness import EngineRun, an_activity, driven, until

SEES_CALLS = sys.version_info >= (3, 12)
with_monitoring = pytest.mark.skipif(not SEES_CALLS, reason="sys.monitoring came with Python 3.12")


@an_activity
async def work(x: int) -> int:
    return x


@dataclass
class Stamped:
    at: float = field(default_factory=time.time)


class Clock:
    @property
    def reading(self) -> float:
        return time.time()

    @staticmethod
    def read() -> float:
        return time.time()

    def __call__(self) -> float:
        return time.time()


def helper() -> float:
    return time.time()


def read_me() -> str:
    return Path(__file__).read_text()


read_clock = time.time


def in_a_workflow(touch: Callable[[], Any]) -> Any:
    """Run `touch` as the body of a workflow and return its value."""

    async def order() -> None:
        nonlocal value
        value = touch()

    value = None
    start_and_evict(order)
    return value


def start_and_evict(workflow: Callable[..., Any]) -> None:
    run = EngineRun(workflow, start=False)
    try:
        run.start()
    finally:
        run.instance.evict()


def refused(touch: Callable[[], Any]) -> WorkflowGuardError:
    """Return what the guard raises when a workflow does that."""
    with pytest.raises(WorkflowGuardError) as caught:
        in_a_workflow(touch)
    return caught.value


# ─ what is refused ───────────────────────────────────────────────────────────


@with_monitoring
@pytest.mark.parametrize(
    ("touch", "call", "instead"),
    [
        (lambda: time.time(), "time.time()", "durable.now()"),
        (lambda: time.time_ns(), "time.time_ns()", "durable.now()"),
        (lambda: time.monotonic(), "time.monotonic()", "durable.now()"),
        (lambda: time.perf_counter(), "time.perf_counter()", "durable.now()"),
        (lambda: time.localtime(), "time.localtime()", "durable.now()"),
        (lambda: time.sleep(0), "time.sleep()", "durable.sleep()"),
        (lambda: time.time(*()), "time.time()", "durable.now()"),
        (lambda: read_clock(), "time.time()", "durable.now()"),
        (lambda: datetime.now(), "datetime.now()", "durable.now()"),
        (lambda: datetime.now(UTC), "datetime.now()", "durable.now()"),
        (lambda: datetime.today(), "datetime.today()", "durable.now()"),
        (lambda: date.today(), "date.today()", "durable.now()"),
        (lambda: random.random(), "random.random()", "durable.random()"),
        (lambda: random.choice("ab"), "random.choice()", "durable.random()"),
        (lambda: choice("ab"), "random.choice()", "durable.random()"),
        (lambda: random.Random(), "random.Random() without a seed", "durable.random()"),
        (lambda: random.SystemRandom(), "random.SystemRandom()", "@activity"),
        (lambda: uuid.uuid1(), "uuid.uuid1()", "durable.uuid4()"),
        (lambda: uuid.uuid4(), "uuid.uuid4()", "durable.uuid4()"),
        (lambda: os.urandom(4), "os.urandom()", "@activity"),
        (lambda: secrets.token_hex(), "secrets.token_hex()", "@activity"),
        (lambda: secrets.choice("ab"), "SystemRandom.choice()", "@activity"),
        (lambda: helper(), "time.time()", "durable.now()"),
        (lambda: [helper() for _ in range(2)], "time.time()", "durable.now()"),
        (lambda: Stamped(), "time.time()", "durable.now()"),
        (lambda: Clock().reading, "time.time()", "durable.now()"),
        (lambda: Clock.read(), "time.time()", "durable.now()"),
        (lambda: Clock()(), "time.time()", "durable.now()"),
    ],
)
def test_clocks_and_chance_are_refused(touch: Callable[[], Any], call: str, instead: str) -> None:
    """Also through aliases, helpers, comprehensions, properties and generated constructors."""
    error = refused(touch)

    assert error.call == call
    assert instead in error.instead


@pytest.mark.parametrize(
    ("touch", "call"),
    [
        (lambda: open(__file__), f"open({__file__!r})"),  # noqa: SIM115  # it is never opened
        (lambda: Path(__file__).read_text(), f"open({__file__!r})"),
        (lambda: os.listdir("."), "os.listdir()"),
        (lambda: tempfile.mkdtemp(), "tempfile.mkdtemp()"),
        (lambda: os.environ.update(NO_SUCH_NAME="1"), "setting an environment variable"),
        (lambda: socket.socket(), "opening a socket"),
        (lambda: socket.getaddrinfo("localhost", 1), "socket.getaddrinfo()"),
        (lambda: sqlite3.connect(":memory:"), "sqlite3.connect()"),
        (lambda: subprocess.run(["true"]), "subprocess.Popen()"),
        (lambda: os.system("true"), "os.system()"),
        (lambda: os.kill(os.getpid(), 0), "os.kill()"),
        (lambda: threading.Thread(target=print).start(), "starting a thread"),
        (lambda: input(), "input()"),
    ],
)
def test_the_world_is_refused(touch: Callable[[], Any], call: str) -> None:
    """Files, environment, sockets, databases, processes, threads: on every version of Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was refused half-way is collected
        error = refused(touch)

    assert error.call == call
    assert "NO_SUCH_NAME" not in os.environ


@with_monitoring
def test_work_for_idle_threads_is_refused() -> None:
    """A pool whose threads wait already starts none."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        error = refused(lambda: pool.submit(int))

    assert error.call == "concurrent.futures.thread.ThreadPoolExecutor.submit()"


def test_the_error_says_what_where_in_which_run_and_what_instead() -> None:
    """The line is the author's own, even if the standard library opened the file."""
    error = refused(lambda: Path("orders.csv").read_text())

    assert isinstance(error, PlatformFault)
    assert error.run_id == "run-1"
    assert error.source.startswith("engine/test_guards.py:")
    assert str(error) == (
        f"open('orders.csv') in workflow 'order' ({error.source}): use files in an @activity and return what they held"
    )


def test_conditions_are_guarded_too() -> None:
    """They run in the middle of activations."""

    async def impatient() -> None:
        await until(lambda: bool(os.listdir(".")))

    with pytest.raises(WorkflowGuardError):
        start_and_evict(impatient)


def test_replay_is_guarded() -> None:
    """A run that is rebuilt meets the guard as well."""
    run = EngineRun(_one_call)

    async def changed() -> int:
        read_me()
        return int(await work(1))

    with pytest.raises(WorkflowGuardError):
        run.replay(changed)
    run.instance.evict()


async def _one_call() -> int:
    return int(await work(1))


@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_a_guard_that_is_swallowed_still_parks_the_run(kind: type[BaseException]) -> None:
    """The fault is noted on the run when it is raised: what the code makes of it changes nothing."""

    async def careless() -> str:
        try:
            read_me()
        except kind:
            pass
        return "done"

    run = EngineRun(careless, start=False)
    with pytest.raises(WorkflowGuardError):
        run.start()
    assert run.journal == []


def test_the_first_of_several_faults_counts() -> None:
    """What an author's `except` does after it is a consequence."""

    async def careless() -> None:
        try:
            os.listdir(".")
        except Exception:
            read_me()

    with pytest.raises(WorkflowGuardError, match="listdir"):
        start_and_evict(careless)


def test_a_finally_at_eviction_cannot_touch_the_world() -> None:
    """It runs again later, elsewhere; so it must not. The run is fine."""
    caught: list[str] = []

    async def tidy() -> None:
        try:
            await work(1)
        finally:
            try:
                read_me()
            except WorkflowGuardError as error:
                caught.append(error.call)

    run = EngineRun(tidy)
    run.instance.evict()

    assert len(caught) == 1


# ─ what is not ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "touch",
    [
        lambda: random.Random(7).random(),
        lambda: time.localtime(0),
        lambda: time.strptime("12", "%H"),
        lambda: datetime(2020, 1, 1),
        lambda: datetime.fromtimestamp(0, UTC),
        lambda: uuid.UUID(int=5),
        lambda: uuid.uuid5(uuid.NAMESPACE_DNS, "a"),
        lambda: json.loads("1"),
        lambda: durable.now(),
        lambda: durable.random(),
        lambda: durable.uuid4(),
        lambda: os.path.exists("x"),
        lambda: threading.current_thread(),
    ],
)
def test_what_gives_the_same_answer_again_is_allowed(touch: Callable[[], Any]) -> None:
    """Seeded chance, constructors, conversions, durable's own."""
    assert in_a_workflow(touch) is not None


def test_imports_inside_workflows_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import system reads files, whoever asks; so does a module while it is imported."""
    (tmp_path / "imported_late.py").write_text("with open(__file__) as file:\n    text = file.read()\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert in_a_workflow(lambda: __import__("imported_late").text).startswith("with")


def test_time_zones_work() -> None:
    """Their data is read from files, and is data."""

    def new_york() -> Any:
        from zoneinfo import ZoneInfo

        return ZoneInfo.no_cache("America/New_York").utcoffset(datetime(2020, 1, 1))

    assert in_a_workflow(new_york) is not None


def test_logging_and_tracebacks_work(tmp_path: Path) -> None:
    """A handler may open its file at the first record, a formatter the source."""
    log = logging.getLogger("test_guards")
    log.addHandler(handler := logging.FileHandler(tmp_path / "log", delay=True))

    def fail() -> bool:
        try:
            raise ValueError("lost")
        except ValueError as error:
            log.exception("failed")
            record(error)
        return True

    try:
        assert in_a_workflow(fail)
    finally:
        log.removeHandler(handler)
        handler.close()
    assert "lost" in (tmp_path / "log").read_text()


def test_a_finalizer_that_happens_to_run_here_works(tmp_path: Path) -> None:
    """Garbage is collected anywhere, also in the middle of somebody's activation."""
    opened: list[str] = []

    class Leaver:
        def __del__(self) -> None:
            with open(tmp_path / "left", "w") as file:
                opened.append(file.name)

    def drop() -> bool:
        leaver = Leaver()
        del leaver
        return True

    assert in_a_workflow(drop)
    assert opened


def test_an_error_that_nobody_can_be_told_of_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interpreter shows a finalizer's, and opens its source to do so; the run that it happens in goes on."""
    monkeypatch.setattr(sys, "unraisablehook", guards.free_to_show(sys.__unraisablehook__))

    class Breaks:
        def __del__(self) -> None:
            raise ValueError("broken")

    def drop() -> bool:
        breaks = Breaks()
        del breaks
        return True

    assert in_a_workflow(drop)
    assert 'raise ValueError("broken")' in capsys.readouterr().err


def test_outside_of_activations_nothing_is_refused(tmp_path: Path) -> None:
    """Between activations, the same thread does what it likes; so do activities."""

    @an_activity
    def write(x: int) -> float:
        (tmp_path / "file").write_text("x")
        return time.time() + random.random() + helper()

    async def plain() -> float:
        return float(await write(1))

    run = EngineRun(plain)
    assert (tmp_path).is_dir()
    assert helper() > 0
    assert run.drive().result > 0


def test_an_activity_thread_opens_files_while_workflows_activate() -> None:
    """A guard is armed for one thread, not for the process (P27)."""
    errors: list[BaseException] = []
    opened = 0
    began = threading.Event()

    def activity_body() -> None:
        nonlocal opened
        try:
            for _ in range(2000):
                with open(__file__):
                    opened += 1
                time.time()
                began.set()
        except BaseException as error:
            errors.append(error)

    async def busy() -> int:
        return sum([await work(x) for x in range(20)])

    thread = threading.Thread(target=activity_body)
    thread.start()
    began.wait(60)
    activations = 0
    while thread.is_alive():
        driven(busy)
        activations += 20
    thread.join()

    assert errors == []
    assert opened == 2000
    assert activations


# ─ the escape hatch ──────────────────────────────────────────────────────────


def test_unguarded_code_is_not_refused() -> None:
    """For code that its author knows to be deterministic."""

    async def reader() -> int:
        with durable.unguarded():
            first = read_me()
            await work(1)
            return len(first) - len(read_me()) + (0 if time.time() else 1)

    assert driven(reader).result == 0


def test_unguarded_ends_with_its_block_and_holds_for_one_task_only() -> None:
    """Siblings that run meanwhile stay guarded."""

    async def allowed() -> None:
        with durable.unguarded():
            await work(1)
            os.listdir(".")

    async def forbidden() -> None:
        await asyncio.sleep(0)
        os.listdir(".")

    async def both() -> None:
        await asyncio.gather(allowed(), forbidden())

    async def after() -> None:
        with durable.unguarded():
            os.listdir(".")
        os.listdir(".")

    for workflow in (both, after):
        with pytest.raises(WorkflowGuardError):
            start_and_evict(workflow)


def test_unguarded_does_nothing_outside_of_workflows() -> None:
    """A helper may use it whoever calls it."""
    with durable.unguarded():
        assert os.listdir(".")


# ─ the layers themselves ─────────────────────────────────────────────────────


def test_the_loop_still_refuses_what_it_refuses() -> None:
    """Asking the loop for threads is an error of the author's that can be caught, as before."""

    async def threads() -> str:
        try:
            await asyncio.to_thread(int)
        except DefinitionError:
            return "refused"
        return "?"

    assert driven(threads).result == "refused"


def in_a_fresh_process(code: str) -> str:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(["", *sys.path])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_SCRIPT = """
import sys, time
from tests.support.engine_harness import EngineRun
from durable.errors import WorkflowGuardError
async def order(): return time.time()
"""


@with_monitoring
def test_another_tools_id_is_left_alone() -> None:
    """Debuggers and profilers come first; the next free id is taken."""
    code = f"""{_SCRIPT}
sys.monitoring.use_tool_id(3, "mine")
try: EngineRun(order)
except WorkflowGuardError: print(sys.monitoring.get_tool(3), sys.monitoring.get_tool(4))
"""
    assert in_a_fresh_process(code) == "mine durable"


@with_monitoring
def test_without_a_free_id_there_is_no_guard_and_no_error() -> None:
    """Clocks are not seen then; files still are."""
    code = f"""{_SCRIPT}
for tool in (3, 4): sys.monitoring.use_tool_id(tool, "mine")
print(EngineRun(order).result > 0)
async def reader(): open(__file__)
try: EngineRun(reader)
except (WorkflowGuardError, NameError) as error: print(type(error).__name__)
"""
    assert in_a_fresh_process(code).split()[0] == "True"


def test_importing_installs_nothing() -> None:
    """The hook cannot be removed: it comes with the first run, not with the first import."""
    code = """
import sys
installed = []
sys.addaudithook(lambda event, args: installed.append(event) if event == "sys.addaudithook" else None)
import durable, durable.engine.instance
print(len(installed))
"""
    assert in_a_fresh_process(code) == "0"


@with_monitoring
def test_a_harmless_call_site_is_looked_at_once() -> None:
    """Which makes the layer nearly free."""
    from durable.engine import guards

    seen: list[object] = []
    real = guards._forbidden

    @functools.wraps(real)
    def counting(called: Any, first: Any) -> Any:
        if called is len:
            seen.append(called)
        return real(called, first)

    async def loops() -> int:
        return sum(len("x") for _ in range(50))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards, "_forbidden", counting)
        assert driven(loops).result == 50

    assert len(seen) == 1


def test_a_callable_without_code_can_be_a_workflow() -> None:
    """Guards watch what they can and let the rest be."""
    from durable.engine import guards

    guards.watch(functools.partial(print))
    assert issubclass(Instance, object)
