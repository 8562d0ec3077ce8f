"""The words and pictures of list and show, on runs made by hand at a fixed time."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from durable_cli.options import Settings
from durable_cli.output import Output, Terminal
from durable_cli.see import list_picture, list_row
from durable_cli.story import facts, picture, step_line

from durable import Blocker, Entry, Run, RunStatus

NOW = datetime(2026, 11, 22, 3, 4, 13, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def a_run(run_id: str = "order-1", status: str = "completed", **changes: Any) -> Run:
    fields: dict[str, Any] = {
        "run_id": run_id,
        "kind": "workflow",
        "workflow": "fulfil",
        "version": 1,
        "generation": 1,
        "status": RunStatus(status),
        "task_queue": "default",
        "attempts": 1,
        "input": {"order": "bad"},
        "result": None,
        "error": None,
        "failure": None,
        "reason": None,
        "created_at": ago(240),
        "started_at": ago(240),
        "closed_at": None,
        "deadline": None,
        "worker": None,
        "journal": [],
        "waiting_on": [],
    }
    return Run(**(fields | changes))


def an_entry(
    number: int, name: str, kind: Any, status: Any, begin: float, end: float | None = None, **rest: Any
) -> Entry:
    finished = None if end is None else ago(end)
    return Entry(
        number=number,
        name=name,
        kind=kind,
        status=status,
        started_at=ago(begin),
        finished_at=finished,
        **rest,
    )


FAILED = a_run(
    "order-bad",
    "failed",
    closed_at=ago(227.6),
    error="RuntimeError: no stock for bad",
    journal=[
        an_entry(2, "charge", "activity", "completed", 240, 239.79, attempts=1, input={"order": "bad"}, result="ch_bad"),
        an_entry(4, "2s", "timer", "fired", 239.79, 237.79, due_at=ago(237.79)),
        an_entry(6, "approved", "signal", "received", 237.79, 237.7, result={"by": "ann"}),
        an_entry(8, "ship", "activity", "failed", 237.7, 227.6, attempts=5, input={"order": "bad", "fast": True},
                 error="RuntimeError: no stock for bad", source="shop/flows.py:58"),
    ],
)  # fmt: skip
WAITING = a_run(
    "order-43",
    "waiting",
    worker="web-1:412",
    journal=[
        an_entry(2, "ship", "activity", "retrying", 200, attempts=2, input={}, error="TimeoutError", due_at=ago(-8)),
        an_entry(3, "approved", "signal", "waiting", 200),
    ],
    waiting_on=[
        Blocker(kind="retry", name="ship", text="ship: attempt 3 in 8.00s after TimeoutError"),
        Blocker(kind="signal", name="approved", text='signal "approved" (times out in 50m 00s)', source="shop/flows.py:12"),
    ],
)  # fmt: skip
NO_WORKER = a_run(
    "gpu-1",
    "pending",
    started_at=None,
    waiting_on=[Blocker(kind="nothing", name="worker", text='a worker for fulfil version 1 on queue "gpu"')],
)
DONE = a_run("order-42", closed_at=ago(236.8), result={"tracking": "Z1"})
HOSTILE = a_run("evil", "terminated", closed_at=ago(230), reason="\x1b[2J\tgone\nfor good")


def tsv(run: Run) -> str:
    return "\n".join("\t".join(cells) for cells in facts(run, NOW))


def test_a_piped_list_is_one_line_of_cells_per_run() -> None:
    """Id, workflow, status, start, duration, and what it waits for or how it ended; nothing is cut."""
    assert ["\t".join(list_row(run, NOW)) for run in (FAILED, WAITING, NO_WORKER, DONE, HOSTILE)] == [
        "order-bad\tfulfil\tfailed\t2026-11-22T03:00:13Z\t12.4s\tship: RuntimeError: no stock for bad  (5 attempts)",
        'order-43\tfulfil\twaiting\t2026-11-22T03:00:13Z\t4m 00s\tship: attempt 3 in 8.00s after TimeoutError; signal "approved" (times out in 50m 00s)',
        'gpu-1\tfulfil\tpending\t2026-11-22T03:00:13Z\t4m 00s\ta worker for fulfil version 1 on queue "gpu"',
        'order-42\tfulfil\tcompleted\t2026-11-22T03:00:13Z\t3.20s\t{"tracking": "Z1"}',
        "evil\tfulfil\tterminated\t2026-11-22T03:00:13Z\t10.0s\t\\x1b[2J\\tgone\\nfor good",
    ]


def test_a_piped_story_is_lines_of_cells() -> None:
    """Key and value, then steps; `5 attempts` in words."""
    assert tsv(FAILED) == (
        "run\torder-bad\n"
        "workflow\tfulfil\n"
        "status\tfailed\n"
        "generation\t1\n"
        "version\t1\n"
        "queue\tdefault\n"
        "created\t2026-11-22T03:00:13Z\n"
        "started\t2026-11-22T03:00:13Z\n"
        "closed\t2026-11-22T03:00:25Z\n"
        "took\t12.4s\n"
        'input\t{"order": "bad"}\n'
        'step\t1\tcompleted\tcharge("bad")\t0.21s\t1\t"ch_bad"\n'
        "step\t2\tfired\tsleep 2s\t2.00s\t\t\n"
        'step\t3\treceived\tsignal approved\t0.09s\t\t{"by": "ann"}\n'
        'step\t4\tfailed\tship(order="bad", fast=true)\t10.1s\t5 attempts\tRuntimeError: no stock for bad\n'
        "error\tship: RuntimeError: no stock for bad  (5 attempts)"
    )


def test_attempts_that_were_cut_short_are_told_as_at_least_so_many() -> None:
    """How often it was tried after that went with the run."""
    ended = a_run(
        "order-9",
        "terminated",
        closed_at=ago(230),
        journal=[
            an_entry(2, "ship", "activity", "cancelled", 240, 230, attempts=1, is_counted=False, input={})
        ],
    )

    assert "step\t1\tcancelled\tship()\t10.0s\t1+\tcancelled" in tsv(ended)


def test_a_piped_story_says_what_an_open_run_waits_for() -> None:
    """Everything it waits for, with the line of code where it is known."""
    assert tsv(WAITING).splitlines()[-4:] == [
        "step\t1\tretrying\tship()\t3m 20s\t2 attempts\tattempt 3 in 8.00s after TimeoutError",
        "step\t2\twaiting\tsignal approved\t3m 20s\t\twaiting",
        "waiting on\tship: attempt 3 in 8.00s after TimeoutError\t",
        'waiting on\tsignal "approved" (times out in 50m 00s)\tshop/flows.py:12',
    ]
    assert tsv(NO_WORKER).splitlines()[-1] == 'waiting on\ta worker for fulfil version 1 on queue "gpu"\t'


class Screen(io.StringIO):
    """A terminal 100 columns wide."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    """Both streams on a terminal without colour."""
    monkeypatch.setenv("COLUMNS", "100")
    settings = Settings({"NO_COLOR": "1"})
    output = Output(settings)
    output.out = output.err = Terminal(Screen(), settings)
    return output


def test_a_list_on_a_terminal_is_a_table(output: Output) -> None:
    """Aligned, cut to the width, glyph and word for the status, a summary below."""
    lines = list_picture([FAILED, WAITING, NO_WORKER, DONE, HOSTILE], output, NOW, db="sqlite:///durable.db")

    assert lines == [
        "  ID          WORKFLOW   STATUS       STARTED   TOOK     WAITING ON / RESULT",
        "✗ order-bad   fulfil     failed       4m ago    12.4s    ship: RuntimeError: no stock for bad  (5 a…",
        "◷ order-43    fulfil     waiting      4m ago    4m 00s   ship: attempt 3 in 8.00s after TimeoutErro…",
        '! gpu-1       fulfil     pending      4m ago    4m 00s   a worker for fulfil version 1 on queue "gp…',
        '✓ order-42    fulfil     completed    4m ago    3.20s    {"tracking": "Z1"}',
        "⊘ evil        fulfil     terminated   4m ago    10.0s    \\x1b[2J\\tgone\\nfor good",
        "5 runs · 1 failed · db sqlite:///durable.db · next: durable show @last-failed",
    ]
    assert all(len(line) <= 100 for line in lines)


def test_a_story_on_a_terminal_is_a_timeline(output: Output) -> None:
    """One bar per step, the error with the line of the workflow it passed, and what to do next."""
    assert list(picture(FAILED, output.out, NOW)) == [
        "fulfil  order-bad  ✗ failed    generation 1  worker –  version 1",
        "started 2026-11-22T03:00:13Z (4m ago)   took 12.4s   queue default",
        'input   {"order": "bad"}',
        "",
        " #  STEP                            0s                 12.4s  TOOK   ATTEMPTS    RESULT",
        ' 1  ✓ charge("bad")                 █                         0.21s  1           "ch_bad"',
        " 2  ✓ sleep 2s                      ░░░░                      2.00s",
        ' 3  ✓ signal approved                   ░                     0.09s              {"by": "ann"}',
        ' 4  ✗ ship(order="bad", fast=true)      ████████████████████  10.1s  5 attempts  RuntimeError: no s…',
        "",
        "error in ship, after 5 attempts",
        "RuntimeError: no stock for bad",
        "raised through workflow line  shop/flows.py:58",
        "",
        "next: durable retry order-bad · durable show order-bad --events",
    ]


def test_a_story_on_a_terminal_says_what_an_open_run_waits_for(output: Output) -> None:
    """In place of the error; the signal it needs is the next command."""
    lines = list(picture(WAITING, output.out, NOW))

    assert lines[lines.index("waiting on") :] == [
        "waiting on",
        "  ship: attempt 3 in 8.00s after TimeoutError",
        '  signal "approved" (times out in 50m 00s)     shop/flows.py:12',
        "",
        "next: durable signal order-43 approved VALUE · durable show order-43 --events",
    ]


def test_colour_is_an_addition(output: Output) -> None:
    """Without the escapes, the coloured text is the same text."""
    plain = list(picture(FAILED, output.out, NOW))
    output.out.has_colour = True
    coloured = list(picture(FAILED, output.out, NOW))

    stripped = [
        "".join(part.partition("m")[2] if i else part for i, part in enumerate(line.split("\x1b[")))
        for line in coloured
    ]
    assert coloured != plain
    assert [line.rstrip() for line in stripped] == plain


def test_progress_is_one_line_per_change() -> None:
    """What `durable run` prints."""
    assert [step_line(n, entry, NOW) for n, entry in enumerate(FAILED.journal, 1)] == [
        '✓  1  charge("bad")  0.21s  "ch_bad"',
        "✓  2  sleep 2s  2.00s",
        '✓  3  signal approved  0.09s  {"by": "ann"}',
        '✗  4  ship(order="bad", fast=true)  10.1s  5 attempts  RuntimeError: no stock for bad',
    ]


@pytest.mark.parametrize(
    ("retention", "closed", "text"),
    [
        ("forever", True, "for ever"),
        (timedelta(days=2), True, "until 2026-11-24T03:04:13Z"),
        (timedelta(days=2), False, "2d 0h after it is closed"),
    ],
)
def test_a_retention_of_its_own_is_told(output: Output, retention: Any, closed: bool, text: str) -> None:
    """Until when, once that is known; of others, which workers delete as they are told, nothing is said."""
    run = a_run(retention=retention, closed_at=NOW if closed else None)

    assert ("kept", text) in list(facts(run, NOW))
    assert f"kept {text}" in "\n".join(picture(run, output.out, NOW))
    assert "kept" not in [line[0] for line in facts(a_run(), NOW)]
