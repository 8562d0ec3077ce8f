"""Pipelines and sagas on the command line, in their own words: runs made by hand."""

from __future__ import annotations

from durable_cli.story import facts, step_name

from tests.cli.test_cli_story import NOW, a_run, an_entry


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
