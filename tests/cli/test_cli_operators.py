"""What operators type: why, workers, resume, doctor, migrate, backup, prune, completion."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from durable_cli.health import Check, Group, check_log, check_queues, check_schema, check_tasks, next_steps
from durable_cli.output import bytes_text

import durable.store.sqlite.preparing
import durable.store.sqlite.schema
from durable import connect
from durable.store.migrations import load_migrations
from tests.cli.cli_harness import PATIENCE_SECONDS, Child, Cli, wait_until
from tests.cli.test_cli_processes import on_a_terminal

Start = Callable[..., Child]
AT = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def app(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line with app.py as the app."""
    monkeypatch.setenv("DURABLE_APP", "app.py")
    return cli


def changed(database: Path, statement: str) -> list[tuple[object, ...]]:
    """Run a statement behind the library's back."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        return db.execute(statement).fetchall()


def a_living_worker(app: Cli, child: Start, *targets: str) -> Child:
    """Start a worker process and wait until the database knows it."""
    worker = child("worker", *(targets or ("app.py",)))
    worker.wait_for("ready")
    return worker


# ─ why ──


def test_why_gives_one_reason_and_what_to_do(app: Cli) -> None:
    """In text by keys, in JSON for alerts; the newest run by default."""
    app("run", "hello", "W", "--id", "done")
    app("start", "train", "--id", "t")

    told = dict(row for row in app("why").rows if len(row) == 2)
    assert told["run"] == "t"
    assert told["reason"] == "no_worker"
    assert told["text"] == 'no living worker serves train version 1 on queue "gpu"'
    assert told["next"] == "durable worker TARGET --task-queue gpu"
    whole = json.loads(app("why", "done", "-o", "json").out)
    assert (whole["v"], whole["run_id"], whole["reason"], whole["status"]) == (
        1,
        "done",
        "closed",
        "completed",
    )
    assert whole["next"] == ["durable result done"]
    assert app("why", "nothing").code == 3


def test_why_of_a_run_that_a_worker_serves(app: Cli, child: Start) -> None:
    """The signal it waits for, where, and since when."""
    app("start", "noted", "--id", "n")
    a_living_worker(app, child)
    wait_until(lambda: "reason\tsignal" in app("why", "n").out, "the wait for the signal")

    whole = json.loads(app("why", "n", "-o", "json").out)
    assert (whole["name"], whole["text"]) == ("note", 'signal "note"')
    assert "app.py:" in whole["source"]
    assert whole["since"].endswith("Z")
    assert [one["kind"] for one in whole["waiting_on"]] == ["signal"]
    assert whole["next"] == ["durable signal n note VALUE"]


def test_why_on_a_terminal(app: Cli) -> None:
    """A sentence and the next command."""
    app("start", "noted", "--id", "n")

    code, shown = on_a_terminal("why", "n", "--color", "never")

    assert code == 0
    assert shown.splitlines() == [
        "○ n pending: no_worker",
        'no living worker serves noted version 1 on queue "default"',
        "next: durable worker TARGET",
    ]


@pytest.mark.parametrize(
    ("reason", "status", "steps"),
    [
        ("closed", "failed", ["durable show r"]),
        ("parked", "parked", ["durable show r", "durable resume r"]),
        ("worker_lost", "running", ["durable recover", "durable worker TARGET --task-queue gpu"]),
        ("deadlock", "waiting", ["durable cancel r"]),
        ("paused", "running", ["durable resume r"]),
        ("timer", "waiting", ["durable show r -f"]),
    ],
)
def test_every_reason_has_a_next_step(reason: str, status: str, steps: list[str]) -> None:
    """A command that can be copied."""
    assert next_steps(reason, "r", status, "", "gpu") == steps


# ─ workers ──


def test_workers_are_listed_while_they_live(app: Cli, child: Start) -> None:
    """Id, name, host, pid, kind, queue, runs, since, workflows; a killed one is counted apart."""
    app("start", "noted", "--id", "n")
    worker = a_living_worker(app, child, "app.py:noted")
    wait_until(lambda: app("workers").rows[0][6] == "1", "the claim")

    (row,) = app("workers").rows
    assert row[3] == str(worker.process.pid)
    assert row[4:7] == ["worker", "default", "1"]
    assert row[7] == "0"
    assert row[9] == "noted@1"
    told = json.loads(app("workers", "-o", "json").out)
    assert told["lost"] == []
    assert told["workers"][0]["workflows"] == [{"workflow": "noted", "version": 1}]
    assert told["workers"][0]["since"].endswith("Z")
    assert json.loads(app("workers", "-o", "jsonl").out)["worker_id"] == told["workers"][0]["worker_id"]

    worker.process.kill()
    worker.process.wait()
    dead = app("workers")
    assert dead.out == ""
    assert "no living worker" in dead.err
    assert "durable recover" in dead.err
    assert "reason\tworker_lost" in app("why", "n").out
    doctor = app("doctor")
    assert doctor.code == 1
    assert "is dead and holds 1 run\tdurable recover" in doctor.out
    app("recover")
    assert "durable recover" not in app("workers").err


# ─ resume ──


def test_a_parked_run_is_resumed_and_nothing_else_is(app: Cli, here: Path) -> None:
    """Exit code 6 for a run that is not parked, 3 for none; only exact ids."""
    app("start", "noted", "--id", "n")
    changed(here / "durable.db", "UPDATE run SET status = 3, reason = 'NonDeterminismError: changed'")

    assert "text\tNonDeterminismError: changed" in app("why", "n").out
    doctor = app("doctor")
    assert doctor.code == 1
    assert 'noted version 1 has 1 parked run on queue "default"' in doctor.out
    assert app("resume", "@last").code == 2
    ended = app("resume", "n")
    assert (ended.code, ended.out) == (0, "")
    assert "resumed" in ended.err
    assert app("list").rows[0][2] == "pending"
    again = app("resume", "n")
    assert again.code == 6
    assert "only a paused or parked run can be resumed" in again.err
    assert app("resume", "other").code == 3
    changed(here / "durable.db", "UPDATE run SET status = 3")
    assert json.loads(app("resume", "n", "-o", "json").out) == {"v": 1, "run_id": "n", "resume": "done"}


# ─ pause ──


def test_a_run_is_paused_and_resumed(app: Cli, child: Start) -> None:
    """Who asks is told: why, show, list; what was done before changes nothing."""
    app("start", "noted", "--id", "n")
    ended = app("pause", "n", "--reason", "ask ann")
    assert (ended.code, ended.out, ended.err) == (0, "", "n paused\n")
    assert app("pause", "n").err == "n was paused already\n"
    why = dict(row for row in app("why", "n").rows if len(row) == 2)
    assert (why["reason"], why["next"]) == ("paused", "durable resume n")
    assert why["text"].endswith("ago: ask ann")
    assert app("list").rows[0][5].startswith("paused ")
    assert any(row[0] == "waiting on" and "ask ann" in row[1] for row in app("show", "n").rows)
    shown = json.loads(app("show", "n", "-o", "json").out)
    assert (shown["pause_reason"], shown["paused_at"].endswith("Z")) == ("ask ann", True)

    a_living_worker(app, child)
    app("signal", "n", "note", "hi")
    assert json.loads(app("resume", "n", "-o", "json").out) == {"v": 1, "run_id": "n", "resume": "done"}
    assert app("result", "n", "--timeout", "30s").out == '"hi"\n'


def test_a_queue_and_a_worker_are_paused(app: Cli, child: Start) -> None:
    """A worker by its name or its id; the doctor tells of both."""
    app("start", "train", "--id", "t")
    assert json.loads(app("pause", "--task-queue", "gpu", "-o", "json").out) == {
        "v": 1,
        "task_queue": "gpu",
        "pause": "done",
    }
    worker = a_living_worker(app, child, "app.py:train")
    (row,) = app("workers").rows
    why = json.loads(app("why", "t", "-o", "json").out)
    assert (why["reason"], why["next"]) == ("paused", ["durable resume --task-queue gpu"])
    assert app("pause", "--worker", row[0], "--reason", "disk").err == f'worker "{row[1]}" paused\n'
    assert app("pause", "--worker", row[1]).err == f'worker "{row[1]}" was paused already\n'
    assert app("workers").rows[0][4] == "worker, paused"
    app("resume", "--task-queue", "gpu")
    why = json.loads(app("why", "t", "-o", "json").out)
    assert why["next"] == [f"durable resume --worker {row[1]}"]
    assert f'ok\tpauses\tworker "{row[1]}" is paused since 0s ago: disk' in app("doctor").out

    assert app("resume", "--worker", row[1]).code == 0
    assert app("result", "t", "--timeout", "30s").out == '"trained"\n'
    assert app("resume", "--task-queue", "gpu").err == 'queue "gpu" was not paused\n'
    worker.process.terminate()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["n", "--task-queue", "gpu"], 2),
        (["--task-queue", ""], 2),
        (["other"], 3),
        (["--worker", "nobody"], 3),
        (["@last"], 2),
    ],
)
def test_what_cannot_be_paused(app: Cli, words: list[str], code: int) -> None:
    """One run, queue or worker at a time, and one that is there."""
    app("start", "noted", "--id", "n")
    assert app("pause", *words).code == code


# ─ show --stack ──


def test_a_stack_is_rebuilt_without_a_worker(app: Cli, child: Start, here: Path) -> None:
    """The line that waits, what for, since when; no activity runs, nothing is written."""
    app("start", "noted", "--id", "n")
    worker = a_living_worker(app, child)
    wait_until(lambda: "reason\tsignal" in app("why", "n").out, "the wait for the signal")
    worker.process.terminate()
    worker.end()
    before = app("show", "n", "--events").out

    task, frame = app("show", "n", "--stack", "app.py").rows
    assert task[:3] == ["task", "main", 'signal "note"']
    assert task[3].endswith("Z")
    assert frame[0] == "frame"
    assert frame[1].endswith(f"app.py:{source_line(here, 'return await note.wait()')}")
    assert frame[2:] == ["noted", "return await note.wait()"]
    assert app("show", "n", "--stack").rows == [task, frame]
    told = json.loads(app("show", "n", "--stack", "app.py", "-o", "json").out)
    assert (told["v"], told["is_rebuilt"], told["status"]) == (1, True, "waiting")
    assert told["standpoints"][0]["kind"] == "signal"
    code, shown = on_a_terminal("show", "n", "--stack", "app.py", "--color", "never")
    assert code == 0
    assert 'awaits signal "note", since ' in shown
    with_values = app("show", "n", "--stack", "--values").rows
    assert [row for row in with_values if row[0] != "value"] == [task, frame]
    assert app("show", "n", "--values").code == 2
    assert app("show", "n", "--events").out == before


def source_line(here: Path, text: str) -> int:
    return 1 + [line.strip() for line in (here / "app.py").read_text().splitlines()].index(text)


def test_a_stack_without_the_code_is_what_the_journal_knows(
    cli: Cli, child: Start, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code, code that is not there, code that does not fit: a note says which."""
    cli("start", "app.py:noted", "--id", "n")
    a_living_worker(cli, child)
    wait_until(lambda: "reason\tsignal" in cli("why", "n").out, "the wait for the signal")
    (here / "changed.py").write_text(
        "from durable import sleep, workflow\n@workflow\nasync def noted() -> None:\n    await sleep(1)\n"
    )

    for words, why in (
        ([], "name it: --stack app.py"),
        (["missing.py"], 'no file "missing.py"'),
        (["changed.py"], "cannot be replayed"),
    ):
        ended = cli("show", "n", "--stack", *words)
        assert ended.code == 0
        assert [row[0] for row in ended.rows] == ["task", "frame"]
        assert ended.rows[0][2] == 'signal "note"'
        assert "app.py:" in ended.rows[1][1]
        assert why in ended.err


def test_a_closed_run_stands_nowhere(app: Cli) -> None:
    """Nor does one that has not begun."""
    app("run", "hello", "W", "--id", "h")
    app("start", "noted", "--id", "n")
    for run_id, why in (("h", "it stands nowhere any more"), ("n", "it has not begun")):
        ended = app("show", run_id, "--stack")
        assert (ended.code, ended.out) == (0, "")
        assert why in ended.err
    assert app("show", "h", "--stack", "app.py", "--events").code == 2


# ─ retry ──


def test_a_failed_run_is_tried_again(app: Cli) -> None:
    """It says what is kept; nothing else is changed by a dry run."""
    app("run", "fulfil", "bolt", "--id", "o")
    dry = json.loads(app("retry", "o", "--dry-run", "-o", "json").out)
    assert dry == {"v": 1, "run_id": "o", "generation": 2, "kept_events": 2, "forgotten": [], "is_dry": True}
    assert app("list").rows[0][2] == "failed"

    ended = app("retry", "o")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == "o@2 opened, 2 events of its journal kept: a worker goes on with it\n"
    assert app("list").rows[0][2] == "pending"
    again = app("retry", "o")
    assert again.code == 6
    assert "run 'o' is pending, and no activity of it waits for a retry" in again.err
    assert app("retry", "other").code == 3
    assert app("retry", "@last").code == 2


def test_a_run_is_tried_again_from_the_failure_of_one_activity(app: Cli) -> None:
    """By its name, or its number in the story; one that did not fail is no such point."""
    app("run", "fulfil", "bolt", "--id", "o")
    for which in ("ship", "1"):
        dry = json.loads(app("retry", "o", "--activity", which, "--dry-run", "-o", "json").out)
        assert (dry["kept_events"], dry["is_dry"]) == (2, True)
    for which, why in (("pay", "no activity 'pay' of run 'o' failed: ship (2)"), ("2", "o has no step 2")):
        refused = app("retry", "o", "--activity", which)
        assert refused.code == 2
        assert why in refused.err
    assert app("retry", "o", "--activity", "ship").code == 0


SLOW = """
from durable import Retry, activity, activity_info, workflow

@activity(retry=Retry(initial=3600, maximum=3600))
async def book() -> int:
    if activity_info().attempt == 1:
        raise ConnectionError("no line")
    return activity_info().attempt

@workflow
async def trip() -> int:
    return await book()
"""


def test_a_retry_that_waits_is_run_now(app: Cli, child: Start, here: Path) -> None:
    """What it waits for is told, and the command that helps; a worker obeys."""
    (here / "slow.py").write_text(SLOW)
    a_living_worker(app, child, "slow.py")
    app("start", "slow.py:trip", "--id", "t")
    wait_until(
        lambda: json.loads(app("why", "t", "-o", "json").out)["reason"] == "retry", "the first attempt"
    )
    assert json.loads(app("why", "t", "-o", "json").out)["next"][0] == "durable retry t"
    assert app("retry", "t", "--from-start").code == 6
    assert app("retry", "t", "--activity", "ship").code == 6
    dry = json.loads(app("retry", "t", "--dry-run", "-o", "json").out)
    assert dry == {"v": 1, "run_id": "t", "activities": ["book"], "is_dry": True}

    assert app("retry", "t", "--activity", "1").err == "t: book has the next attempt now\n"

    assert app("result", "t", "--timeout", "10s").out == "2\n"


def test_the_retries_of_many_runs_are_run_now(app: Cli, child: Start, here: Path) -> None:
    """Those of open runs that wait for one; of the others nothing is changed."""
    (here / "slow.py").write_text(SLOW)
    a_living_worker(app, child, "slow.py")
    for run_id in ("a", "b"):
        app("start", "slow.py:trip", "--id", run_id)
        wait_until(lambda: json.loads(app("why", "-o", "json").out)["reason"] == "retry", "the first attempt")
    app("start", "hello", "W", "--id", "h")

    assert (
        app("bulk", "retry", "--status", "pending", "--id", "*", "--yes").err == "bulk retry: 0 runs done\n"
    )
    ended = app("bulk", "retry", "--status", "running", "--id", "*", "--yes")

    assert sorted(ended.out.split()) == ["a", "b"]
    for run_id in ("a", "b"):
        assert app("result", run_id, "--timeout", "10s").out == "2\n"


def test_pruning_heeds_what_workflows_say(app: Cli, child: Start, here: Path) -> None:
    """Told by the runs themselves: their worker was killed, and nobody has its code any more."""
    (here / "kept.py").write_text(
        "from durable import workflow\n"
        "@workflow(retention='forever')\n"
        "async def audit() -> str:\n"
        "    return 'kept'\n"
        "@workflow(retention=86400)\n"
        "async def visit() -> str:\n"
        "    return 'gone'\n"
    )
    worker = a_living_worker(app, child, "kept.py")
    for flow in ("audit", "visit"):
        app("start", f"kept.py:{flow}", "--id", flow)
        assert app("result", flow, "--timeout", "10s").code == 0
    worker.process.kill()
    worker.process.wait(PATIENCE_SECONDS)
    app("run", "hello", "W", "--id", "h")
    two_days = 2 * 86_400_000_000
    changed(
        here / "durable.db",
        f"UPDATE run SET created_at_us = created_at_us - {two_days}, closed_at_us = closed_at_us - {two_days}",  # noqa: S608  # a number
    )

    assert app("prune", "--older-than", "1d", "--yes").out.startswith("2 runs deleted")
    assert [row[0] for row in app("list").rows] == ["audit"]
    assert app("prune", "--older-than", "1d", "--dry-run").out.startswith("0 runs")
    assert app("prune", "--older-than", "1d", "--workflow", "audit", "--yes").out.startswith("1 run deleted")


def test_what_would_be_forgotten_is_asked(app: Cli) -> None:
    """Without a terminal --yes is needed; it says which activities may run again."""
    app("run", "spoilt", "bolt", "--id", "o")
    refused = app("retry", "o")
    assert refused.code == 2
    assert "--yes" in refused.err
    ended = app("retry", "o", "--yes")
    assert ended.code == 0
    assert "note: 1 activity completed and forgotten, may run again: greet" in ended.err


# ─ bulk ──


def test_many_runs_are_paused_resumed_and_terminated(app: Cli) -> None:
    """A dry run says which; without a terminal --yes is needed; each id on a line of its own."""
    for number in range(3):
        app("start", "noted", "--id", f"n-{number}")
    app("start", "train", "--id", "t")
    dry = app("bulk", "pause", "--id", "n-*", "--dry-run")
    assert sorted(dry.out.split()) == ["n-0", "n-1", "n-2"]
    assert dry.err == "bulk pause: 3 runs would be meant\n"
    assert app("bulk", "pause", "--id", "n-*").code == 2
    ended = app("bulk", "pause", "--id", "n-*", "--reason", "deploying", "--yes")
    assert (ended.code, ended.err) == (0, "bulk pause: 3 runs done\n")
    assert json.loads(app("bulk", "pause", "--id", "*", "--dry-run", "-o", "json").out)["runs"] == ["t"]
    app("resume", "n-1")
    told = json.loads(app("bulk", "resume", "--id", "*", "--yes", "-o", "json").out)
    assert (told["verb"], sorted(told["runs"]), told["is_dry"]) == ("resume", ["n-0", "n-2"], False)
    app("bulk", "terminate", "--workflow", "note*", "--reason", "over", "--yes", "--rate", "1000")
    assert {row[0]: row[2] for row in app("list").rows} == {
        "n-0": "terminated", "n-1": "terminated", "n-2": "terminated", "t": "pending",
    }  # fmt: skip


def test_many_runs_are_signalled(app: Cli) -> None:
    """With a value; what is closed is not meant."""
    for run_id in ("a", "b"):
        app("start", "noted", "--id", run_id)
    app("terminate", "b", "--reason", "over", "--yes")
    ended = app("bulk", "signal", "--name", "note", "--value", '"hi"', "--id", "*", "--yes")
    assert ended.out == "a\n"
    assert app("worker", "--drain").code == 0
    assert app("result", "a", "--timeout", "0").out == '"hi"\n'


def test_many_failed_runs_are_tried_again(app: Cli) -> None:
    """Except those that would forget what was done: they are told, with the command for each."""
    app("run", "fulfil", "bolt", "--id", "o")
    app("run", "spoilt", "bolt", "--id", "s")
    ended = app("bulk", "retry", "--since", "1h", "--yes")
    assert (ended.code, ended.out) == (0, "o\n")
    assert (
        "skipped s: 1 activity completed and forgotten, may run again: greet; alone: durable retry s"
        in ended.err
    )
    assert ended.err.endswith("bulk retry: 1 run done, 1 skipped\n")


@pytest.mark.parametrize(
    "words",
    [
        ["pause"],
        ["signal", "--id", "*"],
        ["pause", "--id", "*", "--name", "x"],
        ["signal", "--name", "x", "--value", "{", "--id", "*"],
        ["sink", "--id", "*"],
        ["pause", "--id", "*", "--rate", "0"],
    ],
)
def test_what_cannot_be_meant_in_bulk(app: Cli, words: list[str]) -> None:
    """Everything at once needs to be said; and the words must fit the verb."""
    assert app("bulk", *words, "--yes").code == 2


# ─ doctor and migrate ──


def test_doctor_is_content_with_a_healthy_database(app: Cli) -> None:
    """Exit code 0, and what was looked at."""
    app("run", "hello", "W")

    ended = app("doctor")

    assert ended.code == 0
    assert {row[0] for row in ended.rows} == {"ok"}
    assert [row[1] for row in ended.rows] == [
        "schema", "versions", "durability", "size", "log", "locks", "workers", "queues",
    ]  # fmt: skip
    newest = len(load_migrations("durable.store.sqlite"))
    assert f"schema {newest} of {newest}" in ended.out
    assert f"sqlite {sqlite3.sqlite_version}" in ended.out
    told = json.loads(app("doctor", "-o", "json").out)
    assert (told["v"], told["ok"], told["checks"][0]["status"]) == (1, True, "ok")


def test_doctor_finds_queues_and_workflows_without_a_worker(app: Cli, child: Start) -> None:
    """A queue that nobody serves is told once; beside a worker that serves others, the workflow is."""
    app("start", "train", "--id", "t")
    app("start", "noted", "--id", "n")
    a_living_worker(app, child, "app.py:hello")

    ended = app("doctor")

    assert ended.code == 1
    complaints = [row for row in ended.rows if row[0] != "ok"]
    assert [row[1] for row in complaints] == ["queues", "workflows"]
    assert 'queue "gpu" has 1 ready run' in complaints[0][2]
    assert complaints[0][3] == "durable worker TARGET --task-queue gpu"
    assert complaints[1][2] == 'noted version 1 has 1 open run on queue "default" and no worker'
    code, shown = on_a_terminal("doctor", "--color", "never")
    assert code == 1
    assert "   → durable worker TARGET --task-queue gpu" in shown


@pytest.mark.parametrize(
    ("groups", "queues", "served", "found"),
    [
        ([], set(), set(), ["ok"]),
        ([("q", "w", 1, "delayed", 3, AT)], set(), set(), ["ok"]),
        ([("q", "w", 1, "owned", 3, AT)], set(), set(), ["ok"]),
        ([("q", "w", 1, "ready", 3, AT)], {"q"}, {("q", "w", 1)}, ["ok"]),
        ([("q", "w", 1, "ready", 3, AT), ("q", "x", 1, "ready", 1, AT)], set(), set(), ["queues"]),
        ([("q", "w", 1, "waiting", 3, AT)], set(), set(), ["workflows"]),
        ([("q", "w", 2, "ready", 3, AT)], {"q"}, {("q", "w", 1)}, ["workflows"]),
        ([("q", "w", 1, "parked", 3, AT)], {"q"}, {("q", "w", 1)}, ["ok", "parked runs"]),
    ],
)
def test_what_counts_as_a_run_without_a_worker(
    groups: list[Group], queues: set[str], served: set[tuple[str, str, int]], found: list[str]
) -> None:
    """Ready and waiting runs that no living worker serves; each is told once."""
    checks = list(check_queues(groups, queues, served, AT + timedelta(minutes=31)))

    assert [check.check if check.status != "ok" else "ok" for check in checks] == found


@pytest.mark.parametrize(
    ("performed", "complaints"),
    [
        (set(), ["gpu", "mail"]),
        ({("gpu", "train")}, ["mail"]),
        ({("mail", "train"), ("gpu", "send")}, ["gpu", "mail"]),
        ({("gpu", "train"), ("mail", "send")}, []),
    ],
)
def test_activities_that_no_living_worker_performs_are_a_complaint(
    performed: set[tuple[str, str]], complaints: list[str]
) -> None:
    """Each queue and activity once, with the command that serves it."""
    tasks = [("gpu", "train", 2, AT), ("gpu", "train", 1, AT - timedelta(hours=1)), ("mail", "send", 1, AT)]

    checks = list(check_tasks(tasks, performed, AT + timedelta(minutes=31)))

    assert [check.hint for check in checks] == [
        f"durable worker TARGET --task-queue {queue}" for queue in complaints
    ]
    if not performed:
        assert checks[0].text == (
            'queue "gpu" has 3 calls of activity train (the oldest since 1h ago) and no worker for it'
        )


def test_a_long_log_and_an_old_schema_are_complaints() -> None:
    """With what to do."""
    assert check_log(64 << 20).status == "ok"
    assert check_log((64 << 20) + 1).status == "warning"
    assert check_schema(1, 3) == Check("schema", "warning", "schema 1 of 3", "durable migrate")


def test_sizes() -> None:
    """Powers of 1024."""
    assert [bytes_text(size) for size in (0, 1023, 1024, 1536, 5 << 20, 3 << 40, 1 << 60)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3.0 TiB", "1048576.0 TiB",
    ]  # fmt: skip


def test_migrate_brings_an_old_database_up_to_date(app: Cli, here: Path) -> None:
    """--check and doctor change nothing; without a database, or with a newer one, it is exit code 4."""
    every = load_migrations("durable.store.sqlite")
    assert app("migrate").code == app("doctor").code == 4
    with pytest.MonkeyPatch.context() as older:
        for module in (durable.store.sqlite.schema, durable.store.sqlite.preparing):
            older.setattr(module, "load_migrations", lambda package: every[:1])
        older.setattr(
            durable.store.sqlite.preparing, "_refuse_foreign_workers", lambda *given: None
        )  # asks in today's words
        asyncio.run(opened_and_closed("sqlite:///durable.db"))

    for _ in range(2):
        check = app("migrate", "--check")
        assert (check.code, check.out) == (1, f"schema 1 of {len(every)}\n")
    assert "durable migrate" in app("doctor").out
    assert app("migrate", "--check", "--sql").code == 2
    script = app("migrate", "--sql")
    assert script.code == 0
    assert script.out.startswith(
        "-- 0002 heartbeat_details\nBEGIN IMMEDIATE;\n\nALTER TABLE attempt ADD COLUMN"
    )
    assert [one["number"] for one in json.loads(app("migrate", "--sql", "-o", "json").out)["migrations"]] == [
        *range(2, len(every) + 1)
    ]
    with (
        closing(sqlite3.connect(here / "by_hand.db")) as by_hand,
        closing(sqlite3.connect(here / "durable.db")) as old,
    ):
        old.backup(by_hand)
        by_hand.executescript(script.out)
    assert app("migrate", "--check", "--db", "by_hand.db").code == 0
    assert app("migrate", "--sql", "--db", "by_hand.db").out == ""
    assert app("migrate", "--check").code == 1
    assert app("migrate").out == f"schema 1 of {len(every)}, now {len(every)}\n"
    assert app("migrate", "--check").code == app("migrate").code == app("doctor").code == 0
    told = json.loads(app("migrate", "-o", "json").out)
    assert told == {"v": 1, "from": len(every), "to": len(every), "newest": len(every)}
    changed(here / "durable.db", "INSERT INTO migration VALUES (999, 'future', 0)")
    assert app("migrate", "--check").code == app("doctor").code == 4


async def opened_and_closed(url: str) -> None:
    async with connect(url):
        pass


# ─ backup ──


def test_a_backup_can_be_looked_into(app: Cli, here: Path) -> None:
    """A file of its own; nothing is overwritten (exit code 6)."""
    app("run", "hello", "W", "--id", "h")

    assert app("backup", "copy.db").out.startswith("copy.db  ")
    assert app("result", "h", "--db", "copy.db").out == '"Hello, W!"\n'
    before = (here / "copy.db").read_bytes()
    again = app("backup", "copy.db")
    assert again.code == 6
    assert (here / "copy.db").read_bytes() == before
    assert app("backup", "durable.db").code == 6
    assert app("backup", "missing/copy.db").code == 4
    assert app("backup", "other.db", "--db", "nothing.db").code == 4
    told = json.loads(app("backup", "other.db", "-o", "json").out)
    assert told == {"v": 1, "path": "other.db", "bytes": (here / "other.db").stat().st_size}


# ─ prune ──


def test_prune_counts_asks_and_deletes(app: Cli) -> None:
    """--dry-run deletes nothing; without a terminal --yes is needed; open and younger runs stay."""
    for run_id in ("a", "b"):
        app("run", "hello", run_id, "--id", run_id)
    app("run", "fulfil", "bad", "--id", "f")
    app("start", "noted", "--id", "open")

    assert app("prune", "--older-than", "0s", "--dry-run").out.startswith("3 runs closed before ")
    assert app("prune", "--older-than", "1d", "--yes").out.startswith("0 runs deleted, ")
    refused = app("prune", "--older-than", "0s")
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert app("prune").code == app("prune", "--older-than", "soon").code == 2
    assert app("prune", "--older-than", "0s", "--status", "running").code == 2
    assert len(app("list").rows) == 4

    failed = json.loads(app("prune", "--older-than", "0s", "--status", "failed", "--yes", "-o", "json").out)
    assert (failed["runs"], failed["is_dry"]) == (1, False)
    assert failed["before"].endswith("Z")
    assert app("prune", "--older-than", "0s", "--yes").out.startswith("2 runs deleted with ")
    assert [row[0] for row in app("list").rows] == ["open"]
    assert app("show", "a").code == 3
    assert app("prune", "--older-than", "0s").code == 0


def test_prune_asks_on_a_terminal(app: Cli) -> None:
    """No deletes nothing, yes deletes."""
    app("run", "hello", "W", "--id", "h")

    code, shown = on_a_terminal("prune", "--older-than", "0s", answer="n\n")
    assert (code, len(app("list").rows)) == (130, 1)
    assert "delete 1 run closed before " in shown
    code, _ = on_a_terminal("prune", "--older-than", "0s", answer="y\n")
    assert (code, app("list").out) == (0, "")


def test_prune_asks_an_app_for_its_sagas(app: Cli, here: Path) -> None:
    """Those that ended well go as long ago as their manager's configuration says; what failed, what is younger and what wants to be kept stays."""
    (here / "shop.py").write_text(
        "from durable import SagaBase, SagaConfig, SagaManager, saga_step\n"
        "class Trip(SagaBase):\n"
        "    @saga_step(max_retries=0)\n"
        "    async def book(self, ctx) -> None:\n"
        "        if ctx.get('fails'):\n"
        "            raise ValueError('full')\n"
        "class Kept(Trip):\n"
        "    RETENTION = 'forever'\n"
        "manager = SagaManager(config=SagaConfig(cleanup_completed_after_hours=48))\n"
        "manager.register(Trip)\n"
        "manager.register(Kept)\n"
    )
    three_days = 3 * 86_400_000_000
    app(
        "run",
        "shop.py:Trip",
        'data:={"fails": true}',
        'config:={"enable_compensation": false}',
        "--id",
        "failed",
    )
    app("run", "shop.py:Trip", 'data:={"fails": true}', "--id", "compensated")
    for run_id, saga in (("old", "Trip"), ("kept", "Kept"), ("young", "Trip")):
        app("run", f"shop.py:{saga}", "data:={}", "--id", run_id)
    app("run", "hello", "W", "--id", "h")
    changed(
        here / "durable.db",
        f"UPDATE run SET created_at_us = created_at_us - {three_days}, closed_at_us = closed_at_us - {three_days}"  # noqa: S608  # a number
        " WHERE run_id <> 'young'",
    )

    assert app("prune", "--app", "shop.py", "--dry-run").out.startswith(
        "Trip: 2 runs would be deleted, ended"
    )
    assert app("prune", "--app", "shop.py").code == 2  # without a terminal --yes is needed
    done = json.loads(app("prune", "--app", "shop.py", "--yes", "-o", "json").out)
    assert {name: one["runs"] for name, one in done["workflows"].items()} == {"Trip": 2, "Kept": 0}
    assert sorted(row[0] for row in app("list").rows) == ["failed", "h", "kept", "young"]

    assert app("prune", "--app", "shop.py", "--older-than", "1d").code == 2
    assert "no saga there" in app("prune", "--app", "app.py").err


def test_prune_while_a_worker_works(app: Cli, child: Start) -> None:
    """Many batches under load: every closed run goes, every open one completes."""
    a_living_worker(app, child)
    for n in range(10):
        app("start", "hello", str(n), "--id", f"r{n}")
        app("prune", "--older-than", "0s", "--yes")
    wait_until(
        lambda: app("prune", "--older-than", "0s", "--yes").code == 0 and not app("list").out, "all are gone"
    )
    assert "locks" in app("doctor").out


# ─ completion ──


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(app: Cli, shell: str) -> None:
    """click's own, for our name."""
    ended = app("completion", shell)

    assert ended.code == 0
    assert f"_DURABLE_COMPLETE={shell}_complete" in ended.out
    assert json.loads(app("completion", shell, "-o", "json").out)["shell"] == shell


def test_the_bash_script_is_bash(app: Cli) -> None:
    """It can be evaluated."""
    script = app("completion", "bash").out

    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert app("completion", "tcsh").code == 2


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("durable resu", ["result", "resume"]),
        ("durable show ord", ["order-2", "order-1"]),
        ("durable signal order-1", ["order-1"]),
        ("durable wait order-1 n", ["note-1"]),
        ("durable why zzz", []),
        ("durable show 1", []),  # ids that end so are found by commands, but a shell inserts what begins so
        ("durable list --workflow no", ["noted"]),
        ("durable show --db nothing.db ord", []),
        ("durable show --db other.db o", ["only"]),
        ("durable prune --status fa", ["failed"]),
    ],
)
def test_what_is_completed(
    app: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, words: str, completed: list[str]
) -> None:
    """Commands, run ids (newest first) and workflows of the database that the line names; no file is made by it."""
    app("start", "hello", "W", "--id", "order-1")
    app("start", "noted", "--id", "note-1")
    app("start", "hello", "W", "--id", "order-2")
    app("start", "hello", "W", "--id", "only", "--db", "other.db")
    monkeypatch.setenv("_DURABLE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))

    ended = app()

    assert [line.removeprefix("plain,") for line in ended.out.split()] == completed
    assert ended.err == ""
    assert not (here / "nothing.db").exists()


def test_a_key_press_does_not_migrate(app: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database with an older schema completes nothing and stays as it is."""
    app("start", "noted", "--id", "n")
    newest = len(load_migrations("durable.store.sqlite"))
    changed(here / "durable.db", f"DELETE FROM migration WHERE number = {newest}")  # noqa: S608  # our own number
    monkeypatch.setenv("_DURABLE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "durable show ")
    monkeypatch.setenv("COMP_CWORD", "2")

    assert app().out.split() == []
    assert changed(here / "durable.db", "SELECT max(number) FROM migration") == [(newest - 1,)]
