"""The activity tasks of one worker: claimed from its queues, performed, and ended in their rows.

A claim charges the attempt in the transaction that takes the task; only then does its code begin, and only if the lease still
holds. What became of it is written by the store once, fenced by worker and claim number, until the store has said that it is; a worker
that dies in between has lost the attempt, and one that was declared dead writes nothing. Of tasks that are not ended, the worker learns
from the store that their workflow has let go of them, or that they were taken away, at every hint. So it learns of those, too, that are its
own without its knowing: a claim whose answer was lost had taken them, and nobody else would begin them as long as this worker lives.

A few tasks whose last attempt died with its worker are taken at a time, more and more as long as this one lives (P14).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from durable.client import Client
from durable.definitions import ActivityDefinition
from durable.errors import LeaseLostError, StoreError, WorkerLostError
from durable.limits import Limits
from durable.scheduler.wakeups import Wakeups
from durable.seams import Threads, pause
from durable.store.records import HeldTask, Task, TaskBeat, TaskEnd
from durable.worker.closing import UNAWAITED
from durable.worker.incarnation import Incarnation
from durable.worker.live import AttemptState, LiveRun, Phase
from durable.worker.probation import PROBATION_SECONDS
from durable.worker.task_performing import TaskPerformer, TaskRun, end_of, policy_of

POLL_SECONDS: Final = 0.5  # behind the store's hints
TROUBLE_SECONDS: Final = 0.25
LATER_SECONDS: Final = 0.05  # before an end is written again whose run somebody's open transaction holds
BEAT_SHARE: Final = 0.4  # of the heartbeat timeout: how often signs of life are written
BEAT_SECONDS_MAX: Final = 3.0
TAKEN_AWAY: Final = "its task is another worker's, or nobody waits for it"
log = logging.getLogger("durable.worker")


class Tasks:
    """The tasks one worker performs, by number, with slots and threads of their own."""

    def __init__(
        self,
        client: Client,
        threads: Threads,
        *,
        slots: int,
        task_queues: Sequence[str],
        activities: Mapping[str, ActivityDefinition],
        limits: Limits,
        incarnation: Callable[[], Incarnation],
        is_lost: Callable[[], bool],
        on_lost: Callable[[int], None],
        on_settled: Callable[[], None],
    ) -> None:
        self._store = client.store
        self._clock = client.clock
        self._executor = threads.executor(slots, name="durable-task")
        self.performer = TaskPerformer(
            slots=slots,
            clock=client.clock,
            random=client.random,
            threads=threads,
            executor=self._executor,
            address=client.address,
            limits=limits,
            stand_in=client.stand_in,
            on_outcome=self._ended_one,
            on_marks=lambda item: None,
            on_slots=self._told,
            on_stale=self._doubt,
            on_details=self._told,
        )
        self._task_queues = tuple(task_queues)
        self._activities = activities
        self._incarnation = incarnation
        self._is_lost = is_lost  # the incarnation is over, and the next does not stand yet
        self._on_lost = on_lost
        self._on_settled = on_settled
        self.runs: dict[int, TaskRun] = {}
        self.is_stopping = False
        self._ended: list[TaskRun] = []
        self._ends: list[TaskEnd] = []  # of what is no longer performed here, still to be written
        self._retries: list[
            float
        ] = []  # a heap: when attempts that follow those made here are due, by the loop's time
        self._wakeups = Wakeups()
        self._is_told = False  # by the store: look at what is performed
        self._looked_at = 0.0
        self._lost_at_once = 1
        self._on_probation: dict[TaskRun, float] = {}

    @property
    def is_busy(self) -> bool:
        """Whether something is performed, or its end is on its way into the database."""
        return bool(self.runs or self._ends or self._ended)

    def hint(self) -> None:
        """Something in the store may have changed."""
        self._is_told = True
        self._wakeups.hint()

    def _told(self) -> None:
        """A heartbeat has told something, which is to be written; or there is a slot."""
        self._wakeups.hint()

    def _ended_one(self, run: LiveRun) -> None:
        """An attempt is over."""
        assert isinstance(run, TaskRun)
        self._ended.append(run)
        self._wakeups.hint()

    def lose_all(self) -> None:
        """This incarnation is over: nothing it performs is its own any more."""
        for run in list(self.runs.values()):
            self._leave(run)
        self._ended.clear()
        self._ends.clear()

    async def run(self) -> None:
        """Claim, look and write until cancelled."""
        while True:
            if self._is_lost():
                await self._wakeups.wait(POLL_SECONDS)
                continue
            incarnation = self._incarnation()
            worker_id = incarnation.worker_id
            wait = POLL_SECONDS
            try:
                if await self._write_ends(worker_id):
                    wait = LATER_SECONDS
                await self._look(incarnation)
                wait = min(wait, await self._beat(worker_id), self._next_retry())
                if await self._claim(incarnation):
                    self._wakeups.hint()
            except LeaseLostError:
                self._on_lost(worker_id)
            except StoreError as error:
                log.warning("activities for other workers' runs wait for the database: %s", error)
                await pause(TROUBLE_SECONDS)
                self._wakeups.hint()
            await self._wakeups.wait(wait)

    async def hand_back_all(self, worker_id: int) -> None:
        """Write what has ended, and give back what has not, uncharged.

        Unless its policy forbids another attempt after a lost one, or its thread goes on: then it is lost.
        """
        await self._write_ends(worker_id)
        for run in list(self.runs.values()):
            attempt = run.attempt
            if attempt is not None and not attempt.goes_on and not run.policy.is_final(WorkerLostError):
                self._ends.append(TaskEnd(task=run.task, how="handed_back", details=attempt.latest_details()))
        await self._write_ends(worker_id)

    def close(self) -> None:
        """Let the threads go."""
        self._executor.close()

    # ─ ends ──

    async def _write_ends(self, worker_id: int) -> bool:
        """Write what is to be written; return whether some of it is still to be, a little later."""
        ended, self._ended = self._ended, []
        for run in ended:
            if self.runs.pop(run.task.task_id, None) is run:
                self._ends.append(end_of(run))
        ends = list(self._ends)
        if not ends:
            return False
        verdicts = await self._store.end_tasks(worker_id, ends, self._clock.now_us())
        for end, verdict in zip(ends, verdicts, strict=True):
            if verdict == "lost":
                log.warning(
                    "attempt %d of activity %r of run %r is no longer this worker's: what became of it is not heard",
                    end.task.attempt, end.task.name, end.task.run_id,
                    extra={"run_id": end.task.run_id, "workflow": end.task.workflow},
                )  # fmt: skip
            elif verdict == "ended" and end.how == "again":
                heapq.heappush(self._retries, asyncio.get_running_loop().time() + end.delay_us / 1_000_000)
        later = {id(end) for end, verdict in zip(ends, verdicts, strict=True) if verdict == "later"}
        done = {id(end) for end in ends} - later
        self._ends = [end for end in self._ends if id(end) not in done]
        self._on_settled()
        return bool(self._ends)

    def _next_retry(self) -> float:
        """Return in how many seconds an attempt is due that follows one made here."""
        now = asyncio.get_running_loop().time()
        while self._retries and self._retries[0] <= now:
            heapq.heappop(self._retries)
        return max(self._retries[0] - now, 0.001) if self._retries else POLL_SECONDS

    # ─ what is performed ──

    async def _look(self, incarnation: Incarnation) -> None:
        """See which tasks somebody has let go of, or taken away: at every hint of the store, else now and then.

        And which of them a claim has taken whose answer was lost.
        """
        now = self._clock.monotonic()
        if now - self._looked_at < POLL_SECONDS and not (self._is_told and self.runs):
            return
        self._is_told, self._looked_at = False, now
        seen = list(self.runs.values())
        worker_id = incarnation.worker_id
        held = {one.task_id: one for one in await self._store.read_held_tasks(worker_id)}
        for run in seen:
            if self.runs.get(run.task.task_id) is run and run.attempt is not None:
                self._heed(run, held.get(run.task.task_id))
        known = {*self.runs, *(run.task.task_id for run in seen), *(end.task.task_id for end in self._ends)}
        for one in held.values():
            if one.task_id not in known:
                await self._take_up(incarnation, one)
        await self._write_ends(worker_id)

    async def _take_up(self, incarnation: Incarnation, held: HeldTask) -> None:
        """Begin a task that is this worker's already, and charged, as soon as there is room; or let go of it with its workflow."""
        if self.performer.free <= 0 or self.is_stopping:
            return
        since = self._clock.monotonic()
        found = await self._store.read_tasks(held.pk, held.generation)
        tasks = [one for one in found if (one.task_id, one.claim_no) == (held.task_id, held.claim_no)]
        if held.closing == "try":
            self._ends.extend(TaskEnd(task=task, how="dropped") for task in tasks)
        else:
            self._begin_all(incarnation, tasks, since)

    def _heed(self, run: TaskRun, held: HeldTask | None) -> None:
        attempt = run.attempt
        assert attempt is not None
        if held is None or held.claim_no != run.task.claim_no:
            if attempt.state is AttemptState.RUNNING:  # else its own end has just been written
                self.performer.stop(run, "try", TAKEN_AWAY)
                self.runs.pop(run.task.task_id, None)
        elif held.closing == "try":
            self.performer.stop(run, "try", held.close_reason or UNAWAITED)
            self.runs.pop(run.task.task_id, None)
            self._ends.append(TaskEnd(task=run.task, how="dropped"))
        elif held.closing == "wait" and not attempt.cancelled:
            self.performer.stop(run, "wait", held.close_reason or UNAWAITED)

    async def _beat(self, worker_id: int) -> float:
        """Write signs of life and what they tell, each as often as its timeout wants; return when the next is due, in seconds."""
        now = asyncio.get_running_loop().time()
        due: list[TaskBeat] = []
        beating: list[TaskRun] = []
        wait = POLL_SECONDS
        for run in self.runs.values():
            attempt = run.attempt
            pulse = None if attempt is None else attempt.pulse
            if attempt is None or pulse is None or pulse.beat_at <= run.told_at:
                continue
            limit_us = attempt.call.definition.heartbeat_us
            interval = BEAT_SECONDS_MAX
            if limit_us is not None:
                interval = min(BEAT_SHARE * limit_us / 1_000_000, interval)
            left = run.told_at + interval - now
            if left > 0:
                wait = min(wait, left)
            elif limit_us is not None or pulse.details is not None:
                due.append(TaskBeat(task=run.task, details=pulse.details))
                beating.append(run)
        if due:
            await self._store.beat_tasks(worker_id, due, self._clock.now_us())
            for run in beating:
                run.told_at = now
        return wait

    # ─ claims ──

    async def _claim(self, incarnation: Incarnation) -> bool:
        """Claim what there is room for; return whether there may be more."""
        # What has ended, and is not written yet, is held still: at no instant does the store tell of more than there are slots.
        room = self.performer.free - len(self._ended) - len(self._ends)
        if room <= 0 or self.is_stopping or not self._activities:
            return False
        since = self._clock.monotonic()
        claimed = await self._store.claim_tasks(
            incarnation.worker_id,
            now_us=self._clock.now_us(),
            limit=room,
            lost_limit=self._lost_room(),
            task_queues=self._task_queues,
            activities=tuple(self._activities),
        )
        self._begin_all(incarnation, claimed, since)
        return len(claimed) == room and self.performer.free > 0

    def _begin_all(self, incarnation: Incarnation, tasks: Sequence[Task], since: float) -> None:
        """Begin tasks that were this incarnation's at an instant of its clock, if its lease still holds."""
        if not tasks or self._is_lost() or incarnation is not self._incarnation():
            return  # of a life that is over: whoever takes them over begins them
        try:
            is_fresh = incarnation.is_fresh(since)
        except StoreError as error:
            log.warning("activities on other queues wait for the database: %s", error)
            return  # what is still held is found by the next look
        if not is_fresh:  # charged, and by now perhaps another's: not to be begun (P11)
            self._on_lost(incarnation.worker_id)
            return
        if not incarnation.is_recent(since):
            # The worker lives, but that proves nothing for single tasks: somebody may have ended these for their timeouts. What
            # is still held is found by the next look.
            return
        self.performer.fence = partial(incarnation.is_recent, since)
        self.performer.fresh_until = incarnation.proven_until(since)
        for task in tasks:
            self._begin(task)

    def _doubt(self) -> None:
        """An attempt would begin too late: nobody knows whose it is by now. Look again at what is held; that is begun anew."""
        for number, run in list(self.runs.items()):
            if run.attempt is not None and run.attempt.state is AttemptState.DROPPED:
                del self.runs[number]
        self._looked_at = -math.inf
        self._wakeups.hint()

    def _begin(self, task: Task) -> None:
        run = TaskRun(task, policy_of(task))
        self.runs[task.task_id] = run
        self.performer.perform(run, self._activities[task.activity])
        run.told_at = asyncio.get_running_loop().time()
        if task.is_lost:
            self._on_probation[run] = run.told_at + PROBATION_SECONDS

    def _lost_room(self) -> int:
        """How many tasks may be taken whose last attempt died with its worker."""
        now = asyncio.get_running_loop().time()
        for run, until in list(self._on_probation.items()):
            if now >= until or self.runs.get(run.task.task_id) is not run:
                del self._on_probation[run]
                self._lost_at_once *= 2
        if not self._on_probation and self._lost_at_once > 1 and not self.runs:
            self._lost_at_once = 1  # the next death begins anew
        return max(0, min(self._lost_at_once, 1 << 20) - len(self._on_probation))

    def _leave(self, run: TaskRun) -> None:
        self.runs.pop(run.task.task_id, None)
        run.phase = Phase.GONE
        self.performer.drop(run)
