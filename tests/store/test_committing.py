"""The group commit: fences, verdicts, what follows a turn."""

from __future__ import annotations

import msgspec
import pytest
from store_steps import (
    NOW,
    SECOND,
    a_worker,
    claim,
    close,
    commit,
    journal,
    signal,
    start,
    started_by,
    status,
    to,
    turn,
)

from durable.errors import LeaseLostError, RunConflictError, WorkflowStateError
from durable.journal.lifecycle import RunStatus
from durable.store.contract import Store
from durable.store.records import (
    AttemptRow,
    Close,
    HandBack,
    NextGeneration,
    Outgoing,
    Park,
    Redelivery,
    Wait,
    answer_id,
)

DONE = Close(status=RunStatus.COMPLETED, result=b"42")


async def test_a_batch_is_written_and_read_back_byte_for_byte(store: Store) -> None:
    """A turn is what its worker wrote, parts in order."""
    worker = await a_worker(store)
    runs = [await started_by(store, worker, f"r{n}") for n in range(20)]

    verdicts = await commit(store, worker, *(turn(held, 1, held.run_id.encode()) for held in runs))
    await commit(store, worker, turn(runs[0], 2, parts=(b"x", b"y")))

    assert verdicts == ["committed"] * 20
    assert [await journal(store, held) for held in runs[1:]] == [
        [(1, held.run_id.encode())] for held in runs[1:]
    ]
    assert await journal(store, runs[0]) == [(1, b"r0"), (2, b"x"), (2, b"y")]


async def test_a_dead_incarnation_writes_nothing(store: Store) -> None:
    """A worker that was declared dead learns it at its next commit (P8)."""
    zombie = await a_worker(store)
    held = await started_by(store, zombie, "x")
    await store.retire_worker(zombie)

    with pytest.raises(LeaseLostError):
        await commit(store, zombie, turn(held))
    assert await journal(store, held) == []


@pytest.mark.parametrize(
    "after",
    [None, Wait(due_at_us=None), HandBack(), Park(reason="?"), DONE,
     NextGeneration(failure=b"{}", copy_turns=0, parts=(b"n",), redeliver=(), ready_at_us=NOW, attempt=2),
     NextGeneration(failure=None, copy_turns=0, parts=(), redeliver=(), ready_at_us=NOW, attempt=1, input=b"[2]")],
)  # fmt: skip
async def test_a_live_worker_writes_nothing_to_a_run_it_lost(store: Store, after: object) -> None:
    """The second half of the fence: the claim number, for whatever follows the turn (P8)."""
    one, two = await a_worker(store), await a_worker(store)
    stale = await started_by(store, one, "x")
    await commit(store, one, turn(stale, None, after=HandBack()))
    (held,) = await claim(store, two)
    changes = {} if after is None else {"after": after}

    assert await commit(store, one, turn(stale, 1, b"stale", **changes)) == ["lost"]
    assert await commit(store, one, turn(stale, None, **changes)) == ["lost"]
    assert await commit(store, two, turn(held, 1, b"good")) == ["committed"]
    assert await journal(store, held) == [(1, b"good")]


async def test_a_stale_claim_of_the_same_worker_writes_nothing(store: Store) -> None:
    """A worker that lost a run and got it back does not mix its two lives."""
    worker = await a_worker(store)
    stale = await started_by(store, worker, "x")
    await commit(store, worker, turn(stale, None, after=HandBack()))
    (held,) = await claim(store, worker)

    assert await commit(store, worker, turn(stale), turn(held, 1, b"good")) == ["lost", "committed"]


async def test_one_bad_run_in_a_batch_costs_one_run(store: Store) -> None:
    """Lost runs and key conflicts leave their neighbours alone (P17)."""
    worker = await a_worker(store)
    good, lost, conflict, closing = [await started_by(store, worker, name) for name in "abcd"]
    await commit(store, worker, turn(conflict, 1, b"first"))
    await store.terminate_run("b", None, NOW)

    verdicts = await commit(
        store, worker, turn(good), turn(lost), turn(conflict, 1, b"second"), turn(closing, after=DONE)
    )

    assert verdicts == ["committed", "lost", "lost", "committed"]
    assert await journal(store, conflict) == [(1, b"first")]
    assert await status(store, "d") is RunStatus.COMPLETED


async def test_after_a_key_conflict_anybody_may_go_on(store: Store) -> None:
    """The run is handed back, so that it is not left with an owner that dropped it."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await commit(store, worker, turn(held, 1, b"first"))

    assert await commit(store, worker, turn(held, 1, b"second")) == ["lost"]

    (again,) = await claim(store, worker)
    assert [row.data for row in again.journal] == [b"first"]


async def test_a_conflicting_item_leaves_no_mark(store: Store) -> None:
    """All or nothing per item: neither messages nor attempts of a refused turn change."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await commit(store, worker, turn(held, 1))
    await signal(store, "x")
    (message,) = await store.read_inbox(worker)
    row = AttemptRow(op=1, attempt=1, state="started")

    bad = turn(held, 1, consumed=[message.inbox_id], attempts=[row], seen=1, after=DONE)
    assert await commit(store, worker, bad) == ["lost"]

    assert await store.read_attempts(held.pk, 1) == []
    assert (await store.get_run("x")).unread == 1
    assert await status(store, "x") is RunStatus.RUNNING


async def test_two_turns_of_one_run_in_a_batch_are_written_in_order(store: Store) -> None:
    """A batch is as good as its items one after the other."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")

    verdicts = await commit(
        store, worker, turn(held, 1), turn(held, 2, after=Wait(due_at_us=None)), turn(held, 3)
    )

    assert verdicts == ["committed", "committed", "lost"]
    assert [number for number, _ in await journal(store, held)] == [1, 2]


async def test_consumed_messages_are_removed_by_id(store: Store) -> None:
    """No watermark: what was consumed is listed (P3)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    for _ in range(3):
        await signal(store, "x")
    first, second, third = await store.read_inbox(worker)

    await commit(store, worker, turn(held, 1, consumed=[first.inbox_id, third.inbox_id], seen=3))

    assert await store.read_inbox(worker) == [second]


async def test_a_wait_releases_the_run(store: Store) -> None:
    """A waiting run has no owner and shows its timer."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")

    assert await commit(store, worker, turn(held, after=Wait(due_at_us=NOW + SECOND))) == ["committed"]

    run = await store.get_run("x")
    assert (run.status, run.owner, run.due_at_us) == (RunStatus.WAITING, None, NOW + SECOND)
    assert await store.owned_runs(worker) == {}


async def test_no_run_sleeps_with_a_message(store: Store) -> None:
    """A message that arrived meanwhile refuses the wait; the turn itself is kept and the run stays (P2)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await signal(store, "x")

    assert await commit(store, worker, turn(held, 1, seen=0, after=Wait(due_at_us=None))) == ["stayed"]
    assert await journal(store, held) == [(1, b"{}")]
    assert await store.owned_runs(worker) == {held.pk: held.claim_no}
    assert await commit(store, worker, turn(held, 2, seen=1, after=Wait(due_at_us=None))) == ["committed"]


@pytest.mark.parametrize(
    "after",
    [
        DONE,
        NextGeneration(failure=b"{}", copy_turns=0, parts=(b"n",), redeliver=(), ready_at_us=NOW, attempt=2),
        NextGeneration(
            failure=None, copy_turns=0, parts=(), redeliver=(), ready_at_us=NOW, attempt=1, input=b"[2]"
        ),
    ],
)
async def test_no_run_closes_with_a_message(store: Store, after: object) -> None:
    """A close is refused with its whole item until the message is delivered (P2)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await signal(store, "x")

    assert await commit(store, worker, turn(held, 1, seen=0, after=after)) == ["messages"]
    assert await journal(store, held) == []
    assert await store.owned_runs(worker) == {held.pk: held.claim_no}


async def test_a_close_writes_the_end_once(store: Store) -> None:
    """Status, result and time are there with the last turn; a closed run has no attempts left."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await commit(store, worker, turn(held, 1, attempts=[AttemptRow(op=1, attempt=1, state="started")]))

    await commit(store, worker, turn(held, 2, after=DONE), now_us=NOW + 5)

    run = await store.get_run("x")
    assert (run.status, run.result, run.closed_at_us, run.owner) == (
        RunStatus.COMPLETED,
        b"42",
        NOW + 5,
        None,
    )
    assert await store.read_attempts(held.pk, 1) == []
    assert [ended.run_id for ended in await store.read_ended([(held.pk, 1)])] == ["x"]
    assert await commit(store, worker, turn(held, 3)) == ["lost"]


async def test_a_hand_back_is_ready_for_others_at_once(store: Store) -> None:
    """Handing back needs no journal row."""
    one, two = await a_worker(store), await a_worker(store)
    held = await started_by(store, one, "x")

    assert await commit(store, one, turn(held, None, after=HandBack())) == ["committed"]

    assert [other.run_id for other in await claim(store, two)] == ["x"]


async def test_a_parked_run_waits_for_good_code(store: Store) -> None:
    """Parked: not claimable, messages do not wake it, its reason is shown; unparking makes it ready."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")

    await commit(store, worker, turn(held, None, after=Park(reason="non-determinism")))
    assert [ended.reason for ended in await store.read_ended([(held.pk, 1)])] == ["non-determinism"]
    await signal(store, "x")
    assert await status(store, "x") is RunStatus.PARKED
    assert await claim(store, worker) == []

    assert await store.unpark_run("x", NOW)
    assert not await store.unpark_run("x", NOW)
    (again,) = await claim(store, worker)
    assert len(again.inbox) == 1
    assert (await store.get_run("x")).reason is None


@pytest.mark.parametrize("after", [Park(reason="non-determinism"), HandBack()])
async def test_what_could_not_be_recorded_waits_in_the_inbox(store: Store, after: Park | HandBack) -> None:
    """With the change of hands, or not at all; once, however often it is told (an answer from outside may have been first)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    row = AttemptRow(op=1, attempt=2, state="started", completion="answered")
    answer = Outgoing(run_id="x", kind="activity", name="completed", data=b"7", message_id=answer_id(1, 1, 2))
    known = msgspec.structs.replace(answer, message_id=answer_id(1, 2, 1))
    await store.send_message(known, NOW)
    given = {"attempts": [row], "answers": [answer, known], "after": after}

    assert await commit(store, await a_worker(store), turn(held, None, **given)) == ["lost"]
    assert await store.read_attempts(held.pk, 1) == []
    assert await commit(store, worker, turn(held, None, **given)) == ["committed"]
    if isinstance(after, Park):
        assert await store.unpark_run("x", NOW)

    (again,) = await claim(store, worker)
    assert [(one.message_id, one.kind, one.name, one.data) for one in again.inbox] == [
        (known.message_id, "activity", "completed", b"7"),
        (answer.message_id, "activity", "completed", b"7"),
    ]
    assert list(again.attempts) == [row]


async def test_attempts_are_upserted_and_removed(store: Store) -> None:
    """The durable count of an activity lives until its outcome is recorded (P22)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    first = AttemptRow(op=1, attempt=1, state="started")
    other = AttemptRow(op=2, attempt=1, state="handed_back")
    failed = AttemptRow(op=1, attempt=1, state="backoff", due_at_us=NOW, failure=b'{"message":"no"}')

    await commit(store, worker, turn(held, 1, attempts=[first, other]))
    assert await store.read_attempts(held.pk, 1) == [first, other]
    await commit(store, worker, turn(held, None, attempts=[failed], attempts_done=[2]))
    assert await store.read_attempts(held.pk, 1) == [failed]
    assert [row.turn for row in await store.read_journal(held.pk, 1)] == [1]


async def test_a_retried_workflow_opens_the_next_generation(store: Store) -> None:
    """The prefix is copied, the epoch kept, later messages come back under their numbers (P7, P1)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x", input=b"[5]", deadline_us=NOW + 99 * SECOND)
    await signal(store, "x", message_id="m", data=b'"late"')
    (message,) = await store.read_inbox(worker)
    await commit(store, worker, turn(held, 1, b"one"), turn(held, 2, b"two"))
    await commit(store, worker, turn(held, 3, b"three", consumed=[message.inbox_id], seen=1))
    back = Redelivery(msg=1, kind="signal", name="go", data=b'"late"', message_id="m")
    step = NextGeneration(
        failure=b'{"message":"boom"}',
        copy_turns=2,
        parts=(b"retried",),
        redeliver=(back,),
        ready_at_us=NOW + SECOND,
        attempt=2,
    )

    assert await commit(store, worker, turn(held, 4, b"failed", seen=1, after=step)) == ["committed"]

    assert [data for _, data in await journal(store, held)] == [b"one", b"two", b"three", b"failed"]
    closed = await store.get_run("x", 1)
    assert (closed.status, closed.failure) == (RunStatus.CONTINUED, b'{"message":"boom"}')
    assert [ended.generation for ended in await store.read_ended([(held.pk, 1), (held.pk, 2)])] == [1]
    assert await claim(store, worker, now_us=NOW + SECOND - 1) == []
    assert (await store.wake_due_runs(NOW)).next_due_us == NOW + SECOND
    (again,) = await claim(store, worker, now_us=NOW + SECOND)
    assert [(row.turn, row.data) for row in again.journal] == [(1, b"one"), (2, b"two"), (3, b"retried")]
    assert (again.generation, again.epoch, again.attempt, again.input) == (2, 1, 2, b"[5]")
    assert again.deadline_us == NOW + 99 * SECOND
    assert [(m.msg, m.data, m.message_id) for m in again.inbox] == [(1, b'"late"', "m")]
    assert await signal(store, "x") == 2


async def test_a_run_that_continues_as_new_begins_with_nothing_but_its_messages(store: Store) -> None:
    """Another input, another epoch, an empty journal; the deadline stays, and so does what nobody has read (P1, P6)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x", input=b"[5]", deadline_us=NOW + 99 * SECOND)
    for number in (1, 2, 3):
        await signal(store, "x", data=b"%d" % number)
    first, second, _ = await store.read_inbox(worker)
    await commit(store, worker, turn(held, 1, consumed=[first.inbox_id, second.inbox_id], seen=2))
    unread = Redelivery(msg=1, kind="signal", name="go", data=b"1", message_id=None)
    step = NextGeneration(
        failure=None,
        copy_turns=0,
        parts=(),
        redeliver=(unread,),
        ready_at_us=NOW,
        attempt=1,
        input=b"[6]",
        idle_generations=7,
        new_epoch=True,
    )

    assert await commit(store, worker, turn(held, 2, b"end", seen=3, after=step)) == ["committed"]

    closed = await store.get_run("x", 1)
    assert (closed.status, closed.input, closed.failure) == (RunStatus.CONTINUED, b"[5]", None)
    assert [data for _, data in await journal(store, held)] == [b"{}", b"end"]
    (again,) = await claim(store, worker)
    assert (again.generation, again.epoch, again.attempt, again.input) == (2, 2, 1, b"[6]")
    assert (again.journal, again.idle_generations) == ([], 7)
    assert again.deadline_us == NOW + 99 * SECOND
    assert [(m.msg, m.data) for m in again.inbox] == [(1, b"1"), (3, b"3")]
    attached = await start(store, "x", input=b"[5]")
    assert (attached.how, attached.run.generation) == ("attached", 2)
    with pytest.raises(RunConflictError):
        await start(store, "x", input=b"[6]")


async def test_a_redelivered_message_id_is_still_known(store: Store) -> None:
    """Deduplication outlives consumption, generations and redelivery (P4)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await signal(store, "x", message_id="m")
    (message,) = await store.read_inbox(worker)
    step = NextGeneration(failure=b"{}", copy_turns=0, parts=(), redeliver=(), ready_at_us=NOW, attempt=2)
    await commit(store, worker, turn(held, 1, consumed=[message.inbox_id], seen=1, after=step))

    assert (await store.send_message(to("x", message_id="m"), NOW)).duplicate


async def test_a_terminated_run_fences_its_owner_out(store: Store) -> None:
    """Termination needs nobody's consent: the owner's next turn is lost, the run is closed for good."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await commit(store, worker, turn(held, 1, attempts=[AttemptRow(op=1, attempt=1, state="started")]))
    await signal(store, "x")

    await store.terminate_run("x", "enough", NOW)

    run = await store.get_run("x")
    assert (run.status, run.reason, run.owner, run.unread) == (RunStatus.TERMINATED, "enough", None, 0)
    assert await store.read_attempts(held.pk, 1) == []
    assert await commit(store, worker, turn(held, 2)) == ["lost"]
    assert [number for number, _ in await journal(store, held)] == [1, 2]
    with pytest.raises(WorkflowStateError):
        await store.terminate_run("x", None, NOW)


async def test_reads_extend_earlier_reads(store: Store) -> None:
    """A journal only grows."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    before: list[tuple[int, bytes]] = []
    for number in range(1, 6):
        await commit(store, worker, turn(held, number, b"%d" % number))
        now = await journal(store, held)
        assert now[: len(before)] == before
        before = now
    await close(store, worker, held, number=6)
    assert (await journal(store, held))[:5] == before
    await start(store, "x", if_closed="new")
    assert (await journal(store, held, generation=1))[:5] == before
