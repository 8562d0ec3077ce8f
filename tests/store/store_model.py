"""What a store must do, as plain Python: runs, owners, fences, messages, generations. Knows neither SQL nor time.

`Model` answers each verb as every store must. `Machine` lets Hypothesis choose verbs, asks the model and each store, and
compares: the answers, and after every step all that can be read. Instants are only ever "long past" or "far ahead", since one
store has the clock of a server.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, Final

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from store_steps import NOW, W1, opened, to

from durable.errors import DurableError
from durable.journal.lifecycle import RunStatus
from durable.store.contract import Store
from durable.store.records import (
    Close,
    ClosedRuns,
    HandBack,
    NextGeneration,
    Park,
    PauseKind,
    Reopen,
    StartRequest,
    Stay,
    TurnCommit,
    Wait,
    WorkerInfo,
)

PAST: Final = 1_000_000
AHEAD: Final = 4_000_000_000_000_000  # in the year 2096
RUN_IDS: Final = ("a", "b", "c")
OPEN: Final = ("ready", "delayed", "held", "owned", "waiting", "parked")
ENDS: Final = {
    "complete": RunStatus.COMPLETED,
    "fail": RunStatus.FAILED,
    "cancel": RunStatus.CANCELLED,
}
AFTERS: Final = ("stay", "wait past", "wait ahead", "wait", "hand back", "park", "next", "as new", *ENDS)


@dataclasses.dataclass
class ModelRun:
    """One run id. `state` is one of OPEN, or the status it was closed with. `journals` by generation; None: any row."""

    run_id: str
    input: bytes
    state: str = "ready"
    generation: int = 1
    has_started: bool = False
    owner: int | None = None
    fence: int = 0
    sent: int = 0
    seen: int = 0  # by the latest owner
    unread: list[int] = dataclasses.field(default_factory=list)
    message_ids: dict[str, int] = dataclasses.field(default_factory=dict)
    journals: dict[int, list[bytes | None]] = dataclasses.field(default_factory=lambda: {1: []})
    due_is_past: bool = False
    is_overdue: bool = False
    is_paused: bool = False
    result: bytes | None = None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def status(self) -> RunStatus:
        if not self.is_open or self.state in ("waiting", "parked"):
            return RunStatus(self.state)
        return RunStatus.RUNNING if self.has_started else RunStatus.PENDING

    def free(self) -> None:
        """Nobody drives it, and somebody should."""
        self.owner = None
        self.state = "held" if self.is_paused else "ready"

    def close(self, state: str, *rows: bytes | None) -> None:
        self.owner, self.state, self.is_paused = None, state, False
        self.journals[self.generation].extend(rows)
        if None in rows:
            self.unread.clear()  # by force: nobody will read them

    def renew(self, journal: list[bytes | None]) -> None:
        self.generation += 1
        self.has_started, self.result = False, None
        self.journals[self.generation] = journal


@dataclasses.dataclass(frozen=True)
class Hold:
    """A right to drive a run, as it was given: it may have been lost since."""

    worker: int
    run_id: str
    generation: int
    fence: int


class Model:
    """All runs and workers of one database."""

    def __init__(self) -> None:
        self.runs: dict[str, ModelRun] = {}
        self.workers: list[bool] = []  # whether each is alive
        self.requests: dict[str, tuple[str, int]] = {}
        self.paused_queue = False

    def start(self, request: StartRequest) -> str:
        """Return what the start does, or the name of the error."""
        if (repeated := self.requests.get(request.request_id)) is not None:
            run = self.runs[repeated[0]]
            is_closed = run.generation != repeated[1] or not run.is_open
            return "returned" if is_closed else "attached"
        known = self.runs.get(request.run_id)
        if known is None:
            return self._open(request, ModelRun(request.run_id, request.input))
        if known.is_open:
            if request.if_open == "fail" or (request.if_open == "attach" and known.input != request.input):
                return "RunConflictError"
            if request.if_open == "attach":
                self.requests[request.request_id] = (known.run_id, known.generation)
                return "attached"
            known.close("terminated", None)
        elif request.if_closed == "fail":
            return "RunConflictError"
        elif request.if_closed == "return" or (
            request.if_closed == "new_if_failed" and known.state == "completed"
        ):
            return "returned" if known.input == request.input else "RunConflictError"
        known.renew([])
        known.input = request.input
        return self._open(request, known)

    def _open(self, request: StartRequest, run: ModelRun) -> str:
        run.state = "delayed" if request.ready_at_us == AHEAD else "ready"
        run.is_overdue = request.deadline_us == PAST
        self.runs[run.run_id] = run
        self.requests[request.request_id] = (run.run_id, run.generation)
        return "started"

    def claimable(self) -> set[str]:
        if self.paused_queue:
            return set()
        return {run.run_id for run in self.runs.values() if run.state == "ready"}

    def claim(self, worker: int, run_id: str) -> Hold:
        run = self.runs[run_id]
        run.fence += 1
        run.owner, run.state, run.has_started, run.seen = worker, "owned", True, run.sent
        return Hold(worker, run_id, run.generation, run.fence)

    def is_valid(self, hold: Hold) -> bool:
        run = self.runs.get(hold.run_id)
        return run is not None and (run.owner, run.fence) == (hold.worker, hold.fence)

    def commit(self, hold: Hold, after: str, data: bytes, *, delivers: bool) -> str:
        if not self.workers[hold.worker]:
            return "LeaseLostError"
        if not self.is_valid(hold):
            return "lost"
        run = self.runs[hold.run_id]
        has_all = delivers or run.seen == run.sent
        if after in ("next", "as new", *ENDS) and not has_all:
            return "messages"
        run.journals[run.generation].append(data)
        if delivers:
            run.unread.clear()
            run.seen = run.sent
        if after.startswith("wait"):
            if not has_all:
                return "stayed"
            run.owner, run.state, run.due_is_past = None, "waiting", after == "wait past"
        elif after == "hand back":
            run.free()
        elif after == "park":
            run.owner, run.state = None, "parked"
        elif after in ("next", "as new"):
            kept = [] if after == "as new" else [*run.journals[run.generation][:1], b'{"last":1}']
            run.renew(kept)
            run.free()
            if after == "as new":
                run.input = data
        elif after in ENDS:
            run.close(str(ENDS[after]))
            run.result = b"1" if after == "complete" else None
        return "committed"

    def send(self, run_id: str, message_id: str | None) -> str:
        run = self.runs.get(run_id)
        if run is None:
            return "RunNotFoundError"
        if message_id in run.message_ids:
            return f"{run.message_ids[message_id]} again"  # type: ignore[index]
        if not run.is_open:
            return "WorkflowStateError"
        run.sent += 1
        run.unread.append(run.sent)
        if message_id is not None:
            run.message_ids[message_id] = run.sent
        if run.state == "waiting":
            run.free()
        return str(run.sent)


Verb = Callable[[Store, "Known"], Coroutine[Any, Any, str]]


class Known:
    """What one store calls things: its keys, workers and claim numbers."""

    def __init__(self) -> None:
        self.pks: dict[str, int] = {}
        self.workers: list[int] = []
        self.claim_nos: dict[Hold, int] = {}
        self.epochs: dict[tuple[str, int], int] = {}


class Machine(RuleBasedStateMachine):
    """Steps over all stores at `urls`, which are new databases for each example."""

    new_urls: ClassVar[Callable[[], Sequence[str]]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.stores = [self.runner.run(opened(url)) for url in type(self).new_urls()]
        self.known = [Known() for _ in self.stores]
        self.holds: list[Hold] = []
        self.made: list[StartRequest] = []
        self.count = 0

    def teardown(self) -> None:
        for store in self.stores:
            self.runner.run(store.close())
        self.runner.close()

    def ask(self, verb: Verb, expected: str) -> None:
        """Let every store do it, and compare what it says with what the model said."""
        for store, known in zip(self.stores, self.known, strict=True):
            try:
                got = self.runner.run(verb(store, known))
            except DurableError as error:
                got = type(error).__name__
            assert got == expected, f"{store.url}: {got!r}, not {expected!r}"

    def number(self) -> int:
        self.count += 1
        return self.count

    # ─ workers ──

    @precondition(lambda self: sum(self.model.workers) < 3)
    @rule()
    def register(self) -> None:
        async def verb(store: Store, known: Known) -> str:
            known.workers.append(
                await store.register_worker(WorkerInfo(name="worker", task_queue="default", definitions=W1))
            )
            return "registered"

        self.model.workers.append(True)
        self.ask(verb, "registered")

    @precondition(lambda self: any(self.model.workers))
    @rule(pick=st.integers(0, 9))
    def retire(self, pick: int) -> None:
        worker = self.alive(pick)

        async def verb(store: Store, known: Known) -> str:
            await store.retire_worker(known.workers[worker])
            return "retired"

        self.model.workers[worker] = False
        for run in self.model.runs.values():
            if run.owner == worker:
                run.free()
        self.ask(verb, "retired")

    def alive(self, pick: int) -> int:
        living = [number for number, is_alive in enumerate(self.model.workers) if is_alive]
        return living[pick % len(living)]

    # ─ starts ──

    @rule(
        run_id=st.sampled_from(RUN_IDS),
        input=st.sampled_from([b"[1]", b"[2]"]),
        if_open=st.sampled_from(["attach", "fail", "terminate"]),
        if_closed=st.sampled_from(["return", "fail", "new", "new_if_failed"]),
        ready=st.sampled_from([None, None, PAST, AHEAD]),
        deadline=st.sampled_from([None, None, PAST, AHEAD]),
    )
    def start(
        self, run_id: str, input: bytes, if_open: Any, if_closed: Any, ready: int | None, deadline: int | None
    ) -> None:
        request = StartRequest(
            run_id=run_id,
            request_id=f"request-{self.number()}",
            workflow="w",
            version=1,
            task_queue="default",
            input=input,
            ready_at_us=ready,
            deadline_us=deadline,
            if_open=if_open,
            if_closed=if_closed,
        )
        self.made.append(request)
        self.send_start(request)

    @precondition(lambda self: self.made)
    @rule(pick=st.integers(0, 9))
    def start_again(self, pick: int) -> None:
        """The answer to a start was lost: its caller repeats it (P4)."""
        self.send_start(self.made[-1 - pick % len(self.made)])

    def send_start(self, request: StartRequest) -> None:
        async def verb(store: Store, known: Known) -> str:
            (outcome,) = await store.start_runs([request], NOW)
            known.pks[outcome.run.run_id] = outcome.run.pk
            return str(outcome.how)

        self.ask(verb, self.model.start(request))

    # ─ driving ──

    @precondition(lambda self: any(self.model.workers))
    @rule(pick=st.integers(0, 9))
    def claim(self, pick: int) -> None:
        worker = self.alive(pick)
        wanted = self.model.claimable()
        holds = {run_id: self.model.claim(worker, run_id) for run_id in sorted(wanted)}
        self.holds.extend(holds.values())

        async def verb(store: Store, known: Known) -> str:
            claims = await store.claim_ready_runs(
                known.workers[worker], now_us=NOW, limit=10, task_queue="default", definitions=W1
            )
            for claim in claims:
                known.claim_nos[holds[claim.run_id]] = claim.claim_no
                run = self.model.runs[claim.run_id]
                assert [message.msg for message in claim.inbox] == run.unread
                assert same_journal([row.data for row in claim.journal], run.journals[run.generation])
                assert (claim.generation, claim.msg_seq) == (run.generation, run.sent)
                assert claim.input == run.input
            return " ".join(sorted(claim.run_id for claim in claims))

        self.ask(verb, " ".join(sorted(wanted)))

    @precondition(lambda self: self.holds)
    @rule(pick=st.integers(0, 3), after=st.sampled_from(AFTERS), delivers=st.booleans())
    def commit(self, pick: int, after: str, delivers: bool) -> None:
        """Write a turn, by right or with a hold that was lost long ago."""
        hold = self.holds[-1 - pick % len(self.holds)]
        run = self.model.runs.get(hold.run_id)
        if run is None or hold not in self.known[0].claim_nos:
            return
        data = b'{"n":%d}' % self.number()
        turn = len(run.journals.get(hold.generation, ())) + 1
        sent, seen, unread = run.sent, run.seen, [*run.unread]

        async def verb(store: Store, known: Known) -> str:
            inbox = await store.read_inbox(known.workers[hold.worker])
            consumed = [one.inbox_id for one in inbox if one.run_pk == known.pks[hold.run_id]]
            assert not self_valid or [one.msg for one in inbox if one.inbox_id in consumed] == unread
            (verdict,) = await store.commit_turns(
                known.workers[hold.worker],
                [
                    TurnCommit(
                        pk=known.pks[hold.run_id],
                        generation=hold.generation,
                        claim_no=known.claim_nos[hold],
                        turn=turn,
                        parts=(data,),
                        seen=sent if delivers else seen,
                        consumed=consumed if delivers else (),
                        after=after_of(after, data),
                    )
                ],
                NOW,
            )
            return verdict

        self_valid = self.model.workers[hold.worker] and self.model.is_valid(hold)
        self.ask(verb, self.model.commit(hold, after, data, delivers=delivers))

    @precondition(lambda self: self.holds)
    @rule(pick=st.integers(0, 3))
    def commit_twice(self, pick: int) -> None:
        """A turn that is there already: nothing is written, and the run goes to whoever reads it next."""
        hold = self.holds[-1 - pick % len(self.holds)]
        run = self.model.runs.get(hold.run_id)
        if run is None or not self.model.is_valid(hold) or not run.journals[run.generation]:
            return
        run.free()

        async def verb(store: Store, known: Known) -> str:
            again = TurnCommit(
                pk=known.pks[hold.run_id],
                generation=hold.generation,
                claim_no=known.claim_nos[hold],
                turn=1,
                parts=(b"{}",),
            )
            (verdict,) = await store.commit_turns(known.workers[hold.worker], [again], NOW)
            return verdict

        self.ask(verb, "lost")

    # ─ messages, time, people ──

    @rule(run_id=st.sampled_from(RUN_IDS), message_id=st.sampled_from([None, "m1", "m2"]))
    def send(self, run_id: str, message_id: str | None) -> None:
        async def verb(store: Store, known: Known) -> str:
            sent = await store.send_message(to(run_id, message_id=message_id), NOW)
            return f"{sent.msg} again" if sent.duplicate else str(sent.msg)

        self.ask(verb, self.model.send(run_id, message_id))

    @rule(overdue=st.booleans())
    def pass_time(self, overdue: bool) -> None:
        changed = 0
        for run in self.model.runs.values():
            if overdue and run.is_open and run.is_overdue:
                run.close("timed_out", None)
                changed += 1
            elif not overdue and run.state == "waiting" and run.due_is_past:
                run.free()
                changed += 1

        async def verb(store: Store, known: Known) -> str:
            pass_ = store.close_overdue_runs if overdue else store.wake_due_runs
            return str((await pass_(NOW)).woken)

        self.ask(verb, str(changed))

    @rule(
        run_id=st.sampled_from(RUN_IDS),
        what=st.sampled_from(["terminate", "pause", "resume", "unpark", "wake"]),
    )
    def operate(self, run_id: str, what: str) -> None:
        async def verb(store: Store, known: Known) -> str:
            match what:
                case "terminate":
                    return str(await store.terminate_run(run_id, "enough", NOW))
                case "pause":
                    return str(await store.pause_run(run_id, None, NOW))
                case "resume":
                    return str(await store.resume_run(run_id, NOW))
                case "unpark":
                    return str(await store.unpark_run(run_id, NOW))
                case _:
                    return str(await store.wake_run(run_id, NOW))

        self.ask(verb, self.operated(run_id, what))

    def operated(self, run_id: str, what: str) -> str:
        run = self.model.runs.get(run_id)
        if run is None:
            return "RunNotFoundError"
        match what:
            case "terminate" | "pause" if not run.is_open:
                return "WorkflowStateError"
            case "terminate":
                run.close("terminated", None)
                return "None"
            case "pause":
                was, run.is_paused = run.is_paused, True
                run.state = {"ready": "held", "delayed": "held"}.get(run.state, run.state)
                return str(not was)
            case "resume":
                was, run.is_paused = run.is_paused, False
                run.state = "ready" if run.state == "held" else run.state
                return str(was and run.is_open)
            case "unpark" | "wake":
                fits = run.state == ("parked" if what == "unpark" else "waiting")
                if fits:
                    run.free()
                return str(fits)
        raise AssertionError(what)

    @rule(kind=st.sampled_from(["task_queue"]))
    def pause_queue(self, kind: PauseKind) -> None:
        was, self.model.paused_queue = self.model.paused_queue, not self.model.paused_queue

        async def verb(store: Store, known: Known) -> str:
            if was:
                return str(await store.resume(kind, "default"))
            return str(await store.pause(kind, "default", None, NOW))

        self.ask(verb, "True")

    @rule(run_id=st.sampled_from(RUN_IDS), new_epoch=st.booleans())
    def reopen(self, run_id: str, new_epoch: bool) -> None:
        run = self.model.runs.get(run_id)
        if run is None:
            return
        generation, was_open = run.generation, run.is_open
        if not was_open:
            run.renew(run.journals[generation][:1])
            run.state = "ready"  # and as overdue as it was begun: the time allowed for it begins anew, and stays what it was

        async def verb(store: Store, known: Known) -> str:
            again = Reopen(
                pk=known.pks[run_id],
                run_id=run_id,
                generation=generation,
                attempt=2,
                copy_turns=1,
                new_epoch=new_epoch,
            )
            return str(await store.reopen_run(again, NOW))

        self.ask(verb, "WorkflowStateError" if was_open else "None")

    @rule(run_id=st.sampled_from(RUN_IDS))
    def prune(self, run_id: str) -> None:
        run = self.model.runs.get(run_id)
        if run is None:
            return
        if not run.is_open:
            del self.model.runs[run_id]
            for request, (named, _) in [*self.model.requests.items()]:
                if named == run_id:
                    del self.model.requests[request]

        async def verb(store: Store, known: Known) -> str:
            pk = known.pks[run_id]
            done = await store.prune_runs([pk], ClosedRuns(before_us=AHEAD), NOW)
            assert await store.find_gone([pk]) == [pk] * done.runs
            if done.runs:
                known.epochs = {place: epoch for place, epoch in known.epochs.items() if place[0] != run_id}
            return str(done.runs)

        self.ask(verb, str(int(not run.is_open)))

    # ─ what must be so after each step ──

    @invariant()
    def all_can_be_read_as_the_model_has_it(self) -> None:
        for store, known in zip(self.stores, self.known, strict=True):
            self.runner.run(self.compare(store, known))

    async def compare(self, store: Store, known: Known) -> None:
        for run in self.model.runs.values():
            record = await store.get_run(run.run_id)
            got = (record.status, record.generation, record.unread, record.result, record.input)
            wanted = (run.status, run.generation, len(run.unread), run.result, run.input)
            assert got == wanted, f"{store.url}: {run.run_id} is {got}, not {wanted}"
            assert (record.owner is not None) == (run.owner is not None), run.run_id
            assert not run.is_open or (record.paused_at_us is not None) == run.is_paused, run.run_id
            epoch = known.epochs.setdefault((run.run_id, run.generation), record.epoch)
            assert epoch == record.epoch >= known.epochs.get((run.run_id, run.generation - 1), 0)
            for generation, journal in run.journals.items():
                rows = await store.read_journal(known.pks[run.run_id], generation)
                assert same_journal([row.data for row in rows], journal), (run.run_id, generation)
                assert [row.turn for row in rows] == list(range(1, len(rows) + 1))
        for number, is_alive in enumerate(self.model.workers):
            owned = {run_id for run_id, run in self.model.runs.items() if run.owner == number}
            if is_alive:
                found = await store.owned_runs(known.workers[number])
                assert found.keys() == {known.pks[run_id] for run_id in owned}


def same_journal(found: Sequence[bytes], wanted: Sequence[bytes | None]) -> bool:
    return len(found) == len(wanted) and all(b is None or a == b for a, b in zip(found, wanted, strict=True))


def after_of(name: str, data: bytes) -> Any:
    match name:
        case "stay":
            return Stay()
        case "hand back":
            return HandBack()
        case "park":
            return Park(reason="stuck")
        case "next" | "as new":
            is_new = name == "as new"
            return NextGeneration(
                failure=None if is_new else b"{}",
                copy_turns=0 if is_new else 1,
                parts=() if is_new else (b'{"last":1}',),
                redeliver=(),
                ready_at_us=PAST,
                attempt=1 if is_new else 2,
                input=data if is_new else None,
            )
        case "wait" | "wait past" | "wait ahead":
            return Wait(due_at_us={"wait": None, "wait past": PAST, "wait ahead": AHEAD}[name])
        case _:
            return Close(status=ENDS[name], result=b"1" if name == "complete" else None)
