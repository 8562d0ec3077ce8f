"""A store behind a codec: whatever bytes cross the contract are sealed on their way in and opened on their way out.

It stands before any other store, and only if there is a codec: without one it does not exist, and costs nothing. A journal
row is sealed as a whole, so names of activities, source lines, failures and stacks are in it; what stays in clear is what
the store itself reads: run ids, workflows, queues, names of signals, statuses, instants, numbers.

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

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

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
from durable.store.contract import Store
from durable.store.records import (
    ActivityAnswer,
    After,
    AnswerVerdict,
    AttemptRow,
    Claim,
    Close,
    Expiry,
    JournalRow,
    Message,
    NextGeneration,
    Park,
    PauseKind,
    PauseRecord,
    Redelivery,
    Reopen,
    RunFilter,
    RunRecord,
    SendOutcome,
    StartOutcome,
    StartRequest,
    Stay,
    TurnCommit,
    Verdict,
    answer_id,
)

Origin = tuple[int, int]  # (epoch, generation)

# Verbs that carry no payload: handed through. A verb that is neither here nor below does not exist, on purpose.
PLAIN_VERBS: Final = frozenset(
    {
        "back_up",
        "beat",
        "close",
        "close_overdue_runs",
        "count_backlog",
        "count_closed_runs",
        "find_closed_runs",
        "find_gone",
        "find_lost_workers",
        "find_run_ids",
        "list_workers",
        "owned_runs",
        "prune_runs",
        "read_health",
        "read_pauses",
        "read_meta",
        "recent_workflows",
        "register_worker",
        "rescue_dead_workers",
        "resume",
        "resume_run",
        "retire_worker",
        "schema_version",
        "subscribe",
        "take_role",
        "try_suspect",
        "unpark_run",
        "url",
        "wake_due_runs",
        "wake_run",
    }
)
_KNOWN_MAX: Final = 100_000  # runs whose names are kept by number; forgetting one costs a read
_UNSEALED: Final = "it is not encoded, and the codec at hand takes only what it has encoded itself"


class SealedStore:
    """Implements the contract over another store; see the module. Made by `sealed`."""

    def __init__(self, store: Store, codec: PayloadCodec) -> None:
        self._store = store
        self._codec = codec
        self._known: dict[tuple[int, int], tuple[str, Origin]] = {}  # (pk, generation) -> run id, origin
        self._names: dict[int, str] = {}  # pk -> run id

    def __getattr__(self, name: str) -> Any:
        if name not in PLAIN_VERBS:
            raise AttributeError(f"{name!r} is not among the verbs that carry no payload")
        return getattr(self._store, name)

    # ─ starting ──

    async def start_runs(
        self,
        requests: Sequence[StartRequest],
        now_us: int,
        *,
        same_input: Callable[[StartRequest, bytes], bool] | None = None,
    ) -> list[StartOutcome]:
        sealed = [msgspec.structs.replace(one, input=self._seal(one.input, _input(one))) for one in requests]
        outcomes = await self._store.start_runs(sealed, now_us, same_input=same_input or self._same_input)
        return [
            msgspec.structs.replace(
                one, run=self._record(one.run), claim=None if one.claim is None else self._claim(one.claim)
            )
            for one in outcomes
        ]

    def _same_input(self, request: StartRequest, stored: bytes) -> bool:
        """Whether a run was started with what is asked for now: equal inputs are sealed to different bytes."""
        there, here = self._open(stored, _input(request)), self._open(request.input, _input(request))
        if (fault := sealed_fault(there)) is not None:
            raise UndecodableError(
                f"run {request.run_id!r} exists and its input cannot be compared: {fault}",
                run_id=request.run_id,
            )
        return there == here

    # ─ claiming and driving ──

    async def claim_ready_runs(self, worker_id: int, **chosen: Any) -> list[Claim]:
        return [self._claim(one) for one in await self._store.claim_ready_runs(worker_id, **chosen)]

    async def claim_parked_runs(self, worker_id: int, **chosen: Any) -> list[Claim]:
        return [self._claim(one) for one in await self._store.claim_parked_runs(worker_id, **chosen)]

    async def read_claims(self, worker_id: int, pks: Sequence[int]) -> list[Claim]:
        return [self._claim(one) for one in await self._store.read_claims(worker_id, pks)]

    async def commit_turns(self, worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict]:
        await self._learn(
            worker_id, {one.pk for one in commits if (one.pk, one.generation) not in self._known}
        )
        ours = [one for one in commits if (one.pk, one.generation) in self._known]
        verdicts = iter(
            await self._store.commit_turns(worker_id, [self._commit(one) for one in ours], now_us)
        )
        # The others are no longer this worker's: `_learn` has just asked.
        return [next(verdicts) if (one.pk, one.generation) in self._known else "lost" for one in commits]

    def commit_turns_now(
        self, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict] | None:
        if any((one.pk, one.generation) not in self._known for one in commits):
            return None
        return self._store.commit_turns_now(worker_id, [self._commit(one) for one in commits], now_us)

    async def read_inbox(self, worker_id: int) -> list[Message]:
        messages = await self._store.read_inbox(worker_id)
        await self._learn(worker_id, {one.run_pk for one in messages if one.run_pk not in self._names})
        return [self._message(one, self._names[one.run_pk]) for one in messages if one.run_pk in self._names]

    async def _learn(self, worker_id: int, pks: set[int]) -> None:
        """Read the names of runs this worker drives; those it no longer owns stay unknown."""
        for claim in await self._store.read_claims(worker_id, sorted(pks)) if pks else ():
            self._note(claim)

    # ─ messages and control ──

    async def send_message(
        self, run_id: str, *, kind: str, name: str, data: bytes, message_id: str | None, **more: Any
    ) -> SendOutcome:
        place = _message(run_id, kind, name, message_id)
        return await self._store.send_message(
            run_id, kind=kind, name=name, data=self._seal(data, place), message_id=message_id, **more
        )

    async def answer_activity(self, answer: ActivityAnswer, now_us: int) -> AnswerVerdict:
        if answer.kind == "heartbeat":
            run = await self._store.get_run(
                answer.run_id
            )  # if it is in another generation, nothing is written
            origin = (run.epoch, answer.generation)
            data = self._seal(answer.data, _details(answer.run_id, answer.op), origin)
        else:
            message_id = answer_id(answer.generation, answer.op, answer.attempt)
            data = self._seal(answer.data, _message(answer.run_id, "activity", answer.kind, message_id))
        return await self._store.answer_activity(msgspec.structs.replace(answer, data=data), now_us)

    async def expire_attempt(self, worker_id: int, *, attempt: AttemptRow, **more: Any) -> Expiry:
        bare = msgspec.structs.replace(attempt, failure=None, details=None)  # only its numbers matter
        return await self._store.expire_attempt(worker_id, attempt=bare, **more)

    async def terminate_run(self, run_id: str, reason: str | None, now_us: int) -> None:
        await self._store.terminate_run(run_id, self._seal_reason(reason, run_id), now_us)

    async def reopen_run(self, reopen: Reopen, now_us: int) -> None:
        if (reopen.pk, reopen.generation) not in self._known:
            self._note(await self._store.get_run(reopen.run_id, reopen.generation))
        run_id, (epoch, generation) = self._known[reopen.pk, reopen.generation]
        origin = (epoch + reopen.new_epoch, generation + 1)
        sealed = msgspec.structs.replace(
            reopen,
            parts=self._parts(reopen.parts, run_id, reopen.copy_turns + 1, origin),
            redeliver=tuple(self._redelivery(one, run_id) for one in reopen.redeliver),
        )
        await self._store.reopen_run(sealed, now_us)

    async def pause_run(self, run_id: str, reason: str | None, now_us: int) -> bool:
        return await self._store.pause_run(run_id, self._seal_reason(reason, run_id), now_us)

    async def pause(self, kind: PauseKind, name: str, reason: str | None, now_us: int) -> bool:
        text = None if reason is None else seal_text(self._codec, reason, f"pause\0{kind}\0{name}")
        return await self._store.pause(kind, name, text, now_us)

    async def list_pauses(self) -> list[PauseRecord]:
        return [
            msgspec.structs.replace(one, reason=self._open_text(one.reason, f"pause\0{one.kind}\0{one.name}"))
            for one in await self._store.list_pauses()
        ]

    # ─ reading ──

    async def get_run(self, run_id: str, generation: int | None = None) -> RunRecord:
        return self._record(await self._store.get_run(run_id, generation))

    async def read_ended(self, runs: Sequence[tuple[int, int]]) -> list[RunRecord]:
        return [self._record(one) for one in await self._store.read_ended(runs)]

    async def list_runs(self, filter: RunFilter) -> list[RunRecord]:
        return [self._record(one) for one in await self._store.list_runs(filter)]

    async def read_journal(self, pk: int, generation: int) -> list[JournalRow]:
        rows = await self._store.read_journal(pk, generation)
        return self._journal(rows, *self._known.get((pk, generation), ("", (0, 0))))

    async def read_attempts(self, pk: int, generation: int) -> list[AttemptRow]:
        rows = await self._store.read_attempts(pk, generation)
        run_id, origin = self._known.get((pk, generation), ("", (0, 0)))
        return [self._open_attempt(row, run_id, origin) for row in rows]

    # ─ on the way in ──

    def _seal(self, data: bytes, place: str, origin: Origin = (0, 0)) -> bytes:
        return seal(self._codec, data, place, origin)

    def _seal_reason(self, reason: str | None, run_id: str) -> str | None:
        return None if reason is None else seal_text(self._codec, reason, _reason(run_id))

    def _commit(self, commit: TurnCommit) -> TurnCommit:
        """Return a sealed copy: a commit that fails is tried again from the original."""
        run_id, origin = self._known[commit.pk, commit.generation]
        given = {name: getattr(commit, name) for name in TurnCommit.__struct_fields__}
        return TurnCommit(
            **{
                **given,
                "parts": self._parts(commit.parts, run_id, commit.turn or 0, origin),
                "attempts": [self._seal_attempt(row, run_id, origin) for row in commit.attempts],
                "after": commit.after
                if type(commit.after) is Stay
                else self._after(commit.after, run_id, origin),
            }
        )

    def _parts(self, parts: Sequence[bytes], run_id: str, turn: int, origin: Origin) -> tuple[bytes, ...]:
        return tuple(
            self._seal(data, _journal(run_id, turn, part), origin) for part, data in enumerate(parts, 1)
        )

    def _after(self, after: After, run_id: str, origin: Origin) -> After:
        if isinstance(after, Close):
            return msgspec.structs.replace(
                after,
                result=self._seal_if(after.result, f"result\0{run_id}", origin),
                failure=self._seal_if(after.failure, f"failure\0{run_id}", origin),
                reason=self._seal_reason(after.reason, run_id),
            )
        if isinstance(after, NextGeneration):
            epoch, generation = origin
            parts = self._parts(after.parts, run_id, after.copy_turns + 1, (epoch, generation + 1))
            return msgspec.structs.replace(
                after,
                failure=self._seal(after.failure, f"failure\0{run_id}", origin),
                parts=parts,
                redeliver=tuple(self._redelivery(one, run_id) for one in after.redeliver),
            )
        if isinstance(after, Park):
            return msgspec.structs.replace(
                after,
                reason=after.reason if after.is_clear else self._seal_reason(after.reason, run_id),
                failure=self._seal_if(after.failure, f"failure\0{run_id}", origin),
            )
        return after

    def _redelivery(self, message: Redelivery, run_id: str) -> Redelivery:
        place = _message(run_id, message.kind, message.name, message.message_id)
        return msgspec.structs.replace(message, data=self._seal(message.data, place))

    def _seal_attempt(self, row: AttemptRow, run_id: str, origin: Origin) -> AttemptRow:
        if row.failure is None and row.details is None:
            return row
        return msgspec.structs.replace(
            row,
            failure=self._seal_if(row.failure, f"attempt failure\0{run_id}\0{row.op}", origin),
            details=self._seal_if(row.details, _details(run_id, row.op), origin),
        )

    def _seal_if(self, data: bytes | None, place: str, origin: Origin) -> bytes | None:
        return None if data is None else self._seal(data, place, origin)

    # ─ on the way out ──

    def _note(self, run: RunRecord | Claim) -> Origin:
        origin = (run.epoch, run.generation)
        if len(self._known) >= _KNOWN_MAX:
            for pk, generation in list(self._known)[: _KNOWN_MAX // 2]:
                del self._known[pk, generation]
                self._names.pop(pk, None)
        self._known[run.pk, run.generation] = run.run_id, origin
        self._names[run.pk] = run.run_id
        return origin

    def _open(self, data: bytes, place: str, *allowed: Origin) -> bytes:
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

    def _open_if(self, data: bytes | None, place: str, origin: Origin) -> bytes | None:
        return None if data is None else self._open(data, place, origin)

    def _open_reason(self, text: str | None, run_id: str) -> str | None:
        return self._open_text(text, _reason(run_id))

    def _open_text(self, text: str | None, place: str) -> str | None:
        data = None if text is None else envelope_in(text)
        if data is None:
            return text
        opened = self._open(data, place)
        return shown_text(text) if sealed_fault(opened) is not None else opened.decode("utf-8", "replace")

    def _record(self, run: RunRecord) -> RunRecord:
        origin = self._note(run)
        return msgspec.structs.replace(
            run,
            input=self._open(run.input, _input(run)),
            result=self._open_if(run.result, f"result\0{run.run_id}", origin),
            failure=self._open_failure(run, origin),
            reason=self._open_reason(run.reason, run.run_id),
            pause_reason=self._open_reason(run.pause_reason, run.run_id),
        )

    def _open_failure(self, run: RunRecord, origin: Origin) -> bytes | None:
        """Of a parked run it says more of what the reason says, and may be the store's own word, or in another key."""
        if run.status is not RunStatus.PARKED or run.failure is None:
            return self._open_if(run.failure, f"failure\0{run.run_id}", origin)
        if not is_sealed(run.failure):
            return run.failure
        opened = self._open(run.failure, f"failure\0{run.run_id}", origin)
        return None if sealed_fault(opened) is not None else opened

    def _claim(self, claim: Claim) -> Claim:
        origin = self._note(claim)
        return msgspec.structs.replace(
            claim,
            input=self._open(claim.input, _input(claim)),
            journal=self._journal(claim.journal, claim.run_id, origin),
            inbox=[self._message(one, claim.run_id) for one in claim.inbox],
            attempts=[self._open_attempt(row, claim.run_id, origin) for row in claim.attempts],
        )

    def _journal(self, rows: Iterable[JournalRow], run_id: str, origin: Origin) -> list[JournalRow]:
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
        return self._open(row.data, _journal(run_id, row.turn, row.part)), envelope.origin

    def _plain_row(self, data: bytes, run_id: str) -> bytes:
        """Return a row that is not sealed: of a time before the codec, or the store's own end of a run."""
        try:
            turn = decode_turn(data)
        except UndecodableError:
            return data if self._codec.accepts_plain else stuck(_UNSEALED)
        if turn.worker or not all(isinstance(entry, Terminated | TimedOut) for entry in turn.entries):
            return data if self._codec.accepts_plain else stuck(_UNSEALED)
        entries = [
            msgspec.structs.replace(entry, reason=self._open_reason(entry.reason, run_id))
            if isinstance(entry, Terminated)
            else entry
            for entry in turn.entries
        ]
        return msgspec.json.encode(msgspec.structs.replace(turn, entries=entries))

    def _message(self, message: Message, run_id: str) -> Message:
        if message.kind == "cancel" and message.data == b"null":
            return message  # no reason given: anybody may say so
        place = _message(run_id, message.kind, message.name, message.message_id)
        return msgspec.structs.replace(message, data=self._open(message.data, place))

    def _open_attempt(self, row: AttemptRow, run_id: str, origin: Origin) -> AttemptRow:
        if row.failure is None and row.details is None:
            return row
        return msgspec.structs.replace(
            row,
            failure=self._open_if(row.failure, f"attempt failure\0{run_id}\0{row.op}", origin),
            details=self._open_if(row.details, _details(run_id, row.op), origin),
        )


def sealed(store: Store, codec: PayloadCodec | None) -> Store:
    """Return the store behind the codec; without a codec, the store itself."""
    if codec is None:
        return store
    behind: Any = SealedStore(store, codec)
    guarded: Store = behind
    return guarded


# ─ places: NUL occurs in no id and no name ──


def _input(run: StartRequest | RunRecord | Claim) -> str:
    return f"input\0{run.run_id}\0{run.workflow}"


def _journal(run_id: str, turn: int, part: int) -> str:
    return f"journal\0{run_id}\0{turn}\0{part}"


def _message(run_id: str, kind: str, name: str, message_id: str | None) -> str:
    return f"message\0{run_id}\0{kind}\0{name}\0{message_id or ''}"


def _details(run_id: str, op: int) -> str:
    return f"attempt details\0{run_id}\0{op}"


def _reason(run_id: str) -> str:
    return f"reason\0{run_id}"
