"""The group commit: many runs' turns in one transaction, each fenced, one bad run costing that run only.

The first pass handles what changes a run's status, one fenced UPDATE each: its row count is the proof that the run is
still this worker's. What stays goes to the journal in one `executemany` whose INSERT carries the fence itself; if the
row count falls short, a look at each run tells whose. Only a journal-key conflict undoes the batch: then it is
done again item by item, each under a savepoint.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final, assert_never

from durable.errors import InternalError
from durable.payloads.codec import size_note
from durable.store.codes import CODES
from durable.store.records import (
    AS_NEW,
    Close,
    HandBack,
    NextGeneration,
    Park,
    Stay,
    TurnCommit,
    Verdict,
    Wait,
)
from durable.store.refusals import lease_lost
from durable.store.sqlite.inbox import put_message
from durable.store.sqlite.large import LARGE_BYTES, placed
from durable.store.sqlite.scheduling import schedule_tasks
from durable.store.statements import Statements

FIRST_PART: Final = 1

_JournalRow = tuple[int, int, int, int, bytes | None, int | None]


def require_alive(db: sqlite3.Connection, sql: Statements, worker: int) -> None:
    """Raise `LeaseLostError` unless the incarnation is alive."""
    if db.execute(sql["worker_is_alive"], (worker,)).fetchone() is None:
        raise lease_lost(worker)


class TurnWriter:
    """Writes batches of turns. Holds the hot statements only; used inside a transaction."""

    def __init__(self, sql: Statements) -> None:
        self._sql = sql
        self._alive = sql["worker_is_alive"]
        self._insert_if_owned = sql["insert_turn_if_owned"]
        self._insert = sql["insert_turn"]
        self._is_owned = sql["is_owned"]

    def write(
        self, db: sqlite3.Connection, worker: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict]:
        """Write the batch; raise `LeaseLostError` if the incarnation is dead."""
        if db.execute(self._alive, (worker,)).fetchone() is None:
            raise lease_lost(worker)
        if len(commits) == 1 or len({commit.pk for commit in commits}) == len(commits):
            try:
                return self._write_together(db, worker, commits, now_us)
            except sqlite3.IntegrityError:
                db.execute("ROLLBACK")
                db.execute("BEGIN IMMEDIATE")
                if db.execute(self._alive, (worker,)).fetchone() is None:
                    raise lease_lost(worker) from None
        return [self._write_alone(db, worker, commit, now_us) for commit in commits]

    def _write_together(
        self, db: sqlite3.Connection, worker: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict]:
        """Write items of different runs. Raises IntegrityError on a journal-key conflict, with a part written."""
        verdicts: list[Verdict] = ["committed"] * len(commits)
        rows: list[tuple[int, int, int, bytes, int | None, int, int, int]] = []  # fenced by the insert itself
        staying: list[int] = []  # positions of the items behind `rows`
        proven: list[_JournalRow] = []  # fenced already
        marked: list[int] = []  # positions of items that do more than add a journal row
        closing: list[int] = []  # positions of the items that end their run
        for position, commit in enumerate(commits):
            if commit.after.__class__ is Close:
                closing.append(position)
                continue
            if commit.after.__class__ is not Stay:
                verdict = self._change_hands(db, worker, commit, now_us)
                verdicts[position] = verdict
                if verdict == "committed":
                    marked.append(position)
                    if commit.turn is not None and commit.after.__class__ is not NextGeneration:
                        proven.extend(self._journal_rows(db, commit))
                    continue
                if verdict != "stayed":
                    continue
            if commit.turn is None:
                if db.execute(self._is_owned, (commit.pk, worker, commit.claim_no)).fetchone() is None:
                    verdicts[position] = "lost"
                    continue
            else:
                staying.append(position)
                part = FIRST_PART
                for data in commit.parts:
                    payload = None
                    if len(data) > LARGE_BYTES:
                        data, payload = self._place_if_owned(db, worker, commit, data)
                    rows.append(
                        (
                            commit.generation,
                            commit.turn,
                            part,
                            data,
                            payload,
                            commit.pk,
                            worker,
                            commit.claim_no,
                        )
                    )
                    part += 1
            if (
                commit.consumed
                or commit.attempts
                or commit.attempts_done
                or commit.tasks
                or commit.tasks_closed
            ):
                marked.append(position)
        if rows and db.executemany(self._insert_if_owned, rows).rowcount != len(rows):
            for position in staying:
                commit = commits[position]
                if db.execute(self._is_owned, (commit.pk, worker, commit.claim_no)).fetchone() is None:
                    verdicts[position] = "lost"
        if closing:
            self._close_all(db, worker, commits, closing, now_us, verdicts)
            for position in closing:
                if verdicts[position] == "committed":
                    commit = commits[position]
                    marked.append(position)
                    if commit.turn is not None:
                        proven.extend(self._journal_rows(db, commit))
        if proven:
            db.executemany(self._insert, proven)
        if marked:
            self._write_marks(
                db, [commits[position] for position in marked if verdicts[position] != "lost"], now_us
            )
        return verdicts

    def _place_if_owned(
        self, db: sqlite3.Connection, worker: int, commit: TurnCommit, data: bytes
    ) -> tuple[bytes, int | None]:
        """Put a large part into a row of its own. If the run is lost, nothing is written, here as by the insert to come."""
        fence = (commit.pk, worker, commit.claim_no)
        inserted = db.execute(self._sql["insert_payload_if_owned"], (data, *fence))
        return (size_note(len(data)), inserted.lastrowid) if inserted.rowcount else (data, None)

    def _journal_rows(self, db: sqlite3.Connection, commit: TurnCommit) -> list[_JournalRow]:
        if commit.turn is None:
            raise InternalError("a commit without a turn has no journal rows")
        return self._rows_of_parts(db, commit.pk, commit.generation, commit.turn, commit.parts)

    def _rows_of_parts(
        self, db: sqlite3.Connection, run: int, generation: int, turn: int, parts: Sequence[bytes]
    ) -> list[_JournalRow]:
        return [
            (run, generation, turn, part, *placed(db, self._sql, run, data))
            for part, data in enumerate(parts, FIRST_PART)
        ]

    def _write_marks(self, db: sqlite3.Connection, commits: Sequence[TurnCommit], now_us: int) -> None:
        """Consume messages, write attempts and tasks of items whose fence is proven. A closed generation's attempts are gone already."""
        sql = self._sql
        for commit in commits:
            if commit.tasks or commit.tasks_closed:
                self._write_tasks(db, commit, now_us)
        staying = [commit for commit in commits if commit.after.__class__ is not NextGeneration]
        db.executemany(
            sql["consume_message"], [(msg, commit.pk) for commit in staying for msg in commit.consumed]
        )
        for commit in staying:
            for answer in commit.answers:
                known = {"run": commit.pk, "message_id": answer.message_id}
                if (
                    db.execute(sql["find_message_id"], known).fetchone() is None
                ):  # else somebody outside was first
                    put_message(db, sql, commit.pk, answer, now_us)
        open_ones = [commit for commit in staying if commit.after.__class__ is not Close]
        db.executemany(
            sql["upsert_attempt"],
            [
                (
                    commit.pk,
                    commit.generation,
                    row.op,
                    row.attempt,
                    row.state,
                    row.due_at_us,
                    row.failure,
                    row.details,
                )
                for commit in open_ones
                for row in commit.attempts
            ],
        )
        left_open = [
            (row.completion, row.limit_at_us, row.heartbeat_us, commit.pk, commit.generation, row.op)
            for commit in open_ones
            for row in commit.attempts
            if row.completion
        ]
        if left_open:
            db.executemany(sql["leave_attempt_open"], left_open)
        db.executemany(
            sql["delete_attempt"],
            [(commit.pk, commit.generation, op) for commit in open_ones for op in commit.attempts_done],
        )

    def _write_tasks(self, db: sqlite3.Connection, commit: TurnCommit, now_us: int) -> None:
        ends = commit.after.__class__ in (Close, NextGeneration)
        schedule_tasks(
            db,
            self._sql,
            commit.pk,
            commit.generation,
            tasks=() if ends else commit.tasks,
            closed=commit.tasks_closed,
            now_us=now_us,
        )

    def _change_hands(self, db: sqlite3.Connection, worker: int, commit: TurnCommit, now_us: int) -> Verdict:
        """Do what follows the turn on the run row, if the fence and the message count allow."""
        sql, after = self._sql, commit.after
        fence = {
            "run": commit.pk,
            "worker": worker,
            "claim_no": commit.claim_no,
            "turn": commit.turn or 0,
        }
        match after:
            case Stay():
                raise InternalError("a run that stays does not change hands")
            case Wait():
                wait = {**fence, "seen": commit.seen, "due_at_us": after.due_at_us}
                # If nothing changed, the run stays, or is lost: the fenced insert will tell.
                return "committed" if db.execute(sql["wait_run"], wait).rowcount else "stayed"
            case HandBack():
                freed = db.execute(sql["hand_back_run"], {**fence, "now_us": now_us})
                return "committed" if freed.rowcount else "lost"
            case Park():
                if not db.execute(
                    sql["park_run"], {**fence, "reason": after.reason, "code": after.code}
                ).rowcount:
                    return "lost"
                db.execute(sql["write_outcome"], self._outcome_row(db, commit, None, after.failure))
                return "committed"
            case Close():
                raise InternalError("runs are closed together")
            case NextGeneration():
                return self._open_next(db, worker, commit, after, now_us)
            case _:
                assert_never(after)

    def _close_all(
        self,
        db: sqlite3.Connection,
        worker: int,
        commits: Sequence[TurnCommit],
        closing: Sequence[int],
        now_us: int,
        verdicts: list[Verdict],
    ) -> None:
        """Close runs, each if its fence and its message count allow; write the verdicts. One statement for all, if none is refused."""
        sql = self._sql
        rows = [_closing_row(commits[position], worker, now_us) for position in closing]
        if len(rows) > 1:
            db.execute("SAVEPOINT closing")
            if db.executemany(sql["close_run"], rows).rowcount != len(rows):
                db.execute("ROLLBACK TO closing")
                self._close_each(db, worker, commits, closing, rows, verdicts)
            db.execute("RELEASE closing")
        else:
            self._close_each(db, worker, commits, closing, rows, verdicts)
        ends: list[tuple[TurnCommit, Close]] = []
        for position in closing:
            commit = commits[position]
            if verdicts[position] == "committed" and isinstance(commit.after, Close):
                ends.append((commit, commit.after))
        db.executemany(
            sql["write_outcome"],
            [self._outcome_row(db, commit, after.result, after.failure) for commit, after in ends],
        )
        db.executemany(sql["delete_attempts"], [(commit.pk, commit.generation) for commit, _ in ends])

    def _close_each(
        self,
        db: sqlite3.Connection,
        worker: int,
        commits: Sequence[TurnCommit],
        closing: Sequence[int],
        rows: Sequence[dict[str, object]],
        verdicts: list[Verdict],
    ) -> None:
        for position, row in zip(closing, rows, strict=True):
            if not db.execute(self._sql["close_run"], row).rowcount:
                verdicts[position] = self._refused(db, worker, commits[position])

    def _write_outcome(
        self, db: sqlite3.Connection, commit: TurnCommit, result: bytes | None, failure: bytes | None
    ) -> None:
        """Write how a generation ended; its attempts end with it."""
        db.execute(self._sql["write_outcome"], self._outcome_row(db, commit, result, failure))
        db.execute(self._sql["delete_attempts"], (commit.pk, commit.generation))

    def _outcome_row(
        self, db: sqlite3.Connection, commit: TurnCommit, result: bytes | None, failure: bytes | None
    ) -> dict[str, object]:
        shown_result, result_payload = placed(db, self._sql, commit.pk, result)
        shown_failure, failure_payload = placed(db, self._sql, commit.pk, failure)
        return {
            "run": commit.pk,
            "generation": commit.generation,
            "result": shown_result,
            "result_payload": result_payload,
            "failure": shown_failure,
            "failure_payload": failure_payload,
        }

    def _refused(self, db: sqlite3.Connection, worker: int, commit: TurnCommit) -> Verdict:
        """Say why a close changed nothing."""
        owned = db.execute(self._is_owned, (commit.pk, worker, commit.claim_no)).fetchone()
        return "lost" if owned is None else "messages"

    def _open_next(
        self, db: sqlite3.Connection, worker: int, commit: TurnCommit, after: NextGeneration, now_us: int
    ) -> Verdict:
        """Archive this generation as continued and open the next: with a prefix of its journal (P7), or as new."""
        sql = self._sql
        run, generation = commit.pk, commit.generation
        fence = {"run": run, "worker": worker, "claim_no": commit.claim_no, "seen": commit.seen}
        is_new = after.input is not None
        archived = {**fence, "now_us": now_us, "reason": AS_NEW if is_new else None}
        if not db.execute(sql["archive_continued"], archived).rowcount:
            return self._refused(db, worker, commit)
        delayed = int(after.ready_at_us > now_us)
        db.execute(
            sql["next_generation"],
            {
                **fence,
                "attempt": after.attempt,
                "new_epoch": after.new_epoch,
                "ready_at_us": after.ready_at_us,
                "is_delayed": delayed,
                "now_us": now_us,
                "last_turn": after.copy_turns + bool(after.parts),
                "is_new": int(is_new),
                "idle_generations": after.idle_generations,
            },
        ).fetchall()
        if commit.turn is not None:
            db.executemany(self._insert, self._journal_rows(db, commit))
        self._write_outcome(db, commit, None, after.failure)
        if is_new:
            row = (run, generation + 1, *placed(db, sql, run, after.input))
            db.execute(sql["insert_run_payload"], row)
        else:
            db.execute(sql["copy_input"], {"run": run, "generation": generation})
        db.execute(sql["copy_turns"], {"run": run, "generation": generation, "copy_turns": after.copy_turns})
        turn = after.copy_turns + 1
        db.executemany(self._insert, self._rows_of_parts(db, run, generation + 1, turn, after.parts))
        db.executemany(sql["consume_message"], [(msg, run) for msg in commit.consumed])
        db.executemany(
            sql["insert_message"],
            [(run, m.msg, m.kind, m.name, m.data, m.message_id, now_us) for m in after.redeliver],
        )
        return "committed"

    def _write_alone(self, db: sqlite3.Connection, worker: int, commit: TurnCommit, now_us: int) -> Verdict:
        """Write one item under a savepoint; on a key conflict hand the run back, so that "lost" is true for whoever reads."""
        db.execute("SAVEPOINT item")
        try:
            (verdict,) = self._write_together(db, worker, [commit], now_us)
        except sqlite3.IntegrityError:
            db.execute("ROLLBACK TO item")
            db.execute(
                self._sql["hand_back_run"],
                {
                    "run": commit.pk,
                    "worker": worker,
                    "claim_no": commit.claim_no,
                    "now_us": now_us,
                    "turn": 0,
                },
            )
            verdict = "lost"
        db.execute("RELEASE item")
        return verdict


def _closing_row(commit: TurnCommit, worker: int, now_us: int) -> dict[str, object]:
    after = commit.after
    if not isinstance(after, Close):
        raise InternalError("only a close has a row that closes")
    return {
        "run": commit.pk,
        "worker": worker,
        "claim_no": commit.claim_no,
        "seen": commit.seen,
        "status": CODES[after.status],
        "now_us": now_us,
        "reason": after.reason,
    }
