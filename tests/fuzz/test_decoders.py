"""Every decoder of stored bytes, under changed bytes: it decodes them or refuses them in words of ours; nothing is executed.

`pytest tests/fuzz` tries some hundred per decoder, always the same; `pytest -m slow` many more; `DURABLE_FUZZ=100000` as many
as you like, from another seed each day.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import os
import uuid
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypedDict

import msgspec
import pytest

from durable import failures
from durable.errors import CodecError, DurableError, UndecodableError
from durable.failures import Failure
from durable.journal import view
from durable.journal.events import (
    ActivityCompleted,
    ActivityFailed,
    Completed,
    ScheduleActivity,
    SignalReceived,
    Started,
    StartTimer,
    TimerFired,
)
from durable.journal.turns import decode_turn, encode_turn
from durable.patterns.state_records import Moved, decode_records
from durable.payloads import Arguments, ValueType, codec
from durable.payloads.encryption import Encryption
from durable.result import Ok, Result
from durable.store.records import AttemptRow, Message
from durable.tokens import TaskToken, parse_token, token_text
from durable.worker.reading import check_answer, check_attempts, message_event
from tests.fuzz.guided import fuzz

TIMES: Final = int(os.environ.get("DURABLE_FUZZ", "300"))
SEED: Final = dt.date.today().toordinal() if "DURABLE_FUZZ" in os.environ else 20261122
AT: Final = 1_764_000_000_000_000


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Options(TypedDict, total=False):
    fast: bool
    limit: int


@dataclasses.dataclass
class Card:
    number: str
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Transfer:
    iban: str
    at: dt.datetime | None = None


class Item(msgspec.Struct, tag=True):
    name: str
    price: decimal.Decimal


def order(
    run: uuid.UUID,
    pay: Card | Transfer,
    items: list[Item],
    *rest: Point,
    options: Options | None = None,
    seen: frozenset[dt.date] = frozenset(),
    by: dict[int, tuple[str, bytes]] | None = None,
    how: Literal["a", "b"] = "a",
    left: dt.timedelta = dt.timedelta(),
    outcome: Result[int, ValueError] | None = None,
    free: Any = None,
) -> None: ...


ARGUMENTS: Final = Arguments.of(order)
ORDER: Final = ARGUMENTS.encode(
    (uuid.UUID(int=7), Transfer("DE1", dt.datetime(2026, 1, 1, tzinfo=dt.UTC)), [Item("x", decimal.Decimal("1.5"))], Point(1)),
    {
        "options": {"fast": True},
        "seen": frozenset({dt.date(2026, 2, 3)}),
        "by": {1: ("a", b"\x00\xff")},
        "left": dt.timedelta(seconds=3),
        "outcome": Ok(3),
        "free": {"a": [1, None, "x"]},
    },
)  # fmt: skip


def some_failure() -> Failure:
    try:
        try:
            raise KeyError("k")
        except KeyError as error:
            raise ExceptionGroup("several", [ValueError(1, "two"), OSError(2, "no", "file")]) from error
    except ExceptionGroup as group:
        return failures.record(group)


FAILURE: Final = msgspec.json.encode(some_failure())
ANYTHING: Final = ValueType.of(Any)
PAYMENTS: Final = ValueType.of(dict[str, list[Card | Transfer | None]])
KEYS: Final = Encryption({"k1": bytes(32)})
SEALED: Final = codec.seal(KEYS, b'{"a":1}', "run 1", (1, 1))
STATE: Final = msgspec.json.encode(
    Moved(event="open", from_state="shut", to_state="open", at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
)
TOKEN: Final = token_text(TaskToken("order-7", 1, 1, 2, 3), "secret")


def journal() -> list[bytes]:
    entries: list[Any] = [
        Started(at=AT, seed=7, python="3.11"),
        ScheduleActivity(op=1, name="charge", n=1, args=msgspec.Raw(b'{"cents":3}'), src="shop.py:3"),
        ActivityCompleted(op=1, at=AT, result=msgspec.Raw(b'"paid"'), attempts=1),
        StartTimer(op=2, due=AT, duration=10, src="shop.py:4"),
        TimerFired(op=2, at=AT),
        SignalReceived(at=AT, name="go", value=msgspec.Raw(b"true"), msg=1, id="m"),
        ScheduleActivity(op=3, name="ship", n=1, args=msgspec.Raw(b"{}"), src="shop.py:5"),
        ActivityFailed(op=3, at=AT, failure=some_failure(), attempts=2),
        Completed(at=AT, result=msgspec.Raw(b"[1]")),
    ]
    return [*encode_turn(3, entries), *(row for entry in entries for row in encode_turn(1, [entry]))]


def decode_journal(data: bytes) -> None:
    """A row of the journal: what can be read can be written again, and told to people."""
    turn = decode_turn(data)
    again = [entry for row in encode_turn(turn.worker, turn.entries) for entry in decode_turn(row).entries]
    assert again == turn.entries
    view.tell(turn.entries)


def decode_failure(data: bytes) -> None:
    try:
        failure = msgspec.json.decode(data, type=Failure)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableError(type(error).__name__) from None
    error = failures.rebuild(failure)
    assert isinstance(error, Exception), "control flow out of data"
    failures.describe(failure)
    str(error)


def decode_envelope(data: bytes) -> None:
    codec.sealed_fault(data)
    codec.sealed_label(data)
    codec.shown_text(data.decode("utf-8", "replace"))
    codec.envelope_in(data.decode("latin-1"))
    envelope = codec.open_envelope(data)
    if envelope is not None:
        opened = codec.unseal(KEYS, envelope, "run 1")
        assert (data, opened) == (SEALED, b'{"a":1}'), "forged"


def decode_token(data: bytes) -> None:
    assert parse_token(data.decode("utf-8", "replace"), "secret") == TaskToken("order-7", 1, 1, 2, 3), (
        "forged"
    )


def decode_messages(data: bytes) -> None:
    for kind, name in (("signal", "go"), ("cancel", ""), ("activity", "failed"), ("activity", "completed")):
        message = Message(
            inbox_id=1, run_pk=1, msg=1, kind=kind, name=name, data=data, message_id="m", sent_at_us=AT
        )  # type: ignore[arg-type]
        if kind == "activity":
            check_answer(message)
        else:
            decode_turn(*encode_turn(1, [message_event(message, AT)]))


def decode_attempts(data: bytes) -> None:
    check_attempts([AttemptRow(op=1, attempt=1, state="backoff", details=data)])
    check_attempts([AttemptRow(op=1, attempt=1, state="backoff", failure=data)])


def decode_arguments(data: bytes) -> None:
    args, kwargs = ARGUMENTS.decode(data)
    again = ARGUMENTS.encode(args, kwargs)
    assert ARGUMENTS.encode(*ARGUMENTS.decode(again)) == again


def decode_value(data: bytes) -> None:
    ANYTHING.decode(data)
    PAYMENTS.decode(data)


DECODERS: Final[dict[str, tuple[Callable[[bytes], object], list[bytes], tuple[type[Exception], ...]]]] = {
    "journal": (decode_journal, journal(), (UndecodableError,)),
    "failure": (decode_failure, [FAILURE], (UndecodableError,)),
    "arguments": (decode_arguments, [ORDER], (DurableError,)),
    "value": (decode_value, [b'{"a":[{"$type":"Card","number":"4"},null]}'], (DurableError,)),
    "envelope": (decode_envelope, [SEALED, codec.size_note(7), codec.stuck("why")], (CodecError,)),
    "token": (decode_token, [TOKEN.encode()], (DurableError,)),
    "messages": (decode_messages, [b'"go"', b"null", FAILURE], (UndecodableError,)),
    "attempts": (decode_attempts, [b"[]", FAILURE], (UndecodableError,)),
    "state": (lambda data: decode_records("m", [data]), [STATE], (UndecodableError,)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_changed_bytes_are_read_or_refused(name: str) -> None:
    """Always the same few hundred, unless DURABLE_FUZZ says how many."""
    decode, seeds, allowed = DECODERS[name]
    fuzz(decode, seeds, allowed=allowed, times=TIMES, seed=SEED)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_many_changed_bytes_are_read_or_refused(name: str) -> None:
    """Thousands, with what was reached before to begin with."""
    decode, seeds, allowed = DECODERS[name]
    kept = fuzz(decode, seeds, allowed=allowed, times=max(4000, TIMES), seed=SEED + 1)
    assert kept > 0


def test_the_fuzzer_finds_what_was_planted() -> None:
    """The test of the test: behind three refusals, each met by luck, stands an error that nobody allowed."""

    def decode(data: bytes) -> None:
        if not data.endswith(b"}"):
            raise UndecodableError("no object")
        if b"null" not in data:
            raise UndecodableError("nothing in it")
        if b"$type" not in data:
            raise UndecodableError("of no type")
        raise KeyError("planted")

    with pytest.raises(AssertionError, match="KeyError: 'planted'"):
        fuzz(decode, [b'{"a":1,"b":[2,"x"]}'], allowed=(UndecodableError,), times=20_000, seed=1)


def test_what_data_executes_is_noticed() -> None:
    """Imports, files, code."""
    for act in (
        lambda: open(os.devnull).close(),
        lambda: compile("1", "x", "eval"),
        lambda: __import__("this_is_none"),
    ):

        def decode(data: bytes, act: Callable[[], Any] = act) -> None:
            try:
                act()
            except ImportError:
                pass

        with pytest.raises(AssertionError, match=r"open|compile|import"):
            fuzz(decode, [b"{}"], allowed=(), times=1, seed=1)
