"""Pipelines and sagas on the command line, in their own words: runs made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from durable_cli.options import Settings
from durable_cli.output import Terminal
from durable_cli.story import entry_result, facts, picture, step_name

from durable import Entry
from tests.cli.test_cli_story import NOW, Screen, a_run, ago, an_entry


def test_a_compensation_is_told_as_an_undoing() -> None:
    """Also inside another run, where it is named by its path."""
    entry = an_entry(1, "Order/charge/compensation", "compensation", "completed", 2, 1)

    assert step_name(entry) == "undo Order/charge"


def test_a_predicate_is_a_question_and_a_skipped_step_has_no_call() -> None:
    """What did not happen took no arguments."""
    asked = an_entry(1, "gift/condition", "predicate", "completed", 2, 1, input={"ctx": {"vip": False}})
    skipped = an_entry(2, "gift", "step", "skipped", 1, 1)

    assert step_name(asked) == "gift/condition?"
    assert step_name(skipped) == "gift"


def test_the_kind_of_a_run_is_told_unless_it_is_a_workflow() -> None:
    """`kind pipeline`, `kind saga`."""
    assert ("kind", "saga") in list(facts(a_run(kind="saga"), NOW))
    assert "kind" not in [row[0] for row in facts(a_run(), NOW)]


def a_slice(number: int, first: int, count: int, result: Any, **rest: Any) -> Entry:
    given = {"first": first, "count": count, "attempt": 1}
    begin = 100.0 - number
    status = "running" if result is None else "completed"
    end = None if result is None else begin - 0.5
    return an_entry(
        number, "items", "bulk", status, begin, end, input=given, result=result, attempts=1, **rest
    )


BULK = a_run(
    "invoices",
    "running",
    kind="bulk",
    input={"batch": {"total": 1000, "chunks": ["x"]}},
    journal=[
        an_entry(1, "settings", "bulk", "completed", 100, 99.9, result={}),
        a_slice(2, 0, 10, [[1] * 9, list(range(9)), [{"at": 9, "error": "no", "type": "E", "attempts": 4}], []]),
        a_slice(3, 10, 10, [[1] * 9, list(range(9)), [{"at": 9, "error": "no", "type": "E", "attempts": 1, "delay": 1}], []]),
        an_entry(4, "1s", "timer", "waiting", 97, due_at=ago(96)),
        a_slice(5, 20, 10, None),
    ],
)  # fmt: skip


def test_a_bulk_operation_is_one_line_however_many_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many of its items have ended, and how many of those failed; retries are on the way yet."""
    monkeypatch.setenv("COLUMNS", "120")
    rows = [row for row in facts(BULK, NOW) if row[0] == "step"]

    assert [row[2:4] for row in rows] == [("running", "items"), ("waiting", "sleep 1s")]
    assert rows[0][-1] == "░░░░░░░░░░ 19 of 1000 items, 1 failed in 3 slices"
    told = "\n".join(picture(BULK, Terminal(Screen(), Settings({"NO_COLOR": "1"})), NOW))
    assert "19 of 1000 items" in told
    assert "settings" not in told
    assert step_name(BULK.journal[1]) == "items 0 to 9"
    assert (
        step_name(an_entry(1, "op/items", "bulk", "running", 1, input={"first": 3, "count": 1}))
        == "op/item 3"
    )


def test_a_transition_is_told_with_its_machine_and_its_state() -> None:
    """`order-7: approve` and `→ approved`."""
    entry = an_entry(
        1, "order-7/approve", "transition", "completed", 2, 1, result={"state": "approved", "version": 1}
    )

    assert (step_name(entry), entry_result(entry, NOW)) == ("order-7: approve", "→ approved")
