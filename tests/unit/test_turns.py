"""A turn: its bytes, its parts, and the activations it is read back as."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.errors import UndecodableError
from durable.failures import Failure
from durable.journal.events import (
    ActivityCompleted,
    ActivityFailed,
    AnyEntry,
    Cancelled,
    CancelRequested,
    CloseOp,
    Completed,
    ContinuedAsNew,
    Failed,
    OpenWait,
    Retried,
    ScheduleActivity,
    SignalReceived,
    Started,
    StartTimer,
    Terminated,
    TimedOut,
    TimerFired,
)
from durable.journal.turns import (
    FORMAT,
    PART_BYTES_MAX,
    Activated,
    decode_turn,
    encode_turn,
    split_activations,
)

RAW = msgspec.Raw(b'{"a":[1,2.5,null,"\xc3\xa9"]}')
FAILURE = Failure(type="m:E", message="why", cause=Failure(type="m:F", message=""))
EVERY: list[AnyEntry] = [
    Started(at=1, seed=2**62, attempt=3, python="3.12", hash_seed="cafe"),
    Retried(at=2, attempt=2),
    ActivityCompleted(op=1, at=3, result=RAW, attempts=2),
    ActivityFailed(op=1, at=3, failure=FAILURE),
    TimerFired(op=2, at=4),
    SignalReceived(at=5, name="go", value=RAW, msg=7, id="x"),
    CancelRequested(at=6, msg=8, reason="enough"),
    ScheduleActivity(op=3, name="a", n=1, args=RAW, src="a/b.py:1", started=True),
    StartTimer(op=4, due=9, duration=5),
    OpenWait(op=5, wait="signal", name="go"),
    CloseOp(op=4, how="try"),
    Completed(at=9, result=RAW),
    Failed(at=9, failure=FAILURE),
    Failed(at=9, failure=FAILURE, origin=(3, 2)),
    Cancelled(at=9, reason=None),
    ContinuedAsNew(at=9),
    Terminated(at=9),
    TimedOut(at=9),
]


def decoded(parts: tuple[bytes, ...]) -> list[AnyEntry]:
    return [entry for part in parts for entry in decode_turn(part).entries]


def test_every_kind_of_entry_survives_the_stored_format() -> None:
    """Bytes of values are kept exactly."""
    parts = encode_turn(42, EVERY)

    assert len(parts) == 1
    assert decode_turn(parts[0]).worker == 42
    again = encode_turn(42, decoded(parts))
    assert again == parts
    completed = decoded(parts)[2]
    assert isinstance(completed, ActivityCompleted)
    assert bytes(completed.result) == bytes(RAW)


def test_a_large_turn_becomes_parts() -> None:
    """Each below the limit unless a single entry is larger; together they are the turn, in order (P19)."""
    big = msgspec.Raw(b'"' + b"x" * 300_000 + b'"')
    entries: list[AnyEntry] = [ScheduleActivity(op=op, name="a", n=op, args=big) for op in range(1, 12)]
    huge = msgspec.Raw(b'"' + b"x" * (2 * PART_BYTES_MAX) + b'"')
    entries.append(ScheduleActivity(op=12, name="a", n=12, args=huge))

    parts = encode_turn(1, entries)

    assert len(parts) > 3
    assert [entry.op for entry in decoded(parts) if isinstance(entry, ScheduleActivity)] == list(range(1, 13))
    assert sum(len(part) > PART_BYTES_MAX for part in parts) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"v":1,"worker":1}',
        b'{"v":1,"worker":1,"entries":[{"e":"unheard_of"}]}',
        b'{"v":1,"worker":1,"entries":[{"e":"timer_fired"}]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_anything_else_is_undecodable(data: bytes) -> None:
    """A damaged row parks its run; it is never guessed at."""
    with pytest.raises(UndecodableError):
        decode_turn(data)


def test_a_newer_format_is_undecodable() -> None:
    """It says which format it found."""
    with pytest.raises(UndecodableError, match=str(FORMAT + 1)):
        decode_turn(msgspec.json.encode({"v": FORMAT + 1, "worker": 1, "entries": []}))


def test_activations_are_an_event_and_what_it_led_to() -> None:
    """Numbers count all entries of the generation; turn and index say where the event stands."""
    turns: list[tuple[int, list[AnyEntry]]] = [
        (1, [EVERY[0], EVERY[7], EVERY[8]]),
        (2, [EVERY[4]]),
        (4, [EVERY[5], EVERY[6], EVERY[10], EVERY[11]]),
    ]

    *activations, end = split_activations(turns)

    assert isinstance(end, Completed)
    assert [
        (a.turn, a.index, a.number, len(a.commands)) for a in activations if isinstance(a, Activated)
    ] == [(1, 0, 1, 2), (2, 0, 4, 0), (4, 0, 5, 0), (4, 1, 6, 1)]


def test_commands_belong_to_the_event_before_them_across_parts() -> None:
    """A part may begin with a command: it is the same turn."""
    (activation,) = split_activations([(1, [EVERY[0]]), (1, [EVERY[7]])])

    assert isinstance(activation, Activated)
    assert activation.commands == [EVERY[7]]


def test_a_journal_that_begins_with_a_command_is_undecodable() -> None:
    with pytest.raises(UndecodableError):
        list(split_activations([(1, [EVERY[7]])]))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_undecodable(data: bytes) -> None:
    try:
        decode_turn(data)
    except UndecodableError:
        pass
