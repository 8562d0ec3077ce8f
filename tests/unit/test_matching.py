"""Matching alone: recorded commands against what today's code asked for, without a loop."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.journal.events import CloseOp, Command, OpenWait, ScheduleActivity, Started, StartTimer
from durable.journal.matching import Mismatch, environment, label, match, non_determinism


class Thing(NamedTuple):
    kind: str
    name: str
    detail: object
    src: str = "shop/orders.py:7"
    how: str = ""


def scheduled(name: str, args: bytes = b"{}", *, op: int = 1) -> Command:
    return ScheduleActivity(op=op, name=name, n=1, args=msgspec.Raw(args), src="shop/orders.py:3")


def timer(duration: int, *, op: int = 1) -> Command:
    return StartTimer(op=op, due=duration, duration=duration)


def called(name: str, args: bytes = b"{}") -> Thing:
    return Thing("activity", name, args)


def test_equal_lists_match_in_order() -> None:
    recorded = [scheduled("a"), timer(5), OpenWait(op=3, wait="signal", name="go"), CloseOp(op=9)]
    asked = [called("a"), Thing("timer", "", 5), Thing("signal", "go", None), Thing("closed", "timer", 9)]

    assert match(recorded, asked) == (asked, [])


def test_equal_operations_match_in_order_of_issue() -> None:
    """Two waits for one signal, or two equal calls, are told apart by nothing else."""
    recorded = [OpenWait(op=1, wait="condition"), OpenWait(op=2, wait="condition"), scheduled("a", op=3)]
    asked = [called("a"), Thing("condition", "", None, "x:1"), Thing("condition", "", None, "x:2")]

    aligned, changed = match(recorded, asked)

    assert [one.src for one in aligned[:2]] == ["x:1", "x:2"]
    assert changed == []


def test_details_pair_siblings_before_order_does() -> None:
    """Exact matches are made first, wherever they stand."""
    recorded = [scheduled("a", b"1"), scheduled("a", b"2"), scheduled("a", b"3")]
    asked = [called("a", b"3"), called("a", b"9"), called("a", b"1")]

    aligned, changed = match(recorded, asked)

    assert [one.detail for one in aligned] == [b"1", b"9", b"3"]
    assert changed == [(recorded[1], asked[1])]


def test_one_leftover_per_name_is_enough_for_each_name() -> None:
    """Two names may each have one changed call."""
    recorded = [scheduled("a", b"1"), scheduled("b", b"1"), timer(5)]
    asked = [Thing("timer", "", 6), called("b", b"2"), called("a", b"2")]

    aligned, changed = match(recorded, asked)

    assert [one.name for one in aligned] == ["a", "b", ""]
    assert len(changed) == 3


@pytest.mark.parametrize(
    ("recorded", "asked", "expected", "got"),
    [
        ([scheduled("a")], [], "a", None),
        ([], [called("a")], None, "a"),
        ([scheduled("a")], [called("b")], "a", "b"),
        ([scheduled("a", b"1"), scheduled("a", b"2")], [called("a", b"3"), called("a", b"4")], "a", "a"),
        ([scheduled("a", b"1"), scheduled("a", b"2")], [called("a", b"3")], "a", "a"),
        ([timer(5)], [Thing("condition", "", None)], "timer", "condition"),
        (
            [OpenWait(op=1, wait="signal", name="x")],
            [Thing("signal", "y", None)],
            "wait for signal 'x'",
            "wait for signal 'y'",
        ),
        ([CloseOp(op=1)], [Thing("closed", "timer", 2)], "end of operation 1", "end of timer"),
        ([CloseOp(op=1), scheduled("a")], [], "a", None),
        ([CloseOp(op=1, how="try")], [Thing("closed", "a", 1, how="wait")], "end of operation 1", "end of a"),
    ],
)
def test_what_does_not_match_is_named(
    recorded: list[Command], asked: list[Thing], expected: str | None, got: str | None
) -> None:
    """By activity name or kind; what was opened is named before what was closed."""
    with pytest.raises(Mismatch) as caught:
        match(recorded, asked)

    error = non_determinism(
        caught.value,
        run_id="r",
        number=12,
        event=Started(at=1, seed=1),
        started=None,
        closed=lambda op: f"operation {op}",
        source_text=lambda source: "await refund(order)" if source else "",
    )
    assert (error.expected, error.got) == (expected, got)
    assert "event 12" in str(error)
    if got in ("a", "b"):
        assert "shop/orders.py:7: await refund(order)" in str(error)
    if expected == "a":
        assert "shop/orders.py:3" in str(error)


@given(
    st.permutations(
        [called("a", b"1"), called("a", b"2"), called("b"), Thing("timer", "", 5), Thing("signal", "s", None)]
    )
)
def test_no_order_of_issue_changes_who_is_who(asked: list[Thing]) -> None:
    recorded = [
        scheduled("a", b"2"),
        OpenWait(op=2, wait="signal", name="s"),
        scheduled("b"),
        timer(5),
        scheduled("a", b"1"),
    ]

    aligned, changed = match(recorded, asked)

    assert [(one.kind, one.detail) for one in aligned] == [
        ("activity", b"2"),
        ("signal", None),
        ("activity", b"{}"),
        ("timer", 5),
        ("activity", b"1"),
    ]
    assert changed == []


def test_the_environment_is_a_version_and_a_fingerprint() -> None:
    python, hash_seed = environment()

    assert python.startswith("3.")
    assert len(hash_seed) == 8
    assert int(hash_seed, 16) >= 0


def test_labels_are_for_people() -> None:
    assert [
        label("activity", "charge"),
        label("timer", ""),
        label("signal", "x"),
        label("condition", ""),
    ] == [
        "charge",
        "timer",
        "wait for signal 'x'",
        "condition",
    ]
