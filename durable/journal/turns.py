"""One commit's worth of a run: its entries, their bytes, their format version.

A turn holds, in order, each event that was fed followed by the commands which that activation issued, and at
most one end, last. Knows nothing of stores: a turn becomes one or more *parts*, each below `PART_BYTES_MAX`
unless a single entry is larger (protocol P19).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

import msgspec

from durable.errors import UndecodableError
from durable.journal.events import COMMAND_TYPES, END_TYPES, AnyEntry, Command, End, Event
from durable.payloads.codec import sealed_fault

FORMAT: Final = 1
ENGINE_VERSION: Final = 1
PART_BYTES_MAX: Final = 1 << 20


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    v: int
    worker: int
    entries: list[AnyEntry]


_encoder: Final = msgspec.json.Encoder()
_HEAD: Final = (
    b'{"v":%d,"worker":%%d,"entries":' % FORMAT
)  # as encoding a Turn would write it, at half the cost
_heads: Final[dict[int, bytes]] = {}  # the last one made, by worker
_decoder: Final = msgspec.json.Decoder(Turn)


def encode_turn(worker: int, entries: Sequence[AnyEntry]) -> tuple[bytes, ...]:
    """Return the bytes of a turn, in parts. `worker` is the incarnation that committed it (0: the store)."""
    head = _heads.get(worker)
    if head is None:
        _heads.clear()  # a worker has one number; whoever has many does not need this
        head = _heads[worker] = _HEAD % worker
    data = head + _encoder.encode(entries) + b"}"
    if len(data) <= PART_BYTES_MAX or len(entries) == 1:
        return (data,)
    half = len(entries) // 2
    return encode_turn(worker, entries[:half]) + encode_turn(worker, entries[half:])


def decode_turn(data: bytes) -> Turn:
    """Return the turn (or part of one) stored in `data`; raise `UndecodableError` on anything else."""
    try:
        turn = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Its own text would quote bytes that are not UTF-8.
        reason = sealed_fault(data) or (
            error if isinstance(error, msgspec.DecodeError) else type(error).__name__
        )
        raise UndecodableError(f"a journal row cannot be read: {reason}") from None
    if turn.v != FORMAT:
        raise UndecodableError(f"a journal row has format {turn.v}, this code reads format {FORMAT}")
    return turn


class Row(Protocol):
    """A stored part of a turn."""

    @property
    def turn(self) -> int: ...

    @property
    def part(self) -> int: ...

    @property
    def data(self) -> bytes: ...


def joined(
    rows: Iterable[Row], *, after: tuple[int, int] = (0, 0), last_turn: int = 0
) -> list[tuple[int, list[AnyEntry]]]:
    """Return (turn, entries) with the parts of each turn put together; `after` is the (turn, part) before the first row.

    Raises `UndecodableError`, which names the row: one that cannot be read, or that does not follow on the one before it;
    or if the journal ends before `last_turn`.
    """
    turns: list[tuple[int, list[AnyEntry]]] = []
    last, last_part = after
    for row in rows:
        turn, part = row.turn, row.part
        if (turn != last or part != last_part + 1) and (turn != last + 1 or part != 1):
            raise UndecodableError(
                f"the journal row of turn {turn}, part {part} does not follow on the one before it"
            )
        try:
            entries = decode_turn(row.data).entries
        except UndecodableError as fault:
            raise UndecodableError(f"turn {turn}, part {part}: {fault}") from None
        if part == 1 or not turns:
            turns.append((turn, entries))
        else:
            turns[-1][1].extend(entries)
        last, last_part = turn, part
    if last < last_turn:
        raise UndecodableError(
            f"the journal ends at turn {last}, though turn {last_turn} was written: rows are missing"
        )
    return turns


class Activated(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded activation: its event, where it stands, and what it asked for."""

    turn: int
    index: int  # of the event among the entries of its turn
    number: int  # of the event among all entries of the generation, from 1
    event: Event
    commands: list[Command]


def split_activations(turns: Iterable[tuple[int, Sequence[AnyEntry]]]) -> Iterator[Activated | End]:
    """Yield the recorded activations of (turn number, entries) pairs in order, and the end if there is one."""
    current: Activated | None = None
    number = 0
    for turn, entries in turns:
        for index, entry in enumerate(entries):
            number += 1
            if isinstance(entry, COMMAND_TYPES):
                if current is None:
                    raise UndecodableError("the journal begins with a command, not with an event")
                current.commands.append(entry)
            else:
                if current is not None:
                    yield current
                    current = None
                if isinstance(entry, END_TYPES):
                    yield entry
                else:
                    current = Activated(turn=turn, index=index, number=number, event=entry, commands=[])
    if current is not None:
        yield current
