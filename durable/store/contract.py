"""What a store can do: each verb is one named transaction, and its docstring says what is atomic.

A worker never reads a clock of its own for due times: verbs take `now_us` from the `Clock` seam on SQLite and ignore it on
servers that have a clock. Every write of a worker is fenced: it names the worker incarnation and, per run, the
claim number, and both are checked inside the same transaction (protocol P8). Errors: `LeaseLostError` if the
incarnation is dead, `StoreBusyError` and `StoreError` if nothing was written for another reason.

Nobody above this line sees SQL, connections or drivers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from durable.store.records import (
    ActivityAnswer,
    AnswerVerdict,
    AttemptRow,
    CaredTasks,
    Claim,
    ClosedRuns,
    CountBy,
    DueOutcome,
    Expiry,
    FailedAttempt,
    HeldTask,
    JournalRow,
    Message,
    Outgoing,
    PauseKind,
    PauseRecord,
    Pauses,
    PruneOutcome,
    Reopen,
    Rescue,
    RunFilter,
    RunRecord,
    SameInput,
    SendOutcome,
    StartOutcome,
    StartRequest,
    StoreHealth,
    Task,
    TaskBeat,
    TaskEnd,
    TaskVerdict,
    Trial,
    TurnCommit,
    Verdict,
    WorkerInfo,
    WorkerRecord,
)


class Store(Protocol):
    """One database, opened. Coroutines unless a docstring says otherwise; call them on the loop that opened it."""

    url: str  # password masked: fit for people
    commits_at_once: (
        int  # how many calls of `commit_turns` are worth having under way, no two with the same run
    )

    @property
    def commit_seconds(self) -> float:
        """What a commit on the spot costs of late, beside its rows; infinite where there is none. Who has much to commit makes batches by it."""
        ...

    async def close(self) -> None:
        """Give back every connection and file. Idempotent."""
        ...

    # ─ workers ──

    async def register_worker(self, info: WorkerInfo) -> int:
        """Make a new incarnation, alive, and take its liveness lock; return its never-reused id."""
        ...

    def beat(self, worker_id: int) -> bool:
        """Renew: raise the beat counter. Called from the heartbeat thread, with a connection of its own.

        Return False if the worker is no longer alive in the database.
        """
        ...

    async def retire_worker(self, worker_id: int) -> None:
        """Mark the worker stopped, set whatever it still owns ready, drop its lock. One transaction. Idempotent.

        Tasks that it still performs have lost an attempt.
        """
        ...

    async def rescue_dead_workers(self, lease_seconds: float, *, observer: int | None = None) -> list[Rescue]:
        """Take over every worker found dead (P9, P10): mark it dead and set its runs ready, one transaction each.

        In the same transaction (P14): if the worker was driving a suspect alone (`try_suspect`), that run has one crash
        more (a sixteenth, if its code did not run at that moment), and with `CRASHES_MAX` it is parked as poison, with a reason,
        instead of set ready. If not, all runs it owned become suspects.

        Dead, on SQLite: its liveness lock can be had; or its beat counter did not move for a lease of this process's
        monotonic time. On a server: its last beat is a lease old by the server's clock. The lease is `lease_seconds`, or the
        worker's own if that is longer. `observer` is never taken over by itself.
        """
        ...

    async def list_workers(self, *, alive_only: bool = True) -> list[WorkerRecord]: ...

    async def find_lost_workers(self) -> list[int]:
        """Return workers that the database calls alive and whose process is gone. Changes nothing: see the rescue."""
        ...

    async def take_role(self, worker_id: int, role: str) -> bool:
        """Return whether this worker has the role now: work that one does for all. Dead workers lose theirs.

        Saves work and guards nothing: what is done in a role must be right if two do it. `LeaseLostError`.
        """
        ...

    # ─ starting ──

    async def start_runs(
        self,
        requests: Sequence[StartRequest],
        now_us: int,
        *,
        same_input: SameInput | None = None,
    ) -> list[StartOutcome]:
        """Start runs, each decided by its policies, all in one transaction.

        `same_input` says whether a stored input is the request's (None: byte for byte); it is called within the
        transaction, and what it raises undoes that.

        Raises `RunConflictError` (other input or workflow under attach/return; policy "fail") for the first offender
        and writes nothing at all then. A request id seen before returns its run unchanged. "terminate" closes
        the open run and starts the new one in the same transaction. A new run under a closed id opens the next
        generation with the next epoch.
        """
        ...

    # ─ claiming and driving ──

    async def claim_ready_runs(
        self,
        worker_id: int,
        *,
        now_us: int,
        limit: int,
        task_queue: str | None,
        definitions: Sequence[tuple[str, int]],
        pks: Sequence[int] | None = None,
    ) -> list[Claim]:
        """Take up to `limit` ready runs, oldest `ready_at` first, and read all that driving needs. One transaction.

        Only runs whose (workflow, version) is among `definitions` (P13), on `task_queue` if given, among `pks` if given.
        Nothing while the worker is paused, nothing from a queue that is.
        """
        ...

    async def claim_parked_runs(
        self,
        worker_id: int,
        *,
        limit: int,
        task_queue: str,
        codes: Sequence[tuple[str, int, str]],
    ) -> list[Claim]:
        """Take parked runs that this worker's code has not met yet, and note that it has now (P13). One transaction.

        None that is paused, by itself, its queue, or with the worker.

        `codes` are (workflow, version, fingerprint). Each fingerprint gets a run once: by this verb, by `Park.code` or by
        `Trial.code`.
        """
        ...

    async def try_suspect(self, worker_id: int, trial: Trial) -> bool:
        """Record, before it is driven, that the worker now drives this suspect alone (P14), and what came of others.

        One transaction, fenced. Return False if the suspect is no longer this worker's (or there is none): do not drive it.
        """
        ...

    async def note_code(self, worker_id: int, suspect: tuple[int, int], *, is_running: bool) -> None:
        """Note whether the code of the suspect (pk, claim_no) that is driven alone runs now: for whoever takes the worker over (P14).

        Outlives the process, not the machine. Costs no transaction where a file beside the database can tell. `StoreError`: not noted.
        """
        ...

    async def read_claims(self, worker_id: int, pks: Sequence[int]) -> list[Claim]:
        """Return what driving needs for runs this worker still owns (after a discarded turn). Others are left out.

        Each once, with its journal as it is, however often it is named.
        """
        ...

    async def commit_turns(self, worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict]:
        """Write a batch of turns in one transaction; return one verdict per commit, in order.

        All or nothing per item. The incarnation's fence is checked first (`LeaseLostError`: nothing written), then
        each run's owner and claim number; one bad run costs that run only (P17). What a written turn wants done for children
        (`TurnCommit.errands`) is done with it. "lost" after a conflict about the journal's key is made true: the run is handed
        back, and anybody may claim it anew.

        Here and wherever else a run is closed: if it is a child, its parent gets a message of kind "child"; if it is a parent, its open children are
        asked to cancel, unless they are to be left alone. In the same transaction.
        """
        ...

    def commit_turns_now(
        self, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict] | None:
        """Do what `commit_turns` does on the spot, or nothing and return None. Not a coroutine; raises as that does.

        For a store whose commit is a matter of microseconds, if nobody is in its way: no turn of the loop is spent. A
        store behind a network always returns None.
        """
        ...

    async def read_inbox(self, worker_id: int, pks: Sequence[int] | None = None) -> list[Message]:
        """Return the unconsumed messages of the runs this worker owns, or of these among them, in order of (run, msg)."""
        ...

    async def owned_runs(self, worker_id: int) -> dict[int, int]:
        """Return pk -> claim_no of every run this worker owns; what is missing was taken away."""
        ...

    # ─ time ──

    async def wake_due_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        """Set waiting runs whose timer is due ready.

        `next_due_us` also knows the starts of delayed runs, which become claimable by themselves.
        """
        ...

    async def close_overdue_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        """Close open runs whose deadline passed as timed_out, each with its journal row, fencing out their owners.

        `woken` counts them, `next_due_us` is the next deadline.
        """
        ...

    # ─ messages and control ──

    async def send_message(self, message: Outgoing, now_us: int) -> SendOutcome:
        """Add a message to a run's inbox and wake it. One transaction (P2, P4).

        Raises `RunNotFoundError`, or `WorkflowStateError` if the run is closed (a duplicate of a message taken in before
        the close is no error), or `InboxFullError` for a signal or an update if the run has `unread_max` unread messages already.
        """
        ...

    async def answer_activity(self, answer: ActivityAnswer, now_us: int) -> AnswerVerdict:
        """Complete or fail an attempt from outside, or note its heartbeat. One transaction.

        Only the first answer of an attempt counts: it becomes a message of the run (counted as any, P2; its id outlives it,
        P4) and the attempt's row says "answered". Only a started attempt with a row can be answered. A heartbeat writes
        details and the next due instant into that row. Raises `RunNotFoundError`.
        """
        ...

    async def retry_now(self, failed: FailedAttempt, now_us: int) -> bool:
        """Let the attempt that follows a failed one begin at once. One transaction.

        Its due instant is moved; if the run's own worker performs it, that is told by a message (counted as any, P2; its id outlives it, P4).
        Return False, and write nothing, if the activity does not wait for its next attempt after this one, or not any more.
        Raises `RunNotFoundError`.
        """
        ...

    async def expire_attempt(
        self, worker_id: int, *, pk: int, generation: int, claim_no: int, attempt: AttemptRow, now_us: int
    ) -> Expiry:
        """Let an open attempt's time be up, unless somebody has answered it or its instant was moved. One transaction, fenced.

        Decides between a late answer and the limit: whichever was written first. Of a run that is no longer this worker's
        nothing expires.
        """
        ...

    # ─ activity tasks ──

    async def claim_tasks(
        self,
        worker_id: int,
        *,
        now_us: int,
        limit: int,
        lost_limit: int,
        task_queues: Sequence[str],
        activities: Sequence[str],
    ) -> list[Task]:
        """Take up to `limit` tasks that are due, and charge each one's attempt. One transaction, fenced.

        Only of these activities, on these queues (P13); nothing while the worker is paused, nothing from a queue that is, nothing of
        a run that is. Of those whose last attempt died with its worker at most `lost_limit`. Tasks that are found there and that
        nobody waits for any more are deleted.
        """
        ...

    async def read_held_tasks(self, worker_id: int) -> list[HeldTask]:
        """Return the tasks this worker performs; one that is missing was taken away."""
        ...

    async def beat_tasks(self, worker_id: int, beats: Sequence[TaskBeat], now_us: int) -> None:
        """Note signs of life of tasks that still are this worker's, each of which moves its heartbeat timeout. One transaction."""
        ...

    async def end_tasks(self, worker_id: int, ends: Sequence[TaskEnd], now_us: int) -> list[TaskVerdict]:
        """Write what became of tasks; return one verdict for each, in order. One transaction, fenced by worker and claim number.

        An outcome deletes the task, becomes a message of its run (counted as any, P2) and settles the row of attempts, if somebody still
        waits for it; if not, it is dropped. So each task has one outcome, whoever else tries.
        """
        ...

    async def find_stray_tasks(self, now_us: int, limit: int = 100) -> CaredTasks:
        """Return tasks that somebody is to look at: lost ones, those past a limit, and closed ones that nobody performs."""
        ...

    async def settle_tasks(self, ends: Sequence[TaskEnd], now_us: int) -> list[TaskVerdict]:
        """Write what is to become of stray tasks, as `end_tasks` does: of those that still are as they were found. One transaction.

        Whoever performs such a task loses it.
        """
        ...

    async def read_tasks(self, pk: int, generation: int) -> list[Task]:
        """Return the tasks of one generation of a run, by operation."""
        ...

    async def terminate_run(self, run_id: str, reason: str | None, now_us: int) -> None:
        """Close an open run at once, with its journal row, fencing out its owner. Closed: `WorkflowStateError`."""
        ...

    async def reopen_run(self, reopen: Reopen, now_us: int) -> None:
        """Archive a closed generation and open the next, ready, from a part of its journal. One transaction.

        Raises `WorkflowStateError` if the generation is not the latest, or is open: nothing is written then.
        """
        ...

    async def unpark_run(self, run_id: str, now_us: int) -> bool:
        """Set a parked run ready again and forget its failure; return False if it was not parked.

        Poison stays a suspect, with one crash to go before it is parked again. Raises `RunNotFoundError`.
        """
        ...

    async def wake_run(self, run_id: str, now_us: int) -> bool:
        """Set a waiting run ready though nothing it waits for has happened: somebody wants it driven, and let wait again.

        Return False if it was not waiting. Raises `RunNotFoundError`.
        """
        ...

    # ─ pauses ──

    async def pause_run(self, run_id: str, reason: str | None, now_us: int) -> bool:
        """Hold an open run back; return False if it was paused already.

        From here on nobody claims it: whatever would set it ready (a message, a due timer, a hand-back, a rescue) leaves it
        held, in that same statement. An owner learns of it by `read_pauses`, starts nothing more of it and hands it back.
        Closed: `WorkflowStateError`. Deadlines still count.
        """
        ...

    async def resume_run(self, run_id: str, now_us: int) -> bool:
        """End the pause of a run, and set it ready, from now on, if it was held; return False if it was not paused."""
        ...

    async def pause(self, kind: PauseKind, name: str, reason: str | None, now_us: int) -> bool:
        """Hold a task queue or the workers of a name back: no claims from it, or by them. False: it was paused already."""
        ...

    async def resume(self, kind: PauseKind, name: str) -> bool:
        """End such a pause; return False if there was none."""
        ...

    async def list_pauses(self) -> list[PauseRecord]:
        """Return the pauses of task queues and workers."""
        ...

    async def read_pauses(self, worker_id: int) -> Pauses:
        """Return what this worker must obey. Polled: a few look-ups by key."""
        ...

    # ─ reading ──

    async def get_run(self, run_id: str, generation: int | None = None) -> RunRecord:
        """Return a run's latest (or given) generation; raise `RunNotFoundError` with near ids."""
        ...

    async def read_ended(self, runs: Sequence[tuple[int, int]]) -> list[RunRecord]:
        """Return those of (pk, generation) that are closed, continued or parked: what waiters poll for."""
        ...

    async def find_gone(self, pks: Sequence[int]) -> list[int]:
        """Return those of the runs that are no longer there: retention deleted them, and their keys do not come back."""
        ...

    async def find_run_ids(self, text: str, limit: int = 5) -> list[str]:
        """Return ids that begin or end with `text`, newest first."""
        ...

    async def list_runs(self, filter: RunFilter) -> list[RunRecord]:
        """Return the latest generations that fit, newest first."""
        ...

    async def count_runs(self, filter: RunFilter, by: CountBy | None) -> dict[str, int]:
        """Return how many latest generations fit, by the name of what `by` says ("": all of them together); only names that occur.

        Statuses are those of the rows, as for `list_runs`. `limit` and `before` do not count.
        """
        ...

    async def read_journal(self, pk: int, generation: int) -> list[JournalRow]: ...

    async def last_turn(self, pk: int, generation: int) -> int:
        """Return the number of a journal's last turn, 0 if it has none."""
        ...

    async def read_journal_page(
        self, pk: int, generation: int, *, after: tuple[int, int], limit: int
    ) -> list[JournalRow]:
        """Return up to `limit` rows of a journal behind (turn, part) `after`, in order."""
        ...

    async def read_attempts(self, pk: int, generation: int) -> list[AttemptRow]: ...

    async def has_backlog(self, task_queues: Sequence[str], definitions: Sequence[tuple[str, int]]) -> bool:
        """Return whether anything of these definitions, on these queues, goes on without anybody's doing.

        A run that is ready or delayed, that somebody drives, or that waits for a timer; not what is paused, by itself or with its queue.
        """
        ...

    async def read_meta(self, key: str) -> str | None:
        """Return a fact about the database: "database_id", "hash_seed" (P28), "created_at_us"."""
        ...

    # ─ rows of patterns ──

    async def append_rows(
        self, table: str, key: str, *, after: int, rows: Sequence[bytes], now_us: int
    ) -> bool:
        """Append rows to those of `key` in an append-only table, made at its first use. One transaction.

        Compare-and-set: nothing is written, and False returned, unless `key` has exactly `after` rows. `table` is a checked
        identifier; `StoreError` if it is a table of another shape.
        """
        ...

    async def read_rows(self, table: str, key: str, *, after: int, limit: int) -> list[bytes]:
        """Return up to `limit` rows of `key` behind the first `after`, in order; none if there is no such table."""
        ...

    # ─ care ──

    async def read_health(self) -> StoreHealth:
        """Return sizes, settings and the open runs by queue and definition. Reads every open run's row."""
        ...

    async def recent_workflows(self) -> list[str]:
        """Return the workflows of the newest runs, by name."""
        ...

    async def back_up(self, target: Path) -> int:
        """Copy the database, as it is at one moment, into a new file; return its size in bytes.

        Writers are not held up. The file appears under its name when it is complete and checked; nothing is ever
        overwritten (`StoreError`).
        """
        ...

    async def count_closed_runs(self, chosen: ClosedRuns) -> int:
        """Return how many runs `prune_runs` would delete."""
        ...

    async def find_closed_runs(
        self, chosen: ClosedRuns, *, after: tuple[int, int] | None, limit: int
    ) -> list[tuple[int, int]]:
        """Return up to `limit` (created_at_us, pk) after the one given, oldest first; with `has_own` (instant of expiry, pk)."""
        ...

    async def prune_runs(self, pks: Sequence[int], chosen: ClosedRuns, now_us: int) -> PruneOutcome:
        """Delete those of the runs that still are as `chosen` says, with all that belongs to them. One bounded transaction.

        All generations, payloads, journals, messages and request ids go, and the rows of the table `RUN_ROWS_TABLE` whose key is the
        run's id, a slash and a number; a row of the audit says so. Neither
        the key nor the epochs of a deleted run are ever given to another one (P6).
        """
        ...

    # ─ being told ──

    def subscribe(self, worker_id: int | None, on_change: Callable[[], None]) -> Callable[[], None]:
        """Call `on_change` on the loop soon after anything may have changed; return the unsubscriber. Not a coroutine.

        With a worker id, other processes can address it directly; without (clients that wait), polling alone.
        A hint only: hints may be lost, late, or for nothing, and polling stands behind them.
        """
        ...
