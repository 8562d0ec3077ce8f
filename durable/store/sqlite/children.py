"""Children: started, and asked to cancel, in the transaction of the parent's turn (`ChildStart`). What follows a close is done by triggers."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from durable.errors import RunConflictError
from durable.journal.lifecycle import RunStatus
from durable.store.records import (
    CHILD_CONFLICT,
    ITS_PARENT_HAS_ENDED,
    PARENT_ENDED,
    ChildCancel,
    ChildNotice,
    ChildStart,
    NextGeneration,
    Outgoing,
    RunRecord,
    StartOutcome,
    TurnCommit,
    Verdict,
    child_notice_id,
    lets_children_go,
)
from durable.store.sqlite.closing import terminate
from durable.store.sqlite.inbox import put_message
from durable.store.sqlite.reading import get_run
from durable.store.sqlite.starting import start_runs
from durable.store.statements import Statements


def do_errands(
    db: sqlite3.Connection,
    sql: Statements,
    commits: Sequence[TurnCommit],
    verdicts: Sequence[Verdict],
    now_us: int,
) -> None:
    """Do what the turns that were written want done for children."""
    for commit, verdict in zip(commits, verdicts, strict=True):
        if commit.errands and verdict in ("committed", "stayed"):
            starts = [errand for errand in commit.errands if isinstance(errand, ChildStart)]
            if starts:
                _start_all(db, sql, commit, starts, now_us)
            for errand in commit.errands:
                if isinstance(errand, ChildCancel):
                    _cancel(db, sql, commit.pk, errand, now_us)


def _start_all(
    db: sqlite3.Connection, sql: Statements, commit: TurnCommit, children: Sequence[ChildStart], now_us: int
) -> None:
    """Start them together; if one of them cannot be started, each by itself."""
    parent, is_over = commit.pk, lets_children_go(commit.after)
    try:
        # An id that we gave is enough to know the child by: its input may have been encoded otherwise.
        outcomes: list[StartOutcome | None] = list(
            start_runs(db, sql, [child.request for child in children], now_us, same_input=lambda *_: True)
        )
    except RunConflictError:
        if len(children) > 1:
            for child in children:
                _start_all(db, sql, commit, [child], now_us)
            return
        outcomes = [None]
    parent_run_id, epoch = db.execute(sql["address_of_parent"], {"parent": parent}).fetchone()
    db.execute(sql["mark_parent"], {"parent": parent})
    if isinstance(commit.after, NextGeneration):
        epoch -= commit.after.new_epoch  # they are children of the one that asked
    for child, outcome in zip(children, outcomes, strict=True):
        if outcome is None or not _link(db, sql, (parent, epoch), child, outcome):
            notice = ChildNotice(op=child.op, generation=0, run_id=child.request.run_id)
            _tell(db, sql, parent, notice, CHILD_CONFLICT, now_us)
            continue
        run = outcome.run
        if outcome.how != "started":
            db.execute(sql["name_parent"], {"run": run.pk, "run_id": parent_run_id})
        elif is_over:
            _let_go(db, sql, child, run, now_us)
        last = _last_of_life(db, sql, run, now_us)
        if last.status.is_closed:
            closed = ChildNotice(op=child.op, generation=last.generation, run_id=run.run_id)
            _tell(db, sql, parent, closed, "", now_us)


def _last_of_life(db: sqlite3.Connection, sql: Statements, run: RunRecord, now_us: int) -> RunRecord:
    """Return the generation that tells how a child ends, or goes on: one that was continued has no end of its own."""
    if run.status is not RunStatus.CONTINUED:
        return run
    ((last,),) = db.execute(sql["last_of_life"], {"run": run.pk, "generation": run.generation})
    return get_run(db, sql, run.run_id, last, now_us)


def _let_go(db: sqlite3.Connection, sql: Statements, child: ChildStart, run: RunRecord, now_us: int) -> None:
    """Do for a child whose parent has closed in this very turn what the triggers do for those that were there before."""
    if child.on_parent_close == "terminate":
        terminate(db, sql, run.pk, run.generation, ITS_PARENT_HAS_ENDED, now_us)
    elif child.on_parent_close == "cancel":
        request = Outgoing(run_id=run.run_id, kind="cancel", name=PARENT_ENDED, data=b"null", message_id=None)
        put_message(db, sql, run.pk, request, now_us)


def _link(
    db: sqlite3.Connection,
    sql: Statements,
    parent: tuple[int, int],
    child: ChildStart,
    outcome: StartOutcome,
) -> bool:
    """Make a run the child of (key, epoch); return False if it is another open run's."""
    policy = child.on_parent_close if outcome.how == "started" else "abandon"
    key, epoch = parent
    link = {
        "run": outcome.run.pk,
        "parent": key,
        "epoch": epoch,
        "op": child.op,
        "on_parent_close": policy,
        "is_new": outcome.how == "started",
    }
    return bool(db.execute(sql["link_child"], link).fetchall())


def _tell(
    db: sqlite3.Connection, sql: Statements, parent: int, notice: ChildNotice, name: str, now_us: int
) -> None:
    """Count and store a notice, if there is somebody to read it. Its id is not remembered: a retried parent may need to be told again."""
    if db.execute(sql["is_open"], {"run": parent}).fetchone() is None:
        return
    ((msg,),) = db.execute(sql["count_message"], {"run": parent, "now_us": now_us}).fetchall()
    row = (parent, msg, "child", name, b"null", child_notice_id(notice), now_us)
    db.execute(sql["insert_message"], row)


def _cancel(db: sqlite3.Connection, sql: Statements, parent: int, child: ChildCancel, now_us: int) -> None:
    found = db.execute(sql["open_child"], {"run_id": child.run_id, "parent": parent}).fetchone()
    if found is not None:
        request = Outgoing(
            run_id=child.run_id, kind="cancel", name="cancel", data=child.data, message_id=None
        )
        put_message(db, sql, found[0], request, now_us)
        db.execute(sql["child_was_cancelled"], {"run": found[0]})
