"""Children: started, and asked to cancel, in the transaction of the parent's turn (`ChildStart`). What follows a close is done by triggers."""

from __future__ import annotations

from collections.abc import Sequence

from durable.errors import RunConflictError
from durable.journal.lifecycle import RunStatus
from durable.store.postgres.closing import terminate
from durable.store.postgres.connection import Session
from durable.store.postgres.reading import get_run
from durable.store.postgres.starting import decide_all
from durable.store.records import (
    CHILD_CONFLICT,
    ITS_PARENT_HAS_ENDED,
    PARENT_ENDED,
    ChildCancel,
    ChildNotice,
    ChildStart,
    NextGeneration,
    RunRecord,
    StartOutcome,
    TurnCommit,
    child_notice_id,
    lets_children_go,
)


async def do_errands(db: Session, commit: TurnCommit, now_us: int | None) -> None:
    """Do what a turn that was written wants done for children."""
    starts = [errand for errand in commit.errands if isinstance(errand, ChildStart)]
    if starts:
        await _start_all(db, commit, starts, now_us)
    for errand in commit.errands:
        if isinstance(errand, ChildCancel):
            await _cancel(db, commit.pk, errand, now_us)


async def _start_all(
    db: Session, commit: TurnCommit, children: Sequence[ChildStart], now_us: int | None
) -> None:
    """Start them together, in a few statements; if one of them cannot be started, each by itself."""
    parent, is_over = commit.pk, lets_children_go(commit.after)
    requests = [child.request for child in children]
    try:
        outcomes: list[StartOutcome] = await decide_all(db, requests, children[0].asked_at_us, now_us)
    except RunConflictError:
        if len(children) > 1:
            for child in children:
                await _start_all(db, commit, [child], now_us)
            return
        await _refuse(db, parent, children[0], now_us)
        return
    parent_run_id, epoch = await db.row("address_of_parent", parent=parent)
    await db.fetch("mark_parent", parent=parent)
    if isinstance(commit.after, NextGeneration):
        epoch -= commit.after.new_epoch  # they are children of the one that asked
    linked = {
        row["run"]
        for row in await db.fetch(
            "link_children",
            runs=[outcome.run.pk for outcome in outcomes],
            parent=parent,
            epoch=epoch,
            ops=[child.op for child in children],
            policies=[
                child.on_parent_close if outcome.how == "started" else "abandon"
                for child, outcome in zip(children, outcomes, strict=True)
            ],
            new_runs=[outcome.run.pk for outcome in outcomes if outcome.how == "started"],
        )
    }
    for child, outcome in zip(children, outcomes, strict=True):
        run = outcome.run
        if run.pk not in linked:
            await _refuse(db, parent, child, now_us)
        elif outcome.how != "started":
            await db.fetch("name_parent", run=run.pk, run_id=parent_run_id)
        elif is_over:
            await _let_go(db, child, run, now_us)
        last = await _last_of_life(db, run, child.asked_at_us)
        if run.pk in linked and last.status.is_closed:
            closed = ChildNotice(op=child.op, generation=last.generation, run_id=run.run_id)
            await _tell(db, parent, closed, "", now_us)


async def _last_of_life(db: Session, run: RunRecord, now_us: int) -> RunRecord:
    """Return the generation that tells how a child ends, or goes on: one that was continued has no end of its own."""
    if run.status is not RunStatus.CONTINUED:
        return run
    last = await db.value("last_of_life", run=run.pk, generation=run.generation)
    return await get_run(db, run.run_id, last, now_us)


async def _let_go(db: Session, child: ChildStart, run: RunRecord, now_us: int | None) -> None:
    """Do for a child whose parent has closed in this very turn what the triggers do for those that were there before."""
    if child.on_parent_close == "terminate":
        await terminate(db, run.pk, ITS_PARENT_HAS_ENDED, run.created_at_us)
    elif child.on_parent_close == "cancel":
        await db.fetch(
            "tell_run",
            run=run.pk,
            kind="cancel",
            name=PARENT_ENDED,
            data=None,
            message_id=None,
            now_us=now_us,
        )


async def _refuse(db: Session, parent: int, child: ChildStart, now_us: int | None) -> None:
    notice = ChildNotice(op=child.op, generation=0, run_id=child.request.run_id)
    await _tell(db, parent, notice, CHILD_CONFLICT, now_us)


async def _tell(db: Session, parent: int, notice: ChildNotice, name: str, now_us: int | None) -> None:
    """Send a notice. Its id is not remembered: a retried parent may need to be told once more."""
    message_id = child_notice_id(notice)
    await db.fetch(
        "tell_run", run=parent, kind="child", name=name, data=None, message_id=message_id, now_us=now_us
    )


async def _cancel(db: Session, parent: int, child: ChildCancel, now_us: int | None) -> None:
    for row in await db.fetch("cancel_child", run_id=child.run_id, parent=parent):
        await db.fetch(
            "tell_run",
            run=row["run"],
            kind="cancel",
            name="cancel",
            data=child.data,
            message_id=None,
            now_us=now_us,
        )
