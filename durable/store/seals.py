"""Records, sealed and opened by a codec. A journal row is sealed as a whole, so names of activities, source lines, failures
and stacks are in it; what stays in clear is what the store itself reads: run ids, workflows, queues, names of signals, statuses,
instants, numbers. Knows nothing of verbs or databases.

Places. Each payload is sealed for one place, told in names that are the same in every database: the run id, then what it is,
then where in the run. Journal rows, results and attempts also carry, in their envelope, the epoch and the generation that
wrote them, for a row may be read in a later one: a retry copies the rows before the failure as they are (P7). So a row may
come from an earlier generation than it stands in, never from a later one, and never after a row of a later one. (The row with
which a retry begins could thus be exchanged with the same turn of the attempt before it, and nothing else in a journal.) Inputs and
messages are sealed before the store gives them their numbers; a message has its sender's id, which is used once, instead.
An input could therefore be exchanged with an older one of the same run id and workflow, by somebody who writes the database.

What cannot be opened is handed on (see `payloads.codec`), so that it costs its own run only, when that is driven.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from durable.errors import CodecError, UndecodableError
from durable.journal.events import Terminated, TimedOut
from durable.journal.lifecycle import RunStatus
from durable.journal.turns import decode_turn
from durable.payloads.codec import (
    PayloadCodec,
    envelope_in,
    is_sealed,
    is_size_note,
    open_envelope,
    seal,
    seal_text,
    sealed_fault,
    shown_text,
    stuck,
    unseal,
)
from durable.store.records import (
    RETRY_NOW,
    After,
    AttemptRow,
    ChildCancel,
    ChildStart,
    Claim,
    Close,
    JournalRow,
    Message,
    NewTask,
    NextGeneration,
    Outgoing,
    Park,
    Redelivery,
    RunRecord,
    StartRequest,
    Stay,
    Task,
    TaskClosing,
    TaskEnd,
    TurnCommit,
    answer_id,
)

Origin = tuple[int, int]  # (epoch, generation)

_KNOWN_MAX: Final = 100_000  # runs whose names are kept by number; forgetting one costs a read
_UNSEALED: Final = "it is not encoded, and the codec at hand takes only what it has encoded itself"


class Seals:
    """The seals of one store's records, and what is remembered of runs to know the places: a commit names them by number only."""

    def __init__(self, codec: PayloadCodec) -> None:
        self._codec = codec
        self.known: dict[tuple[int, int], tuple[str, Origin]] = {}  # (pk, generation) -> run id, origin
        self.names: dict[int, str] = {}  # pk -> run id
        self._inputs: dict[tuple[int, int], str] = {}  # (pk, generation) -> the place of its input

    def note(self, run: RunRecord | Claim) -> Origin:
        origin = (run.epoch, run.generation)
        if len(self.known) >= _KNOWN_MAX:
            for pk, generation in list(self.known)[: _KNOWN_MAX // 2]:
                del self.known[pk, generation], self._inputs[pk, generation]
                self.names.pop(pk, None)
        self.known[run.pk, run.generation] = run.run_id, origin
        self._inputs[run.pk, run.generation] = input_place(run)
        self.names[run.pk] = run.run_id
        return origin

    # ─ on the way in ──

    def seal(self, data: bytes, place: str, origin: Origin = (0, 0)) -> bytes:
        return seal(self._codec, data, place, origin)

    def seal_if(self, data: bytes | None, place: str, origin: Origin) -> bytes | None:
        return None if data is None else self.seal(data, place, origin)

    def seal_text(self, text: str | None, place: str) -> str | None:
        return None if text is None else seal_text(self._codec, text, place)

    def seal_reason(self, reason: str | None, run_id: str) -> str | None:
        return self.seal_text(reason, reason_place(run_id))

    def commit(self, commit: TurnCommit) -> TurnCommit:
        """Return a sealed copy: a commit that fails is tried again from the original."""
        run_id, origin = self.known[commit.pk, commit.generation]
        given = {name: getattr(commit, name) for name in TurnCommit.__struct_fields__}
        return TurnCommit(
            **{
                **given,
                "parts": self.parts(commit.parts, run_id, commit.turn or 0, origin),
                "errands": [self._errand(one) for one in commit.errands],
                "attempts": [self._seal_attempt(row, run_id, origin) for row in commit.attempts],
                "tasks": [self._new_task(one, run_id, origin) for one in commit.tasks],
                "tasks_closed": [self._closing(one, run_id) for one in commit.tasks_closed],
                "answers": [self.outgoing(one) for one in commit.answers],
                "after": commit.after if type(commit.after) is Stay else self._after(commit, run_id, origin),
            }
        )

    def _errand(self, errand: ChildStart | ChildCancel) -> ChildStart | ChildCancel:
        if isinstance(errand, ChildCancel):
            place = message_place(errand.run_id, "cancel", "cancel", None)
            return ChildCancel(run_id=errand.run_id, data=self.seal(errand.data, place))
        request = errand.request
        sealed = msgspec.structs.replace(request, input=self.seal(request.input, input_place(request)))
        return msgspec.structs.replace(errand, request=sealed)

    def parts(self, parts: Sequence[bytes], run_id: str, turn: int, origin: Origin) -> tuple[bytes, ...]:
        return tuple(
            self.seal(data, journal_place(run_id, turn, part), origin) for part, data in enumerate(parts, 1)
        )

    def _after(self, commit: TurnCommit, run_id: str, origin: Origin) -> After:
        after = commit.after
        if isinstance(after, Close):
            return msgspec.structs.replace(
                after,
                result=self.seal_if(after.result, f"result\0{run_id}", origin),
                failure=self.seal_if(after.failure, f"failure\0{run_id}", origin),
                reason=self.seal_reason(after.reason, run_id),
            )
        if isinstance(after, NextGeneration):
            epoch, generation = origin
            parts = self.parts(after.parts, run_id, after.copy_turns + 1, (epoch, generation + 1))
            return msgspec.structs.replace(
                after,
                failure=self.seal_if(after.failure, f"failure\0{run_id}", origin),
                input=None
                if after.input is None
                else self.seal(after.input, self._inputs[commit.pk, commit.generation]),
                parts=parts,
                redeliver=tuple(self.redelivery(one, run_id) for one in after.redeliver),
            )
        if isinstance(after, Park):
            return msgspec.structs.replace(
                after,
                reason=after.reason if after.is_clear else self.seal_reason(after.reason, run_id),
                failure=self.seal_if(after.failure, f"failure\0{run_id}", origin),
            )
        return after

    def outgoing(self, message: Outgoing) -> Outgoing:
        place = message_place(message.run_id, message.kind, message.name, message.message_id)
        return msgspec.structs.replace(message, data=self.seal(message.data, place))

    def redelivery(self, message: Redelivery, run_id: str) -> Redelivery:
        place = message_place(run_id, message.kind, message.name, message.message_id)
        return msgspec.structs.replace(message, data=self.seal(message.data, place))

    def _seal_attempt(self, row: AttemptRow, run_id: str, origin: Origin) -> AttemptRow:
        if row.failure is None and row.details is None:
            return row
        return msgspec.structs.replace(
            row,
            failure=self.seal_if(row.failure, f"attempt failure\0{run_id}\0{row.op}", origin),
            details=self.seal_if(row.details, details_place(run_id, row.op), origin),
        )

    def _new_task(self, task: NewTask, run_id: str, origin: Origin) -> NewTask:
        return msgspec.structs.replace(task, args=self.seal(task.args, f"task\0{run_id}\0{task.op}", origin))

    def _closing(self, closing: TaskClosing, run_id: str) -> TaskClosing:
        return msgspec.structs.replace(closing, reason=self.seal_reason(closing.reason, run_id))

    def end(self, end: TaskEnd) -> TaskEnd:
        task, origin = end.task, origin_of(end.task)
        message_id = answer_id(task.generation, task.op, task.attempt)
        is_outcome = end.how in ("completed", "failed")
        return msgspec.structs.replace(
            end,
            data=self.seal(end.data, message_place(task.run_id, "activity", end.how, message_id))
            if is_outcome
            else b"",
            failure=self.seal_if(end.failure, f"attempt failure\0{task.run_id}\0{task.op}", origin),
            details=self.seal_if(end.details, details_place(task.run_id, task.op), origin),
        )

    # ─ on the way out ──

    def same_input(self, request: StartRequest, stored: bytes) -> bool:
        """Whether a run was started with what is asked for now: equal inputs are sealed to different bytes."""
        there, here = self.open(stored, input_place(request)), self.open(request.input, input_place(request))
        if (fault := sealed_fault(there)) is not None:
            raise UndecodableError(
                f"run {request.run_id!r} exists and its input cannot be compared: {fault}",
                run_id=request.run_id,
            )
        return there == here

    def open(self, data: bytes, place: str, *allowed: Origin) -> bytes:
        """Return what was sealed, or what stands for it. `allowed`: where it may have been written, if it tells."""
        if is_size_note(data):
            return data
        try:
            envelope = open_envelope(data)
            if envelope is None:
                return data if self._codec.accepts_plain else stuck(_UNSEALED)
            if allowed and envelope.origin not in allowed:
                raise CodecError("it was written in another generation of this run, and moved here")
            return unseal(self._codec, envelope, place)
        except CodecError as error:
            return stuck(str(error))
        except Exception as error:  # a codec of the user's: what it raises may quote what it was given
            return stuck(f"the codec {self._codec.name!r} raised {type(error).__name__}")

    def open_if(self, data: bytes | None, place: str, origin: Origin) -> bytes | None:
        return None if data is None else self.open(data, place, origin)

    def open_reason(self, text: str | None, run_id: str) -> str | None:
        return self.open_text(text, reason_place(run_id))

    def open_text(self, text: str | None, place: str) -> str | None:
        data = None if text is None else envelope_in(text)
        if data is None:
            return text
        opened = self.open(data, place)
        return shown_text(text) if sealed_fault(opened) is not None else opened.decode("utf-8", "replace")

    def record(self, run: RunRecord) -> RunRecord:
        origin = self.note(run)
        return msgspec.structs.replace(
            run,
            input=self.open(run.input, input_place(run)),
            result=self.open_if(run.result, f"result\0{run.run_id}", origin),
            failure=self._open_failure(run, origin),
            reason=self.open_reason(run.reason, run.run_id),
            pause_reason=self.open_reason(run.pause_reason, run.run_id),
        )

    def _open_failure(self, run: RunRecord, origin: Origin) -> bytes | None:
        """Of a parked run it says more of what the reason says, and may be the store's own word, or in another key."""
        if run.status is not RunStatus.PARKED or run.failure is None:
            return self.open_if(run.failure, f"failure\0{run.run_id}", origin)
        if not is_sealed(run.failure):
            return run.failure
        opened = self.open(run.failure, f"failure\0{run.run_id}", origin)
        return None if sealed_fault(opened) is not None else opened

    def claim(self, claim: Claim) -> Claim:
        origin = self.note(claim)
        return msgspec.structs.replace(
            claim,
            input=self.open(claim.input, input_place(claim)),
            journal=self.journal(claim.journal, claim.run_id, origin),
            inbox=[self.message(one, claim.run_id) for one in claim.inbox],
            attempts=[self.attempt(row, claim.run_id, origin) for row in claim.attempts],
        )

    def journal(self, rows: Iterable[JournalRow], run_id: str, origin: Origin) -> list[JournalRow]:
        opened: list[JournalRow] = []
        last = (0, 0)
        for row in rows:
            data, last = self._journal_row(row, run_id, last, origin)
            opened.append(JournalRow(row.turn, row.part, data))
        return opened

    def _journal_row(self, row: JournalRow, run_id: str, last: Origin, here: Origin) -> tuple[bytes, Origin]:
        """Return the row, and where it was written: between the row before it and the generation it stands in."""
        if is_size_note(row.data):
            return row.data, last
        try:
            envelope = open_envelope(row.data)
        except CodecError as error:
            return stuck(str(error)), last
        if envelope is None:
            return self._plain_row(row.data, run_id), last
        if not last <= envelope.origin <= here:
            return stuck("it was written in another generation of this run, and moved here"), last
        return self.open(row.data, journal_place(run_id, row.turn, row.part)), envelope.origin

    def _plain_row(self, data: bytes, run_id: str) -> bytes:
        """Return a row that is not sealed: of a time before the codec, or the store's own end of a run."""
        try:
            turn = decode_turn(data)
        except UndecodableError:
            return data if self._codec.accepts_plain else stuck(_UNSEALED)
        if turn.worker or not all(isinstance(entry, Terminated | TimedOut) for entry in turn.entries):
            return data if self._codec.accepts_plain else stuck(_UNSEALED)
        entries = [
            msgspec.structs.replace(entry, reason=self.open_reason(entry.reason, run_id))
            if isinstance(entry, Terminated)
            else entry
            for entry in turn.entries
        ]
        return msgspec.json.encode(msgspec.structs.replace(turn, entries=entries))

    def message(self, message: Message, run_id: str) -> Message:
        is_bare = message.kind in ("cancel", "child") or message.name == RETRY_NOW
        if is_bare and message.data == b"null":
            return message  # no reason given, or none needed: anybody may say so; that a child is closed is looked at then
        place = message_place(run_id, message.kind, message.name, message.message_id)
        return msgspec.structs.replace(message, data=self.open(message.data, place))

    def task(self, task: Task) -> Task:
        origin = origin_of(task)
        return msgspec.structs.replace(
            task,
            args=self.open(task.args, f"task\0{task.run_id}\0{task.op}", origin),
            failure=self.open_if(task.failure, f"attempt failure\0{task.run_id}\0{task.op}", origin),
            details=self.open_if(task.details, details_place(task.run_id, task.op), origin),
            close_reason=self.open_reason(task.close_reason, task.run_id),
        )

    def attempt(self, row: AttemptRow, run_id: str, origin: Origin) -> AttemptRow:
        if row.failure is None and row.details is None:
            return row
        return msgspec.structs.replace(
            row,
            failure=self.open_if(row.failure, f"attempt failure\0{run_id}\0{row.op}", origin),
            details=self.open_if(row.details, details_place(run_id, row.op), origin),
        )


# ─ places: NUL occurs in no id and no name ──


def input_place(run: StartRequest | RunRecord | Claim) -> str:
    return f"input\0{run.run_id}\0{run.workflow}"


def journal_place(run_id: str, turn: int, part: int) -> str:
    return f"journal\0{run_id}\0{turn}\0{part}"


def message_place(run_id: str, kind: str, name: str, message_id: str | None) -> str:
    return f"message\0{run_id}\0{kind}\0{name}\0{message_id or ''}"


def details_place(run_id: str, op: int) -> str:
    return f"attempt details\0{run_id}\0{op}"


def origin_of(task: Task) -> Origin:
    return (task.epoch, task.generation)


def row_place(table: str, key: str, number: int) -> str:
    return f"row\0{table}\0{key}\0{number}"


def reason_place(run_id: str) -> str:
    return f"reason\0{run_id}"


def pause_place(kind: str, name: str) -> str:
    return f"pause\0{kind}\0{name}"
