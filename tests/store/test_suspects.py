"""Suspects, poison and second chances: what a death says of the runs that were held, and who may try a parked one again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from store_steps import NOW, SECOND, W1, a_worker, claim, commit, journal, start, started_by, status, turn

from durable.errors import LeaseLostError
from durable.journal.lifecycle import RunStatus
from durable.store.contract import Store
from durable.store.records import (
    CRASH,
    CRASHES_MAX,
    After,
    Claim,
    Close,
    HandBack,
    NextGeneration,
    Park,
    Rescue,
    Trial,
    Wait,
)

Opener = Callable[[], Awaitable[Store]]


async def dead_after(
    store: Store,
    opener: Opener,
    *run_ids: str,
    alone: str | None = None,
    held: bool = False,
    at_rest: bool = False,
) -> Rescue:
    """Have a worker of another process claim (or, if `held`, start) runs, drive one of them alone, and die; take them back.

    `at_rest`: it dies when the code of the one it drives has come to rest.
    """
    other = await opener()
    worker = await a_worker(other, "doomed")
    if held:
        claims = [await started_by(other, worker, run_id) for run_id in run_ids]
    else:
        claims = await claim(other, worker)
    if alone is not None:
        assert await other.try_suspect(worker, Trial(suspect=key(claims, alone), code="c0de"))
        await other.note_code(worker, key(claims, alone), is_running=True)
        if at_rest:
            await other.note_code(worker, key(claims, alone), is_running=False)
    await other.close()
    (rescue,) = await store.rescue_dead_workers(10.0)
    return rescue


def key(claims: list[Claim], run_id: str) -> tuple[int, int]:
    return next((one.pk, one.claim_no) for one in claims if one.run_id == run_id)


async def suspects(store: Store, worker: int) -> dict[str, bool]:
    """Claim all that is ready and tell who is a suspect."""
    return {one.run_id: one.is_suspect for one in await claim(store, worker)}


async def test_all_runs_of_a_worker_that_died_are_suspects(store: Store, opener: Opener) -> None:
    """Nobody knows which of them ended it; runs of others are none."""
    rescue = await dead_after(store, opener, "a", "b", held=True)
    await start(store, "c")

    assert (rescue.runs, rescue.poison) == (2, ())
    assert await suspects(store, await a_worker(store)) == {"a": True, "b": True, "c": False}


async def test_a_worker_that_stops_in_order_leaves_no_suspects(store: Store) -> None:
    """Nor does one that hands a suspect back while it drives it alone."""
    worker = await a_worker(store)
    await started_by(store, worker, "a")
    await store.retire_worker(worker)

    assert await suspects(store, await a_worker(store)) == {"a": False}


async def test_a_suspect_that_got_on_is_none_any_more(store: Store, opener: Opener) -> None:
    """What passed is cleared with the next record; what was adjourned is not."""
    await dead_after(store, opener, "a", "b", held=True)
    worker = await a_worker(store)
    claims = await claim(store, worker)
    a, b = key(claims, "a"), key(claims, "b")
    assert await store.try_suspect(worker, Trial(suspect=a))
    assert await store.try_suspect(worker, Trial(suspect=b, passed=[a]))
    assert not await store.try_suspect(worker, Trial(suspect=None, adjourned=[b]))

    owned = {one.run_id: one.is_suspect for one in await store.read_claims(worker, [a[0], b[0]])}
    assert owned == {"a": False, "b": True}


async def test_a_death_during_a_trial_is_blamed_on_that_run_alone(store: Store, opener: Opener) -> None:
    """The others that the worker held did nothing: they were not driven."""
    await dead_after(store, opener, "guilty", held=True)
    await start(store, "other")

    rescue = await dead_after(store, opener, alone="guilty")

    assert (rescue.runs, rescue.poison) == (2, ())
    assert await suspects(store, await a_worker(store)) == {"guilty": True, "other": False}


async def test_a_run_that_ended_its_workers_too_often_is_parked(store: Store, opener: Opener) -> None:
    """With a reason for people; its journal is untouched, and nobody claims it."""
    await dead_after(store, opener, "guilty", held=True)
    for _ in range(CRASHES_MAX - 1):
        assert (await dead_after(store, opener, alone="guilty")).poison == ()

    last = await dead_after(store, opener, alone="guilty")

    assert (last.runs, last.poison) == (0, ("guilty",))
    record = await store.get_run("guilty")
    assert record.status is RunStatus.PARKED
    assert record.reason is not None
    assert record.reason.startswith(f"PoisonError: run 'guilty' ended its worker {CRASHES_MAX} times")
    worker = await a_worker(store)
    assert await claim(store, worker) == []
    assert await store.read_journal(record.pk, 1) == []


async def test_a_death_while_its_code_is_at_rest_proves_little(store: Store, opener: Opener) -> None:
    """Something else ended the process, most likely; only very many of them in a row do."""
    await dead_after(store, opener, "unlucky", "other", held=True)
    for _ in range(CRASHES_MAX):
        assert (await dead_after(store, opener, alone="unlucky", at_rest=True)).poison == ()
    for _ in range(CRASHES_MAX - 1):
        assert (await dead_after(store, opener, alone="unlucky")).poison == ()
    for _ in range(CRASH - CRASHES_MAX - 1):
        assert (await dead_after(store, opener, alone="unlucky", at_rest=True)).poison == ()

    last = await dead_after(store, opener, alone="unlucky", at_rest=True)

    assert last.poison == ("unlucky",)


async def test_resumed_poison_has_one_chance(store: Store, opener: Opener) -> None:
    """It is tried alone again, and the next death parks it."""
    await dead_after(store, opener, "guilty", held=True)
    for _ in range(CRASHES_MAX):
        await dead_after(store, opener, alone="guilty")

    assert await store.unpark_run("guilty", NOW)
    assert (await store.get_run("guilty")).failure is None
    again = await dead_after(store, opener, alone="guilty")

    assert again.poison == ("guilty",)


async def test_getting_on_wipes_the_slate(store: Store, opener: Opener) -> None:
    """Crashes count in a row only: deaths years apart are no proof."""
    await dead_after(store, opener, "unlucky", held=True)
    for _ in range(CRASHES_MAX + 1):
        assert (await dead_after(store, opener, alone="unlucky")).poison == ()
        worker = await a_worker(store)
        (held,) = await claim(store, worker)
        assert held.is_suspect
        await store.try_suspect(worker, Trial(suspect=(held.pk, held.claim_no)))
        await store.try_suspect(worker, Trial(suspect=None, passed=[(held.pk, held.claim_no)]))
        await store.retire_worker(worker)


async def test_a_trial_is_fenced(store: Store, opener: Opener) -> None:
    """A worker tries only what is its own, and only while it is alive."""
    await dead_after(store, opener, "a", held=True)
    worker, other = await a_worker(store), await a_worker(store, "other")
    (held,) = await claim(store, worker)
    mine = Trial(suspect=(held.pk, held.claim_no))

    assert not await store.try_suspect(other, mine)
    assert not await store.try_suspect(worker, Trial(suspect=(held.pk, held.claim_no - 1)))
    await store.retire_worker(worker)
    with pytest.raises(LeaseLostError):
        await store.try_suspect(worker, mine)


async def test_a_trial_ends_when_the_run_rests(store: Store, opener: Opener) -> None:
    """Whoever claims it later and dies is not taken for somebody who drove it alone."""
    await dead_after(store, opener, "a", held=True)
    worker = await a_worker(store)
    (held,) = await claim(store, worker)
    await store.try_suspect(worker, Trial(suspect=(held.pk, held.claim_no)))
    assert await commit(store, worker, turn(held, 1, after=Wait(due_at_us=NOW))) == ["committed"]
    await store.wake_due_runs(NOW)
    for _ in range(CRASHES_MAX + 1):
        assert (await dead_after(store, opener)).poison == ()


async def test_a_new_life_under_the_same_id_is_no_suspect(store: Store, opener: Opener) -> None:
    """Another start, another input: nothing is known against it."""
    await dead_after(store, opener, "a", held=True)
    worker = await a_worker(store)
    (held,) = await claim(store, worker)
    done = turn(held, 1, after=Close(status=RunStatus.FAILED, failure=b"{}"))
    assert await commit(store, worker, done) == ["committed"]
    await start(store, "a", if_closed="new")

    assert await suspects(store, worker) == {"a": False}


# ─ parked runs ──


async def parked_by(store: Store, worker: int, run_id: str, code: str) -> Claim:
    held = await started_by(store, worker, run_id)
    after = Park(reason="NonDeterminismError: x", failure=b'{"type":"x","message":"y"}', code=code)
    assert await commit(store, worker, turn(held, None, after=after)) == ["committed"]
    return held


async def parked_claims(store: Store, worker: int, code: str, limit: int = 10) -> list[str]:
    codes = [(workflow, version, code) for workflow, version in W1]
    claims = await store.claim_parked_runs(worker, limit=limit, task_queue="default", codes=codes)
    return [one.run_id for one in claims]


async def test_a_parked_run_keeps_what_it_stopped_on_until_it_goes_on(store: Store) -> None:
    """Readers see the failure; whoever resumes it starts with a clean slate."""
    worker = await a_worker(store)
    await parked_by(store, worker, "a", "old")
    assert (await store.get_run("a")).failure == b'{"type":"x","message":"y"}'

    assert await store.unpark_run("a", NOW)

    record = await store.get_run("a")
    assert (record.status, record.failure, record.reason) == (RunStatus.RUNNING, None, None)


async def test_other_code_may_try_a_parked_run_once(store: Store) -> None:
    """Neither the code that parked it nor one that has tried since; its journal goes along."""
    worker = await a_worker(store)
    held = await parked_by(store, worker, "a", "old")

    assert await parked_claims(store, worker, "old") == []
    assert await parked_claims(store, worker, "new") == ["a"]
    (mine,) = await store.read_claims(worker, [held.pk])
    assert mine.claim_no == held.claim_no + 1
    assert (await store.get_run("a")).failure is None
    again = turn(mine, None, after=Park(reason="again", code="new"))
    assert await commit(store, worker, again) == ["committed"]
    assert await parked_claims(store, worker, "new") == []
    assert await parked_claims(store, worker, "old") == []
    assert await parked_claims(store, worker, "newer") == ["a"]
    assert await journal(store, held) == []


AS_NEW = NextGeneration(
    failure=None, copy_turns=0, parts=(), redeliver=(), ready_at_us=NOW, attempt=1, input=b"[2]"
)


@pytest.mark.parametrize(
    "after", [Wait(due_at_us=NOW), HandBack(), AS_NEW], ids=lambda after: type(after).__name__
)
async def test_code_that_let_a_run_go_in_order_may_try_it_again(store: Store, after: After) -> None:
    """It fits. Old code that still runs somewhere may park what it leaves: then nobody else would have the good code (P13)."""
    worker = await a_worker(store)
    held = await parked_by(store, worker, "a", "old")
    assert await parked_claims(store, worker, "good") == ["a"]
    (mine,) = await store.read_claims(worker, [held.pk])
    fits = turn(mine, 1 if after is AS_NEW else None, after=after)
    assert await commit(store, worker, fits) == ["committed"]
    await store.wake_due_runs(NOW)
    (stale,) = await claim(store, worker)

    assert await commit(store, worker, turn(stale, None, after=Park(reason="x", code="old"))) == ["committed"]

    assert await parked_claims(store, worker, "old") == []
    assert await parked_claims(store, worker, "good") == ["a"]


async def test_code_that_got_on_may_try_again_what_a_death_took_from_it(store: Store, opener: Opener) -> None:
    """Whether it had tried the run because it was parked or as a suspect. The same turns again are no progress."""
    other = await opener()
    doomed = await a_worker(other, "doomed")
    held = await parked_by(other, doomed, "a", "old")
    assert await parked_claims(other, doomed, "good") == ["a"]
    (mine,) = await other.read_claims(doomed, [held.pk])
    assert await commit(other, doomed, turn(mine, 1)) == ["committed"]
    await other.close()
    assert (await store.rescue_dead_workers(10.0))[0].runs == 1

    worker = await a_worker(store)
    (mine,) = await claim(store, worker)
    await store.try_suspect(worker, Trial(suspect=(mine.pk, mine.claim_no), code="old"))
    assert await commit(store, worker, turn(mine, None, after=Park(reason="x", code="old"))) == ["committed"]
    await store.try_suspect(worker, Trial(suspect=None, passed=[(mine.pk, mine.claim_no)]))

    assert await parked_claims(store, worker, "old") == []
    assert await parked_claims(store, worker, "good") == ["a"]
    (mine,) = await store.read_claims(worker, [held.pk])
    again = turn(mine, None, after=Park(reason="x", code="good"))
    assert await commit(store, worker, again) == ["committed"]
    assert await parked_claims(store, worker, "good") == []
    assert await parked_claims(store, worker, "old") == []


async def test_code_that_cleared_a_suspect_may_try_it_again(store: Store, opener: Opener) -> None:
    """The trial was recorded as its try; it passed."""
    await dead_after(store, opener, "a", held=True)
    worker = await a_worker(store)
    (mine,) = await claim(store, worker)
    suspect = (mine.pk, mine.claim_no)
    await store.try_suspect(worker, Trial(suspect=suspect, code="good"))
    await store.try_suspect(worker, Trial(suspect=None, passed=[suspect]))
    assert await commit(store, worker, turn(mine, None, after=Park(reason="x", code="old"))) == ["committed"]

    assert await parked_claims(store, worker, "good") == ["a"]


async def test_parked_runs_are_tried_within_bounds_and_by_whom_they_suit(store: Store) -> None:
    """Another workflow, version or queue is nobody's business here; nor are runs that are not parked."""
    worker = await a_worker(store)
    for run_id in ("a", "b", "c"):
        await parked_by(store, worker, run_id, "old")
    await start(store, "ready")
    codes = [("w", 2, "new"), ("x", 1, "new")]
    assert await store.claim_parked_runs(worker, limit=9, task_queue="default", codes=codes) == []
    assert await store.claim_parked_runs(worker, limit=9, task_queue="other", codes=[("w", 1, "new")]) == []

    assert await parked_claims(store, worker, "new", limit=2) == ["a", "b"]
    assert await status(store, "c") is RunStatus.PARKED
    assert await status(store, "ready") is RunStatus.PENDING


async def test_a_paused_run_is_not_tried(store: Store) -> None:
    """Whoever paused it has a reason, and resumes it."""
    worker = await a_worker(store)
    await parked_by(store, worker, "a", "old")
    await store.pause_run("a", None, NOW)

    assert await parked_claims(store, worker, "new") == []
    await store.resume_run("a", NOW)
    assert await parked_claims(store, worker, "new") == ["a"]


async def test_code_that_drove_poison_does_not_try_it_again_by_itself(store: Store, opener: Opener) -> None:
    """The trial itself was its try."""
    await dead_after(store, opener, "guilty", held=True)
    for _ in range(CRASHES_MAX):
        await dead_after(store, opener, alone="guilty")
    worker = await a_worker(store)

    assert await parked_claims(store, worker, "c0de") == []
    assert await parked_claims(store, worker, "repaired") == ["guilty"]


async def test_terminating_a_parked_run_forgets_what_it_stopped_on(store: Store) -> None:
    """It ended because somebody said so, not because of the fault."""
    worker = await a_worker(store)
    await parked_by(store, worker, "a", "old")

    await store.terminate_run("a", "enough", NOW + SECOND)

    record = await store.get_run("a")
    assert (record.status, record.reason, record.failure) == (RunStatus.TERMINATED, "enough", None)
