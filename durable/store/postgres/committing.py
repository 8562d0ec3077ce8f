"""The group commit: many runs' turns in one statement, each fenced, one bad run costing that run only.

What makes a batch atomic: it is one statement. What a fenced-out incarnation gets: its fence row is gone, no part of the statement
finds anything to do, `LeaseLostError`. What a worker gets for a run it lost: the run's row names another owner or
claim number, "lost", nothing of that item. What a repeated turn gets: the key of the journal refuses it; the statement is
undone as a whole, then every item is written alone, and the one that is refused is handed back if it still is ours (P8, P17).

Next generations, tasks of activities and errands for children take statements of their own; a batch with some is a transaction
around the same statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from durable.errors import InternalError
from durable.store.codes import CODES
from durable.store.postgres.children import do_errands
from durable.store.postgres.connection import Database, FenceSlots, Session, columns
from durable.store.postgres.faults import KeyTaken
from durable.store.postgres.inbox import put_message
from durable.store.postgres.tasks import schedule_tasks
from durable.store.records import (
    AS_NEW,
    AttemptRow,
    Close,
    HandBack,
    NextGeneration,
    Park,
    Redelivery,
    Stay,
    TurnCommit,
    Verdict,
    Wait,
)
from durable.store.refusals import lease_lost

FIRST_PART: Final = 1
_VERDICTS: Final[tuple[Verdict, ...]] = ("committed", "stayed", "messages", "lost")
_MARK_COLUMNS: Final = (
    "pks", "generations", "ops", "attempts", "states", "due_ats_us", "failures", "details", "completions",
    "limit_ats_us", "heartbeats_us",
)  # fmt: skip
_AFTERS: Final = {Stay: 0, Wait: 1, HandBack: 2, Park: 3, Close: 4}


class TurnWriter:
    """Writes batches of turns. Several batches may be under way at once, up to the number of fences."""

    def __init__(self, database: Database, slots: FenceSlots) -> None:
        self._database = database
        self._slots = slots

    async def write(self, worker: int, commits: Sequence[TurnCommit], now_us: int | None) -> list[Verdict]:
        """Write the batch; raise `LeaseLostError` if the incarnation is dead."""
        if not commits:
            return []
        if len(commits) == 1 or len({commit.pk for commit in commits}) == len(commits):
            try:
                return await self._write_together(worker, commits, now_us)
            except KeyTaken:
                pass  # some item's turn stands already: find out whose
        return [await self._write_alone(worker, commit, now_us) for commit in commits]

    async def _write_together(
        self, worker: int, commits: Sequence[TurnCommit], now_us: int | None
    ) -> list[Verdict]:
        """Write items of different runs. Raises KeyTaken, with nothing written, on a journal-key conflict."""
        if all(map(_only_adds_a_turn, commits)):
            return await self._write_staying(worker, commits)
        moving_on = [commit for commit in commits if commit.after.__class__ is NextGeneration]
        others = [commit for commit in commits if commit.after.__class__ is not NextGeneration]
        has_tasks = any(commit.tasks or commit.tasks_closed for commit in commits)
        async with self._slots.take() as slot:
            has_errands = any(commit.errands for commit in commits)
            has_answers = any(commit.answers for commit in commits)
            if not (moving_on or has_tasks or has_errands or has_answers):
                parameters = _batch(worker, slot, others, now_us)
                verdicts = _verdicts(worker, (await self._database.fetch("commit_turns", **parameters))[0])
            else:
                verdicts = await self._database.run(
                    lambda db: _write_in_steps(db, worker, slot, others, moving_on, now_us)
                )
        return [verdicts[commit.pk] for commit in commits]

    async def _write_staying(self, worker: int, commits: Sequence[TurnCommit]) -> list[Verdict]:
        pks, claim_nos, generations, turns, parts, datas = [], [], [], [], [], []
        for commit in commits:
            for part, data in enumerate(commit.parts, FIRST_PART):
                pks.append(commit.pk)
                claim_nos.append(commit.claim_no)
                generations.append(commit.generation)
                turns.append(commit.turn)
                parts.append(part)
                datas.append(data)
        async with self._slots.take() as slot:
            ((alive, committed),) = await self._database.fetch(
                "commit_staying_turns",
                worker=worker,
                slot=slot,
                pks=pks,
                claim_nos=claim_nos,
                generations=generations,
                turns=turns,
                parts=parts,
                datas=datas,
            )
        if not alive:
            raise lease_lost(worker)
        written = set(committed)
        return ["committed" if commit.pk in written else "lost" for commit in commits]

    async def _write_alone(self, worker: int, commit: TurnCommit, now_us: int | None) -> Verdict:
        """Write one item; on a key conflict hand the run back, so that "lost" is true for whoever reads."""
        try:
            return (await self._write_together(worker, [commit], now_us))[0]
        except KeyTaken:
            await self._database.fetch(
                "hand_back_run", run=commit.pk, worker=worker, claim_no=commit.claim_no, now_us=now_us
            )
            return "lost"


def _only_adds_a_turn(commit: TurnCommit) -> bool:
    return bool(
        commit.after.__class__ is Stay
        and commit.turn is not None
        and commit.parts
        and not (commit.consumed or commit.attempts or commit.attempts_done or commit.errands)
        and not (commit.tasks or commit.tasks_closed)
    )


def _verdicts(worker: int, row: Sequence[Any]) -> dict[int, Verdict]:
    alive, pks, verdicts = row
    if not alive:
        raise lease_lost(worker)
    return {pk: _VERDICTS[verdict] for pk, verdict in zip(pks, verdicts, strict=True)}


def _batch(worker: int, slot: int, commits: Sequence[TurnCommit], now_us: int | None) -> dict[str, object]:
    """Return the parameters of `commit_turns`."""
    pks, generations, claim_nos, afters, seens, due_ats_us, statuses, reasons, codes, turns = columns(
        [_item(commit) for commit in commits], 10
    )
    lines = columns([line for commit in commits for line in journal_rows(commit)], 5)
    consumed = columns([(commit.pk, one) for commit in commits for one in commit.consumed], 2)
    open_ones = [commit for commit in commits if commit.after.__class__ is not Close]
    marks = columns([mark for commit in open_ones for mark in _marks(commit)], 11)
    done = columns([(c.pk, c.generation, op) for c in open_ones for op in c.attempts_done], 3)
    outcomes = columns([_outcome(c.pk, c.after) for c in commits if isinstance(c.after, Close | Park)], 3)
    return {
        "worker": worker,
        "slot": slot,
        "now_us": now_us,
        "pks": pks,
        "generations": generations,
        "claim_nos": claim_nos,
        "afters": afters,
        "seens": seens,
        "due_ats_us": due_ats_us,
        "statuses": statuses,
        "reasons": reasons,
        "codes": codes,
        "turns": turns,
        "moving": [pk for pk, after in zip(pks, afters, strict=True) if after],
        "marking": [
            commit.pk for commit in commits if commit.turn is None and commit.after.__class__ is Stay
        ],
        **_named("line", ("pks", "generations", "turns", "parts", "datas"), lines),
        **_named("consumed", ("pks", "ids"), consumed),
        **_named("mark", _MARK_COLUMNS, marks),
        **_named("done", ("pks", "generations", "ops"), done),
        **_named("outcome", ("pks", "results", "failures"), outcomes),
    }


def _named(prefix: str, names: Sequence[str], values: Sequence[list[Any]]) -> dict[str, object]:
    return {f"{prefix}_{name}": column for name, column in zip(names, values, strict=True)}


def _item(commit: TurnCommit) -> tuple[Any, ...]:
    after = commit.after
    due_at_us = after.due_at_us if isinstance(after, Wait) else None
    status = CODES[after.status] if isinstance(after, Close) else None
    reason = after.reason if isinstance(after, Close | Park) else None
    code = after.code if isinstance(after, Park) else None
    kind = _AFTERS[after.__class__]
    return (
        commit.pk, commit.generation, commit.claim_no, kind, commit.seen, due_at_us, status, reason, code, commit.turn
    )  # fmt: skip


def _outcome(pk: int, after: Close | Park) -> tuple[int, bytes | None, bytes | None]:
    return pk, after.result if isinstance(after, Close) else None, after.failure


def _marks(commit: TurnCommit) -> list[tuple[Any, ...]]:
    """The attempts to be written: one row per activity, as if they had been written one after the other, and then deleted."""
    rows: dict[int, AttemptRow] = {}
    for row in commit.attempts:
        former = rows.get(row.op)
        if former is not None and row.details is None:
            row = msgspec.structs.replace(row, details=former.details)
        rows[row.op] = row
    for op in commit.attempts_done:
        rows.pop(op, None)
    return [
        (
            commit.pk, commit.generation, r.op, r.attempt, r.state, r.due_at_us, r.failure, r.details, r.completion,
            r.limit_at_us, r.heartbeat_us,
        )
        for r in rows.values()
    ]  # fmt: skip


def journal_rows(commit: TurnCommit) -> list[tuple[int, int, int, int, bytes]]:
    turn = commit.turn
    if turn is None:
        return []
    return [
        (commit.pk, commit.generation, turn, part, data) for part, data in enumerate(commit.parts, FIRST_PART)
    ]


# ─ next generations, tasks, children ──


async def _write_in_steps(
    db: Session,
    worker: int,
    slot: int,
    others: Sequence[TurnCommit],
    moving_on: Sequence[TurnCommit],
    now_us: int | None,
) -> dict[int, Verdict]:
    """Write a batch that takes several statements: generations that follow, tasks, children, answers. One transaction under one fence."""
    if not await db.fetch("hold_fence", worker=worker, slot=slot):
        raise lease_lost(worker)
    verdicts: dict[int, Verdict] = {}
    if others:
        verdicts = _verdicts(worker, await db.row("commit_turns", **_batch(worker, slot, others, now_us)))
    for commit in sorted(moving_on, key=lambda one: one.pk):
        verdicts[commit.pk] = await _open_next(db, worker, commit, now_us)
    written = [one for one in (*others, *moving_on) if verdicts[one.pk] in ("committed", "stayed")]
    await schedule_tasks(db, written, now_us)
    for commit in sorted(written, key=lambda one: one.pk):
        if commit.errands:
            await do_errands(db, commit, now_us)
        for answer in commit.answers:
            await put_message(db, answer, now_us)
    return verdicts


async def _open_next(db: Session, worker: int, commit: TurnCommit, now_us: int | None) -> Verdict:
    """Archive this generation as continued and open the next: with a prefix of its journal, or as new."""
    after = commit.after
    if not isinstance(after, NextGeneration):
        raise InternalError("this opens no next generation")
    run, generation = commit.pk, commit.generation
    msg_seq = await db.value("hold_run", run=run, worker=worker, claim_no=commit.claim_no)
    if msg_seq is None:
        owned = await db.value("is_owned", run=run, worker=worker, claim_no=commit.claim_no)
        return "messages" if owned else "lost"
    if msg_seq != commit.seen:
        return "messages"
    is_new = after.input is not None
    await db.fetch("archive_continued", run=run, now_us=now_us, reason=AS_NEW if is_new else None)
    await db.fetch(
        "next_generation",
        run=run,
        attempt=after.attempt,
        new_epoch=after.new_epoch,
        ready_at_us=after.ready_at_us,
        now_us=now_us,
        last_turn=after.copy_turns + bool(after.parts),
        is_new=is_new,
        idle_generations=after.idle_generations,
    )
    if commit.turn is not None:
        await db.fetch(
            "insert_turn", run=run, generation=generation, turn=commit.turn, parts=list(commit.parts)
        )
    await db.fetch("write_outcome", run=run, generation=generation, result=None, failure=after.failure)
    if is_new:
        await db.fetch("insert_next_input", run=run, generation=generation + 1, input=after.input)
    else:
        await db.fetch("copy_input", run=run, generation=generation)
    await db.fetch("copy_turns", run=run, generation=generation, copy_turns=after.copy_turns)
    await db.fetch(
        "insert_turn", run=run, generation=generation + 1, turn=after.copy_turns + 1, parts=list(after.parts)
    )
    await db.fetch("consume_messages", run=run, ids=list(commit.consumed))
    await redeliver(db, run, after.redeliver, now_us)
    return "committed"


async def redeliver(db: Session, run: int, messages: Sequence[Redelivery], now_us: int | None) -> None:
    """Put messages back into a run's inbox under their old numbers."""
    msgs, kinds, names, datas, ids = columns(
        [(m.msg, m.kind, m.name, m.data, m.message_id) for m in messages], 5
    )
    await db.fetch(
        "redeliver_messages", run=run, msgs=msgs, kinds=kinds, names=names, datas=datas, message_ids=ids, now_us=now_us
    )  # fmt: skip
