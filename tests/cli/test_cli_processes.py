"""Workers as processes: drain, signals, crashes; and the demo. Waits on conditions, never on time."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from durable_cli.demo import KILLED_IN, STEPS, Effect, verdict

from durable import Run
from tests.cli.cli_harness import PATIENCE_SECONDS, Child, Cli, environment, wait_until
from tests.cli.test_cli_story import a_run

Start = Callable[..., Child]


def test_a_draining_worker_finishes_the_backlog_and_exits(cli: Cli, child: Start) -> None:
    """It waits for timers and retries, not for signals."""
    cli("start", "app.py:hello", "W", "--id", "h")
    cli("start", "app.py:nap", "seconds:=0.2", "--id", "nap")
    cli("start", "app.py:noted", "--id", "n")
    cli("start", "app.py:train", "--id", "gpu")

    ended = child("worker", "app.py", "--drain").end()

    assert (ended.code, ended.out) == (0, "")
    assert (
        "durable 0.1.0 · app.py: 10 workflows, 5 activities · queues default, gpu · concurrency 100 · sqlite:///durable.db"
        in ended.err
    )
    assert "ready.  drains the backlog, then exits" in ended.err
    assert {row[0]: row[2] for row in cli("list").rows} == {
        "h": "completed", "nap": "completed", "n": "waiting", "gpu": "completed",
    }  # fmt: skip


CART = """
from durable import wait_condition, workflow


@workflow
class Cart:
    def __init__(self) -> None:
        self.items: list[str] = []

    async def run(self) -> list[str]:
        await wait_condition(lambda: "end" in self.items)
        return self.items

    @workflow.update
    def add(self, item: str) -> dict[str, int]:
        if item == "7":
            raise LookupError("no 7")
        self.items.append(item)
        return {"count": len(self.items)}

    @add.validator
    def check(self, item: str) -> None:
        if not item:
            raise ValueError("nothing to add")
"""


def test_a_run_is_called_into(cli: Cli, child: Start, here: Path) -> None:
    """The answer is data, on stdout; a refusal and a failure end with 1, no answer in time with 5, a closed run with 6."""
    (here / "cart.py").write_text(CART, encoding="utf-8")
    assert cli("start", "cart.py:Cart", "--id", "c").code == 0
    late = cli("update", "c", "add", "tea", "--message-id", "first", "--timeout", "10ms")
    assert (late.code, late.out) == (5, "")
    assert "has not answered update" in late.err
    worker = child("worker", "cart.py")
    worker.wait_for("ready")

    first = cli("update", "c", "add", "tea", "--message-id", "first")
    assert (first.code, first.out) == (0, '{"count":1}\n')
    again = cli("update", "c", "add", "tea", "--message-id", "first", "-o", "json")
    assert json.loads(again.out) == {"v": 1, "run_id": "c", "update": "add", "answer": {"count": 1}}
    refused = cli("update", "c", "add", "", "--app", "cart.py")
    assert (refused.code, refused.out) == (1, "")
    assert "error: update 'add' of run 'c' was refused: ValueError: nothing to add" in refused.err
    failed = cli("update", "c", "add", "7", "--app", "cart.py")  # text, as the method takes it
    assert "error: update 'add' of run 'c' failed: LookupError: no 7" in failed.err
    unfit = cli("update", "c", "add", ":=7")
    assert (unfit.code, unfit.out) == (1, "")
    assert "expected `str`, got `int`" in unfit.err
    assert cli("update", "c", "add", "end").out == '{"count":2}\n'
    assert cli("result", "c").out == '["tea","end"]\n'
    assert cli("update", "c", "add", "more").code == 6
    assert 'update add("tea")' in cli("show", "c").out
    assert cli("update", "nosuch", "add").code == 3


def test_a_worker_serves_the_queue_it_is_told(cli: Cli, child: Start) -> None:
    """--task-queue."""
    cli("start", "app.py:train", "--id", "gpu")
    cli("start", "app.py:hello", "W", "--id", "h")

    assert child("worker", "app.py", "--drain", "--task-queue", "gpu").end().code == 0

    assert {row[0]: row[2] for row in cli("list").rows} == {"h": "pending", "gpu": "completed"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(cli: Cli, child: Start, here: Path, number: signal.Signals) -> None:
    """Running activities end, nothing new is claimed, exit code 0."""
    cli("start", "app.py:waiting", "started", "proceed", "--id", "w")
    worker = child("worker", "app.py")
    wait_until((here / "started").exists, "the activity")

    worker.process.send_signal(number)
    worker.wait_for("draining (30s), again stops now")
    cli("start", "app.py:hello", "W", "--id", "later")
    (here / "proceed").touch()
    ended = worker.end()

    assert ended.code == 0
    assert "Traceback" not in ended.err
    assert cli("show", "w", "--events").out.count("activity_completed") == 1
    assert [row[2] for row in cli("list", "--id", "later").rows] == ["pending"]


def test_a_worker_that_is_stopped_while_it_imports_ends_in_order(child: Start, here: Path) -> None:
    """It has nothing to hand back yet; whoever supervises it must not think that it failed."""
    (here / "slow.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n", encoding="utf-8"
    )
    worker = child("worker", "slow.py")
    wait_until((here / "importing").exists, "the import")

    worker.process.send_signal(signal.SIGTERM)

    assert worker.end().code == 0


def test_a_thread_that_hangs_does_not_keep_the_process(cli: Cli, child: Start, here: Path) -> None:
    """A sync activity cannot be stopped: after the grace the process goes all the same."""
    cli("start", "app.py:hanging", "hangs", "--id", "h")
    worker = child("worker", "app.py", "--grace", "100ms")
    wait_until((here / "hangs").exists, "the activity")

    worker.process.terminate()

    assert worker.end().code == 0
    assert cli("list").rows[0][2] != "completed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(
    cli: Cli, child: Start, here: Path, number: signal.Signals, code: int
) -> None:
    """Whatever runs is left to whoever takes over."""
    cli("start", "app.py:waiting", "started", "proceed", "--id", "w")
    worker = child("worker", "app.py")
    wait_until((here / "started").exists, "the activity")

    worker.process.send_signal(number)
    worker.wait_for("draining")
    worker.process.send_signal(number)

    assert worker.end().code == code


def test_a_second_signal_stops_a_worker_whose_loop_is_stuck(cli: Cli, child: Start, here: Path) -> None:
    """A workflow that never awaits holds the loop; the signal handlers are not on it."""
    cli("start", "app.py:spin", "spins", "--id", "s")
    worker = child("worker", "app.py")
    wait_until((here / "spins").exists, "the workflow")

    def stop() -> bool:
        worker.process.terminate()
        return worker.process.poll() is not None

    wait_until(stop, "the end of the process")
    assert worker.end().code == 143


def test_a_killed_workers_runs_are_recovered(cli: Cli, child: Start, here: Path) -> None:
    """`recover` says how many from which worker; with --app it drives them, too."""
    cli("start", "app.py:waiting", "started", "proceed", "--id", "w")
    worker = child("worker", "app.py")
    wait_until((here / "started").exists, "the activity")
    (here / "proceed").touch()
    worker.process.kill()
    worker.process.wait(PATIENCE_SECONDS)

    if cli("show", "w").rows[2][1] != "completed":  # it may have been quick
        recovered = cli("recover", "-o", "json")
        assert json.loads(recovered.out)["runs"] == 1
        assert str(worker.process.pid) in json.loads(recovered.out)["workers"][0]["name"]
    assert cli("recover").out == "recovered 0 runs: no dead worker\n"
    assert cli("recover", "--app", "app.py").code == 0
    assert cli("result", "w", "--timeout", "0").out == '"done"\n'


def test_an_interrupted_run_can_go_on(cli: Cli, child: Start, here: Path) -> None:
    """Ctrl-C on `durable run`: 130, and the hint says how."""
    run = child("run", "app.py:waiting", "started", "proceed", "--id", "w")
    wait_until((here / "started").exists, "the activity")

    run.process.send_signal(signal.SIGINT)
    ended = run.end()

    assert (ended.code, ended.out) == (130, "")
    assert (
        "error: interrupted; run w is stored and can go on\nhint: durable worker app.py:waiting --drain"
        in ended.err
    )
    (here / "proceed").touch()
    assert child("worker", "app.py:waiting", "--drain").end().code == 0
    assert cli("result", "w", "--timeout", "0").code == 0


def test_waiting_can_be_interrupted(cli: Cli, child: Start) -> None:
    """130."""
    cli("start", "app.py:noted", "--id", "n")
    wait = child("wait", "n")
    wait.wait_for("waiting on")

    wait.process.send_signal(signal.SIGINT)

    ended = wait.end()
    assert ended.code == 130
    assert "Traceback" not in ended.err


def test_following_shows_a_run_as_it_goes_on(cli: Cli, child: Start, here: Path) -> None:
    """show -f ends with the run; each change is a line."""
    cli("start", "app.py:waiting", "started", "proceed", "--id", "w")
    follow = child("show", "w", "-f")
    child("worker", "app.py", "--drain")
    wait_until((here / "started").exists, "the activity")
    (here / "proceed").touch()

    ended = follow.end()

    assert ended.code == 0
    assert ended.out.splitlines()[-1] == 'status\tcompleted\t"done"'
    assert 'slow(started="started"' in ended.out or 'slow(proceed="proceed"' in ended.out


def on_a_terminal(*args: str, answer: str = "") -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and what the terminal showed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "durable_cli", *args],
        stdin=slave, stdout=slave, stderr=slave, env=environment() | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(slave)
    os.write(master, answer.encode())
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    return process.wait(PATIENCE_SECONDS), shown.decode()


def test_terminate_asks_on_a_terminal(cli: Cli) -> None:
    """No changes nothing and ends like an interruption, yes terminates."""
    cli("start", "app.py:noted", "--id", "t")

    code, shown = on_a_terminal("terminate", "t", "--reason", "stuck", answer="n\n")
    assert (code, cli("list").rows[0][2]) == (130, "pending")
    assert "terminate noted run t (pending)?" in shown
    code, _ = on_a_terminal("terminate", "t", "--reason", "stuck", answer="y\n")
    assert (code, cli("list").rows[0][2]) == (0, "terminated")


def test_a_terminal_gets_colour_and_a_table(cli: Cli) -> None:
    """And a pipe does not."""
    cli("run", "app.py:hello", "W", "--id", "h")

    code, shown = on_a_terminal("list")

    assert code == 0
    assert "\x1b[32mcompleted" in shown
    assert "1 run · db sqlite:///durable.db · next: durable show h" in shown


# ─ the demo ──


def test_demo_crash_keeps_its_promises(child: Start, here: Path) -> None:
    """From any directory, without any set-up."""
    ended = child("demo", "crash").end()

    assert ended.code == 0, ended.out + ended.err
    assert "kill -9" in ended.out
    assert "book_courier   ran 2 times" in ended.out
    assert "charge_card    ran 1 time" in ended.out
    assert "Kept: what was done was not done again" in ended.out
    assert not (here / "durable.db").exists()


def test_demo_crash_in_a_database_of_ones_own(child: Start, cli: Cli) -> None:
    """--db is respected; JSON for programs."""
    ended = child("demo", "crash", "--db", "mine.db", "-o", "json").end()
    told = json.loads(ended.out)

    assert (ended.code, told["v"], told["status"], told["broken"]) == (0, 1, "completed", [])
    assert [one["attempt"] for one in told["effects"] if one["step"] == KILLED_IN] == [1, 2]
    assert cli("show", "@last", "--db", "mine.db").rows[0][1] == told["run_id"]


def effects(*changes: Effect) -> list[Effect]:
    return [Effect(step, step, 1) for step in STEPS] + list(changes)


@pytest.mark.parametrize(
    ("run", "seen", "broken"),
    [
        (a_run(), effects(Effect(KILLED_IN, KILLED_IN, 2)), []),
        (a_run(), effects(), []),
        (a_run(status="failed", error="boom"), effects(), ["the run is failed: boom"]),
        (a_run(), effects(Effect("charge_card", "charge_card", 2)), ["charge_card ran 2 times"]),
        (a_run(), effects()[1:], ["check_stock ran 0 times"]),
        (a_run(), effects(Effect(KILLED_IN, "other", 2)), [f"{KILLED_IN} had several idempotency keys"]),
        (a_run(), effects(Effect(KILLED_IN, KILLED_IN, 1)), [f"{KILLED_IN} counted its attempts [1, 1]"]),
    ],
)
def test_the_demo_would_notice_a_broken_promise(run: Run, seen: list[Effect], broken: list[str]) -> None:
    """A proof that cannot fail proves nothing."""
    assert verdict(run, seen) == broken
