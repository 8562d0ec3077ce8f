"""Starts: policies, request ids, epochs, delays, bulk."""

from __future__ import annotations

import pytest
from store_steps import NOW, SECOND, a_worker, claim, close, journal, request, start, started_by, status

from durable.errors import LeaseLostError, RunConflictError, RunNotFoundError
from durable.journal.events import Terminated
from durable.journal.lifecycle import RunStatus
from durable.journal.turns import decode_turn
from durable.store.contract import Store


async def test_a_new_run_is_pending_until_somebody_drives_it(store: Store) -> None:
    """Pending means that nobody has driven the run yet; a claim makes it running."""
    outcome = await start(store, "order-1", input=b"[7]")

    assert (outcome.how, outcome.claim) == ("started", None)
    assert outcome.run == await store.get_run("order-1")
    assert outcome.run.status is RunStatus.PENDING

    worker = await a_worker(store)
    (held,) = await claim(store, worker)
    assert held.input == b"[7]"
    assert await status(store, "order-1") is RunStatus.RUNNING


async def test_a_starter_can_own_its_run_at_once(store: Store) -> None:
    """A start with an owner is a start and a claim in one transaction."""
    worker = await a_worker(store, "me")

    held = await started_by(store, worker, "order-1")

    run = await store.get_run("order-1")
    assert (run.owner, run.owner_name, run.owner_is_alive) == (worker, "me", True)
    assert await store.owned_runs(worker) == {held.pk: held.claim_no}


async def test_a_dead_worker_starts_nothing(store: Store) -> None:
    """Ownership at the start is fenced like any claim."""
    worker = await a_worker(store)
    await store.retire_worker(worker)

    with pytest.raises(LeaseLostError):
        await start(store, "order-1", owner=worker)
    with pytest.raises(RunNotFoundError):
        await store.get_run("order-1")


async def prepared(store: Store, worker: int, before: str) -> None:
    """Leave run "x" open, or closed in the given way."""
    held = await started_by(store, worker, "x", input=b"[1]")
    if before != "open":
        await close(store, worker, held, RunStatus(before))


@pytest.mark.parametrize(
    ("before", "policies", "how", "generation", "epoch"),
    [
        ("open", {"if_open": "attach"}, "attached", 1, 1),
        ("open", {"if_open": "fail"}, "conflict", 1, 1),
        ("open", {"if_open": "terminate"}, "started", 2, 2),
        ("completed", {"if_closed": "return"}, "returned", 1, 1),
        ("completed", {"if_closed": "fail"}, "conflict", 1, 1),
        ("completed", {"if_closed": "new"}, "started", 2, 2),
        ("completed", {"if_closed": "new_if_failed"}, "returned", 1, 1),
        ("failed", {"if_closed": "new_if_failed"}, "started", 2, 2),
        ("cancelled", {"if_closed": "new_if_failed"}, "started", 2, 2),
        ("failed", {"if_closed": "return"}, "returned", 1, 1),
    ],
)
async def test_the_database_decides_by_policy(
    store: Store, before: str, policies: dict[str, str], how: str, generation: int, epoch: int
) -> None:
    """One transaction looks at what is there and does what the policy says."""
    worker = await a_worker(store)
    await prepared(store, worker, before)

    if how == "conflict":
        with pytest.raises(RunConflictError) as raised:
            await start(store, "x", input=b"[1]", **policies)
        assert raised.value.run_id == "x"
    else:
        assert (await start(store, "x", input=b"[1]", **policies)).how == how

    run = await store.get_run("x")
    assert (run.generation, run.epoch) == (generation, epoch)


@pytest.mark.parametrize("before", ["open", "completed"])
@pytest.mark.parametrize("other", [{"input": b"[2]"}, {"workflow": "v"}])
async def test_other_input_or_another_workflow_is_a_conflict(
    store: Store, before: str, other: dict[str, object]
) -> None:
    """Attaching to, or returning, a run that is not what the caller means would be silent nonsense."""
    worker = await a_worker(store)
    await prepared(store, worker, before)

    with pytest.raises(RunConflictError):
        await start(store, "x", **{"input": b"[1]", **other})


async def test_a_repeated_request_returns_its_run_whatever_the_policies_say(store: Store) -> None:
    """A client that asks again after an unknown commit does not terminate the run it just started (P4)."""
    asked = request("x", if_open="terminate", if_closed="new")

    (first,) = await store.start_runs([asked], NOW)
    (second,) = await store.start_runs([asked], NOW)
    assert (second.how, second.run.generation) == ("attached", 1)

    worker = await a_worker(store)
    (held,) = await claim(store, worker)
    await close(store, worker, held)
    (third,) = await store.start_runs([asked], NOW)
    assert (third.how, third.run.pk, third.run.generation) == ("returned", first.run.pk, 1)


async def test_a_repeated_request_returns_its_generation_not_a_later_one(store: Store) -> None:
    """The request belongs to the generation it started, also when another start has followed."""
    asked = request("x")
    await store.start_runs([asked], NOW)
    await start(store, "x", if_open="terminate")

    (again,) = await store.start_runs([asked], NOW)

    assert (again.run.generation, again.run.status) == (1, RunStatus.TERMINATED)


async def test_a_repeated_request_of_the_owner_gets_its_claim_again(store: Store) -> None:
    """The answer to an owned start may be lost; the owner must still learn what it owns."""
    worker = await a_worker(store)
    asked = request("x", owner=worker)
    (first,) = await store.start_runs([asked], NOW)

    (again,) = await store.start_runs([asked], NOW)

    assert again.claim == first.claim


async def test_a_request_that_attached_stays_attached(store: Store) -> None:
    """Repeating an attach after the run closed must not start another, even under `if_closed="new"` (P4)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    asked = request("x", if_closed="new")
    assert (await store.start_runs([asked], NOW))[0].how == "attached"
    await close(store, worker, held)

    (again,) = await store.start_runs([asked], NOW)

    assert (again.how, again.run.generation) == ("returned", 1)


async def test_a_new_start_under_a_closed_id_is_a_new_life(store: Store) -> None:
    """Next generation, next epoch, empty journal; the old generation stays readable (P6)."""
    worker = await a_worker(store)
    old = await started_by(store, worker, "x", input=b"[1]")
    await close(store, worker, old)

    new = await started_by(store, worker, "x", input=b"[2]", if_closed="new")

    assert (new.pk, new.generation, new.epoch) == (old.pk, 2, 2)
    assert new.claim_no > old.claim_no
    assert await journal(store, new) == []
    assert len(await journal(store, old, generation=1)) == 1
    first = await store.get_run("x", 1)
    assert (first.status, first.input, first.result) == (RunStatus.COMPLETED, b"[1]", b"1")


async def test_terminate_and_start_closes_the_old_generation_with_its_journal_row(store: Store) -> None:
    """Both halves are one transaction; the old journal says how it ended."""
    worker = await a_worker(store)
    old = await started_by(store, worker, "x")

    await start(store, "x", if_open="terminate")

    (row,) = await store.read_journal(old.pk, 1)
    assert isinstance(decode_turn(row.data).entries[0], Terminated)
    assert await store.owned_runs(worker) == {}


async def test_a_delayed_start_cannot_be_claimed_before(store: Store) -> None:
    """`ready_at_us` holds a start back; the timer service is told when it becomes claimable."""
    worker = await a_worker(store)
    outcome = await start(store, "x", ready_at_us=NOW + SECOND)
    assert outcome.run.due_at_us == NOW + SECOND

    assert await claim(store, worker, now_us=NOW + SECOND - 1) == []
    assert (await store.wake_due_runs(NOW)).next_due_us == NOW + SECOND
    assert len(await claim(store, worker, now_us=NOW + SECOND)) == 1


async def test_one_conflict_writes_nothing_at_all(store: Store) -> None:
    """Starts of one call stand or fall together."""
    await start(store, "taken", input=b"[1]")

    with pytest.raises(RunConflictError):
        await store.start_runs([request("a"), request("taken", input=b"[2]"), request("b")], NOW)
    for run_id in ("a", "b"):
        with pytest.raises(RunNotFoundError):
            await store.get_run(run_id)


async def test_one_call_may_name_a_run_twice(store: Store) -> None:
    """Later requests of a call see what earlier ones did."""
    outcomes = await store.start_runs(
        [request("x"), request("x"), request("x", if_open="terminate"), request("y")], NOW
    )

    assert [outcome.how for outcome in outcomes] == ["started", "attached", "started", "started"]
    assert outcomes[2].run.generation == 2


async def test_ten_thousand_starts_are_one_call(store: Store) -> None:
    """Bulk enqueue is one transaction."""
    outcomes = await store.start_runs([request(f"run-{n}") for n in range(10_000)], NOW)

    assert {outcome.how for outcome in outcomes} == {"started"}
    assert (await store.get_run("run-9999")).pk == outcomes[-1].run.pk
    assert [(one.state, one.runs) for one in (await store.read_health()).open_runs] == [("ready", 10_000)]
