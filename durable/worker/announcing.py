"""What is told of runs: when the stay of one here has ended, a line of the log, and its record to whoever waits for it in this process.

So a caller on the same client learns of the end without asking the store; everybody else asks. Called once the end is durable.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from durable.errors import PlatformFault
from durable.journal.lifecycle import RunStatus
from durable.outcomes import OutcomeWatch
from durable.store.records import Close, Park, Rescue, RunRecord
from durable.worker.live import Item, LiveRun

log = logging.getLogger("durable.worker")


def announce(watch: OutcomeWatch, run: LiveRun, item: Item, now_us: int) -> None:
    """Tell what the run has become."""
    assert item.status is not None
    if item.status is RunStatus.PARKED:
        fault = item.fault
        told = f"its text: durable why {run.run_id}"  # it may quote what the run holds
        if isinstance(fault, PlatformFault) and fault.is_clear:
            told = str(fault)
        log.error("run %r is parked: %s: %s", run.run_id, type(fault).__name__, told, extra=run.log_fields)
    elif log.isEnabledFor(logging.INFO) and item.status is not RunStatus.WAITING:
        log.info("run %r is %s", run.run_id, item.status, extra=run.log_fields)
    if item.fault is not None or watch.is_awaited(run.pk, run.generation):
        watch.announce(_record(run, item, now_us), _fault(item))


def tell_of_rescue(rescued: Sequence[Rescue]) -> None:
    """Tell the log of dead workers whose runs were taken back."""
    for one in rescued:
        tasks = f" and {one.tasks} activities" if one.tasks else ""
        log.warning("took back %d runs%s of worker %s, which is dead", one.runs, tasks, one.name)
        for run_id in one.poison:
            log.error("run %r is parked: it ended its worker too often; see `durable show`", run_id)


def _fault(item: Item) -> PlatformFault | None:
    if item.fault is None or isinstance(item.fault, PlatformFault):
        return item.fault
    fault = PlatformFault(str(item.fault))
    fault.__cause__ = item.fault
    return fault


def _record(run: LiveRun, item: Item, now_us: int) -> RunRecord:
    """Return what a reader of the store would now see of a run that just ended."""
    claim, after = run.claim, item.after
    assert item.status is not None
    return RunRecord(
        pk=run.pk,
        run_id=run.run_id,
        generation=run.generation,
        epoch=claim.epoch,
        workflow=claim.workflow,
        version=claim.version,
        task_queue=claim.task_queue,
        status=item.status,
        attempt=claim.attempt,
        created_at_us=claim.created_at_us,
        started_at_us=claim.created_at_us,
        closed_at_us=now_us,
        deadline_us=claim.deadline_us,
        due_at_us=None,
        owner=None,
        owner_name=None,
        owner_is_alive=False,
        reason=after.reason if isinstance(after, (Close, Park)) else None,
        input=claim.input,
        result=after.result if isinstance(after, Close) else None,
        failure=after.failure if isinstance(after, (Close, Park)) else None,
    )
