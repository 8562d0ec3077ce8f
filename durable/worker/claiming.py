"""What a worker finds in its store: runs to claim, messages for those it drives, children, pauses, and what was taken away.

Never claims more than the driver has room for: places are promised while a claim is under way. An embedded engine claims only
what its process started or asked for (P30). Knows nothing of turns.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from durable.client import Client
from durable.definitions import Registry
from durable.engine.instance import Instance
from durable.errors import DefinitionError, LeaseLostError, RunNotFoundError, StoreError
from durable.scheduler.wakeups import Wakeups
from durable.seams import pause
from durable.store.records import Claim, Pauses, StartRequest
from durable.worker.children import claims_with_outcomes, with_outcomes
from durable.worker.driving import Driver
from durable.worker.fingerprint import Fingerprints
from durable.worker.live import LiveRun
from durable.worker.parked import retry_parked
from durable.worker.releasing import Releaser

POLL_SECONDS: Final = 0.5  # behind the store's hints
CLAIM_MAX: Final = 500
PAUSES_SECONDS: Final = 0.1  # between looks at what is paused: all workers obey within a second
OWNERSHIP_SECONDS: Final = 0.1  # between looks for runs that were taken away
OWNERSHIP_SHARE: Final = (
    20  # a look that took long, for there are many, is followed by a pause this many times as long
)
OWNERSHIP_SECONDS_MAX: Final = 1.0
log = logging.getLogger("durable.worker")


class Claimer:
    """The eyes of one worker. `may_claim` is false while it stops, or has lost its lease; `own_only`: an embedded engine's."""

    def __init__(
        self,
        client: Client,
        driver: Driver,
        releaser: Releaser,
        *,
        name: str,
        registry: Registry,
        task_queues: Sequence[str],
        own_only: bool,
        worker_id: Callable[[], int],
        may_claim: Callable[[], bool],
        on_lost: Callable[[int], None],
    ) -> None:
        self.wakeups = Wakeups()
        self.pauses = Pauses()
        self._client = client
        self._store = client.store
        self._clock = client.clock
        self._driver = driver
        self._releaser = releaser
        self._name = name
        self._registry = registry
        self._task_queues = task_queues
        self._own_only = own_only
        self._worker_id = worker_id
        self._may_claim = may_claim
        self._on_lost = on_lost
        self._interest: set[int] = set()  # what an embedded engine may claim
        self._children: deque[str] = deque()  # run ids that may be of interest
        self._strays: dict[int, int] = {}  # pk -> claim_no of runs ours but not driven, as of the last look
        self._turn_of_queues = 0

    # ─ places ──

    def reserve_room(self, request: StartRequest, wanted: int, concurrency: int) -> int:
        """Promise places for up to `wanted` runs of this kind; none beyond what `concurrency` slots keep busy."""
        if (
            self._own_only
            or not self._may_claim()
            or request.ready_at_us is not None
            or request.task_queue not in self._task_queues
            or self.pauses != Pauses()
            or self._registry.find(request.workflow, request.version) is None
        ):
            return 0
        driver = self._driver
        room = min(driver.room, concurrency - len(driver.runs) - driver.promised, wanted)
        driver.promised += max(room, 0)
        return max(room, 0)

    def adopt(self, claim: Claim) -> None:
        """Drive a run this process has just started as its owner."""
        self._interest.add(claim.pk)
        self._driver.adopt(claim)
        if self.pauses != Pauses():
            self._hold_paused()

    def ask_for(self, pk: int) -> None:
        """Claim this run as soon as it is ready."""
        self._interest.add(pk)
        self.wakeups.hint()

    def forget(self, pk: int) -> None:
        """Claim this run no more."""
        self._interest.discard(pk)

    # ─ looking ──

    async def run(self) -> None:
        """Claim ready runs, take in messages, notice runs that were taken away, at every hint, else now and then; until cancelled."""
        obeyed_at = checked_at = self._clock.monotonic()
        check_pause = OWNERSHIP_SECONDS
        while True:
            again = False
            worker_id = self._worker_id()
            try:
                again = await self.look()
                began_at = self._clock.monotonic()
                if began_at - checked_at > check_pause:
                    await self._check_ownership()
                    checked_at = self._clock.monotonic()
                    took = checked_at - began_at
                    check_pause = min(max(OWNERSHIP_SECONDS, OWNERSHIP_SHARE * took), OWNERSHIP_SECONDS_MAX)
                if began_at - obeyed_at > PAUSES_SECONDS:
                    await self._obey_pauses()
                    obeyed_at = self._clock.monotonic()
            except LeaseLostError:
                self._on_lost(worker_id)
            except StoreError as error:
                log.warning("claims wait for the database: %s", error)
            if again:
                await pause(0)
            else:
                await self.wakeups.wait(POLL_SECONDS)

    async def look(self) -> bool:
        """Claim what is ready and take in messages; return whether there may be more to claim."""
        if self._driver.runs:
            await self._take_in_messages()  # first: somebody waits for what a run at hand makes of it
        await self._look_for_children()
        return await self._claim()

    async def _claim(self) -> bool:
        """Claim what there is room for; return whether there may be more."""
        if not self._may_claim() or (self._own_only and not self._interest):
            return False
        room = min(self._driver.room, CLAIM_MAX)
        if room <= 0 or not len(self._registry):
            return False
        if self._own_only:
            return await self._claim_from(None, room)
        if len(self._task_queues) == 1:
            return await self._claim_from(self._task_queues[0], room)
        may_be_more = False
        self._turn_of_queues += 1  # so that none of them always comes last
        for place in range(len(self._task_queues)):
            queue = self._task_queues[(place + self._turn_of_queues) % len(self._task_queues)]
            room = min(self._driver.room, CLAIM_MAX)
            may_be_more |= room <= 0 or await self._claim_from(queue, room)
        return may_be_more and self._driver.room > 0

    async def _claim_from(self, task_queue: str | None, room: int) -> bool:
        self._driver.promised += room
        try:
            claims = await self._store.claim_ready_runs(
                self._worker_id(),
                now_us=self._clock.now_us(),
                limit=room,
                task_queue=task_queue,
                definitions=self._registry.keys(),
                pks=sorted(self._interest) if self._own_only else None,
            )
        finally:
            self._driver.promised -= room
        for claim in await claims_with_outcomes(self._client, claims):
            self._driver.adopt(claim)
        return len(claims) == room

    async def _take_in_messages(self) -> None:
        """Read what was sent to the runs that are driven here; of children, also how they ended."""
        runs = self._driver.runs
        messages = await self._store.read_inbox(self._worker_id(), list(runs))
        fresh = [m for m in messages if (run := runs.get(m.run_pk)) is None or m.msg > run.received]
        self._driver.deliver(await with_outcomes(self._client, fresh))

    async def has_nothing_left(self) -> bool:
        """Whether no run of its queues is ready, owned, or waits for a time; False if that cannot be told now."""
        try:
            return not await self._store.has_backlog(self._task_queues, self._registry.keys())
        except StoreError:
            return False

    # ─ children ──

    def has_children(self, run: LiveRun, instance: Instance) -> None:
        """A run has children that may be open. Whoever drives only its own drives them, too; their workflow need not be in a variable."""
        for call in instance.children.values():
            try:
                self._registry.add(call.workflow)
            except DefinitionError as error:
                log.warning("child %r of run %r: %s", call.key, run.run_id, error, extra=run.log_fields)
                continue
            if self._own_only and call.task_queue == call.workflow.task_queue:
                self._children.append(call.key)
        self.wakeups.hint()

    async def _look_for_children(self) -> None:
        """Claim, as soon as they are ready, the children of runs that are driven here (embedded engines)."""
        while self._children:
            try:
                child = await self._store.get_run(self._children[0])
            except RunNotFoundError:
                pass
            else:
                if not child.status.is_closed:
                    self._interest.add(child.pk)
            self._children.popleft()

    # ─ parked ──

    async def retry_parked(self, fingerprints: Fingerprints) -> None:
        """Give parked runs another chance from code they have not met, until cancelled."""
        await retry_parked(
            self._store,
            task_queues=self._task_queues,
            worker_id=self._worker_id,
            room=self._room_for_parked,
            codes=lambda: [(one.name, one.version, fingerprints.of(one)) for one in self._registry.all()],
            adopt=self._adopt_parked,
        )

    async def _adopt_parked(self, claim: Claim) -> None:
        for one in await claims_with_outcomes(self._client, [claim]):
            self._driver.adopt(one)

    def _room_for_parked(self) -> int:
        is_paused = self.pauses.is_worker_paused or self.pauses.task_queues.issuperset(self._task_queues)
        return self._driver.room if self._may_claim() and not is_paused else 0

    # ─ paused, or taken away ──

    async def _obey_pauses(self) -> None:
        """Hold back what is paused: this worker, task queues, single runs. Each is told when it begins."""
        pauses = await self._store.read_pauses(self._worker_id())
        if pauses == self.pauses == Pauses():
            return
        if pauses.is_worker_paused is not self.pauses.is_worker_paused:
            log.warning("worker %s is %s", self._name, "paused" if pauses.is_worker_paused else "resumed")
        self.pauses = pauses
        self._hold_paused()

    def _hold_paused(self) -> None:
        pauses = self.pauses
        self._releaser.hold(
            lambda run: (
                pauses.is_worker_paused or run.claim.task_queue in pauses.task_queues or run.pk in pauses.pks
            )
        )

    async def _check_ownership(self) -> None:
        """Compare what the store says is ours with what is driven here: drop what was taken away, take up what was left lying."""
        known = list(self._driver.runs.values())  # what is started meanwhile is not among what the store says
        owned = await self._store.owned_runs(self._worker_id())
        for run in known:
            if owned.get(run.pk) != run.claim_no and run.is_settled:
                self._driver.lose(run)
        strays = {pk: claim_no for pk, claim_no in owned.items() if pk not in self._driver.runs}
        twice = [pk for pk, claim_no in strays.items() if self._strays.get(pk) == claim_no]
        self._strays = strays
        if twice:  # its starter was cancelled between the commit and the adoption, say
            claims = await self._store.read_claims(self._worker_id(), twice)
            for claim in await claims_with_outcomes(self._client, claims):
                if self._registry.find(claim.workflow, claim.version) is not None:
                    self._driver.adopt(claim)
