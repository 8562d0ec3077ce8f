"""A store behind a codec: whatever bytes cross the contract are sealed on their way in and opened on their way out.

It stands before any other store, and only if there is a codec: without one it does not exist, and costs nothing. How each
record is sealed, and for which place, is said in `seals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from durable.payloads.codec import PayloadCodec
from durable.store.contract import Store
from durable.store.records import (
    ActivityAnswer,
    AnswerVerdict,
    AttemptRow,
    CaredTasks,
    Claim,
    CountBy,
    Expiry,
    HeldTask,
    JournalRow,
    Message,
    Outgoing,
    PauseKind,
    PauseRecord,
    Reopen,
    RunFilter,
    RunRecord,
    SameInput,
    SendOutcome,
    StartOutcome,
    StartRequest,
    Task,
    TaskBeat,
    TaskEnd,
    TaskVerdict,
    TurnCommit,
    Verdict,
    answer_id,
)
from durable.store.seals import (
    Seals,
    details_place,
    input_place,
    message_place,
    origin_of,
    pause_place,
    row_place,
)

# Verbs that carry no payload: handed through. A verb that is neither here nor below does not exist, on purpose.
PLAIN_VERBS: Final = frozenset(
    {
        "back_up",
        "beat",
        "close",
        "close_overdue_runs",
        "commit_seconds",
        "commits_at_once",
        "has_backlog",
        "count_closed_runs",
        "find_closed_runs",
        "find_gone",
        "find_lost_workers",
        "find_run_ids",
        "list_workers",
        "note_code",
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
        "retry_now",
        "subscribe",
        "take_role",
        "try_suspect",
        "unpark_run",
        "url",
        "wake_due_runs",
        "wake_run",
    }
)


class SealedStore:
    """Implements the contract over another store; see the module. Made by `sealed`."""

    def __init__(self, store: Store, codec: PayloadCodec) -> None:
        self._store = store
        self._seals = Seals(codec)

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
        same_input: SameInput | None = None,
    ) -> list[StartOutcome]:
        sealed = [
            msgspec.structs.replace(one, input=self._seals.seal(one.input, input_place(one)))
            for one in requests
        ]
        outcomes = await self._store.start_runs(
            sealed, now_us, same_input=same_input or self._seals.same_input
        )
        return [
            msgspec.structs.replace(
                one,
                run=self._seals.record(one.run),
                claim=None if one.claim is None else self._seals.claim(one.claim),
            )
            for one in outcomes
        ]

    # ─ claiming and driving ──

    async def claim_ready_runs(self, worker_id: int, **chosen: Any) -> list[Claim]:
        return [self._seals.claim(one) for one in await self._store.claim_ready_runs(worker_id, **chosen)]

    async def claim_parked_runs(self, worker_id: int, **chosen: Any) -> list[Claim]:
        return [self._seals.claim(one) for one in await self._store.claim_parked_runs(worker_id, **chosen)]

    async def read_claims(self, worker_id: int, pks: Sequence[int]) -> list[Claim]:
        return [self._seals.claim(one) for one in await self._store.read_claims(worker_id, pks)]

    async def commit_turns(self, worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict]:
        await self._learn(
            worker_id, {one.pk for one in commits if (one.pk, one.generation) not in self._seals.known}
        )
        ours = [one for one in commits if (one.pk, one.generation) in self._seals.known]
        verdicts = iter(
            await self._store.commit_turns(worker_id, [self._seals.commit(one) for one in ours], now_us)
        )
        # The others are no longer this worker's: `_learn` has just asked.
        return [
            next(verdicts) if (one.pk, one.generation) in self._seals.known else "lost" for one in commits
        ]

    def commit_turns_now(
        self, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict] | None:
        if any((one.pk, one.generation) not in self._seals.known for one in commits):
            return None
        return self._store.commit_turns_now(worker_id, [self._seals.commit(one) for one in commits], now_us)

    async def read_inbox(self, worker_id: int, pks: Sequence[int] | None = None) -> list[Message]:
        messages = await self._store.read_inbox(worker_id, pks)
        await self._learn(worker_id, {one.run_pk for one in messages if one.run_pk not in self._seals.names})
        return [
            self._seals.message(one, self._seals.names[one.run_pk])
            for one in messages
            if one.run_pk in self._seals.names
        ]

    async def _learn(self, worker_id: int, pks: set[int]) -> None:
        """Read the names of runs this worker drives; those it no longer owns stay unknown."""
        for claim in await self._store.read_claims(worker_id, sorted(pks)) if pks else ():
            self._seals.note(claim)

    # ─ messages and control ──

    async def send_message(self, message: Outgoing, now_us: int) -> SendOutcome:
        return await self._store.send_message(self._seals.outgoing(message), now_us)

    async def answer_activity(self, answer: ActivityAnswer, now_us: int) -> AnswerVerdict:
        if answer.kind == "heartbeat":
            run = await self._store.get_run(
                answer.run_id
            )  # if it is in another generation, nothing is written
            origin = (run.epoch, answer.generation)
            data = self._seals.seal(answer.data, details_place(answer.run_id, answer.op), origin)
        else:
            message_id = answer_id(answer.generation, answer.op, answer.attempt)
            data = self._seals.seal(
                answer.data, message_place(answer.run_id, "activity", answer.kind, message_id)
            )
        return await self._store.answer_activity(msgspec.structs.replace(answer, data=data), now_us)

    async def expire_attempt(self, worker_id: int, *, attempt: AttemptRow, **more: Any) -> Expiry:
        bare = msgspec.structs.replace(attempt, failure=None, details=None)  # only its numbers matter
        return await self._store.expire_attempt(worker_id, attempt=bare, **more)

    # ─ activity tasks ──

    async def claim_tasks(self, worker_id: int, **chosen: Any) -> list[Task]:
        return [self._seals.task(one) for one in await self._store.claim_tasks(worker_id, **chosen)]

    async def read_held_tasks(self, worker_id: int) -> list[HeldTask]:
        return [
            msgspec.structs.replace(one, close_reason=self._seals.open_reason(one.close_reason, one.run_id))
            for one in await self._store.read_held_tasks(worker_id)
        ]

    async def beat_tasks(self, worker_id: int, beats: Sequence[TaskBeat], now_us: int) -> None:
        sealed = [
            TaskBeat(
                task=one.task,
                details=self._seals.seal_if(
                    one.details, details_place(one.task.run_id, one.task.op), origin_of(one.task)
                ),
            )
            for one in beats
        ]
        await self._store.beat_tasks(worker_id, sealed, now_us)

    async def end_tasks(self, worker_id: int, ends: Sequence[TaskEnd], now_us: int) -> list[TaskVerdict]:
        return await self._store.end_tasks(worker_id, [self._seals.end(one) for one in ends], now_us)

    async def find_stray_tasks(self, now_us: int, limit: int = 100) -> CaredTasks:
        found = await self._store.find_stray_tasks(now_us, limit)
        return CaredTasks(tasks=[self._seals.task(one) for one in found.tasks], next_at_us=found.next_at_us)

    async def settle_tasks(self, ends: Sequence[TaskEnd], now_us: int) -> list[TaskVerdict]:
        return await self._store.settle_tasks([self._seals.end(one) for one in ends], now_us)

    async def read_tasks(self, pk: int, generation: int) -> list[Task]:
        return [self._seals.task(one) for one in await self._store.read_tasks(pk, generation)]

    async def terminate_run(self, run_id: str, reason: str | None, now_us: int) -> None:
        await self._store.terminate_run(run_id, self._seals.seal_reason(reason, run_id), now_us)

    async def reopen_run(self, reopen: Reopen, now_us: int) -> None:
        if (reopen.pk, reopen.generation) not in self._seals.known:
            self._seals.note(await self._store.get_run(reopen.run_id, reopen.generation))
        run_id, (epoch, generation) = self._seals.known[reopen.pk, reopen.generation]
        origin = (epoch + reopen.new_epoch, generation + 1)
        sealed = msgspec.structs.replace(
            reopen,
            parts=self._seals.parts(reopen.parts, run_id, reopen.copy_turns + 1, origin),
            redeliver=tuple(self._seals.redelivery(one, run_id) for one in reopen.redeliver),
        )
        await self._store.reopen_run(sealed, now_us)

    async def pause_run(self, run_id: str, reason: str | None, now_us: int) -> bool:
        return await self._store.pause_run(run_id, self._seals.seal_reason(reason, run_id), now_us)

    async def pause(self, kind: PauseKind, name: str, reason: str | None, now_us: int) -> bool:
        text = self._seals.seal_text(reason, pause_place(kind, name))
        return await self._store.pause(kind, name, text, now_us)

    async def list_pauses(self) -> list[PauseRecord]:
        return [
            msgspec.structs.replace(
                one, reason=self._seals.open_text(one.reason, pause_place(one.kind, one.name))
            )
            for one in await self._store.list_pauses()
        ]

    # ─ reading ──

    async def get_run(self, run_id: str, generation: int | None = None) -> RunRecord:
        return self._seals.record(await self._store.get_run(run_id, generation))

    async def read_ended(self, runs: Sequence[tuple[int, int]]) -> list[RunRecord]:
        return [self._seals.record(one) for one in await self._store.read_ended(runs)]

    async def list_runs(self, filter: RunFilter) -> list[RunRecord]:
        return [self._seals.record(one) for one in await self._store.list_runs(filter)]

    async def count_runs(self, filter: RunFilter, by: CountBy | None) -> dict[str, int]:
        return await self._store.count_runs(filter, by)

    async def read_journal(self, pk: int, generation: int) -> list[JournalRow]:
        rows = await self._store.read_journal(pk, generation)
        return self._seals.journal(rows, *self._seals.known.get((pk, generation), ("", (0, 0))))

    async def last_turn(self, pk: int, generation: int) -> int:
        return await self._store.last_turn(pk, generation)

    async def read_journal_page(
        self, pk: int, generation: int, *, after: tuple[int, int], limit: int
    ) -> list[JournalRow]:
        rows = await self._store.read_journal_page(pk, generation, after=after, limit=limit)
        return self._seals.journal(rows, *self._seals.known.get((pk, generation), ("", (0, 0))))

    async def read_attempts(self, pk: int, generation: int) -> list[AttemptRow]:
        rows = await self._store.read_attempts(pk, generation)
        run_id, origin = self._seals.known.get((pk, generation), ("", (0, 0)))
        return [self._seals.attempt(row, run_id, origin) for row in rows]

    # ─ rows of patterns ──

    async def append_rows(
        self, table: str, key: str, *, after: int, rows: Sequence[bytes], now_us: int
    ) -> bool:
        sealed = [
            self._seals.seal(data, row_place(table, key, number))
            for number, data in enumerate(rows, after + 1)
        ]
        return await self._store.append_rows(table, key, after=after, rows=sealed, now_us=now_us)

    async def read_rows(self, table: str, key: str, *, after: int, limit: int) -> list[bytes]:
        rows = await self._store.read_rows(table, key, after=after, limit=limit)
        return [
            self._seals.open(data, row_place(table, key, number))
            for number, data in enumerate(rows, after + 1)
        ]


def sealed(store: Store, codec: PayloadCodec | None) -> Store:
    """Return the store behind the codec; without a codec, the store itself."""
    if codec is None:
        return store
    behind: Any = SealedStore(store, codec)
    guarded: Store = behind
    return guarded
