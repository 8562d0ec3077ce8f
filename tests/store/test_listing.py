"""Lists and searches."""

from __future__ import annotations

import pytest
from store_steps import NOW, a_worker, close, commit, start, started_by, turn

from durable.errors import StoreError
from durable.journal.lifecycle import RunStatus
from durable.store.contract import Store
from durable.store.records import CountBy, Park, RunFilter


async def listed(store: Store, **changes: object) -> list[str]:
    return [run.run_id for run in await store.list_runs(RunFilter(**changes))]  # type: ignore[arg-type]


async def some_runs(store: Store) -> None:
    """Leave four runs, one microsecond apart: pending, running, failed, completed."""
    worker = await a_worker(store)
    await start(store, "a-pending", now_us=NOW)
    await started_by(store, worker, "a-running", now_us=NOW + 1)
    await close(store, worker, await started_by(store, worker, "b-failed", now_us=NOW + 2), RunStatus.FAILED)
    done = await started_by(store, worker, "b-done", workflow="other", task_queue="gpu", now_us=NOW + 3)
    await close(store, worker, done)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ["b-done", "b-failed", "a-running", "a-pending"]),
        ({"status": (RunStatus.PENDING,)}, ["a-pending"]),
        ({"status": (RunStatus.RUNNING, RunStatus.FAILED)}, ["b-failed", "a-running"]),
        ({"status": (RunStatus.WAITING,)}, []),
        ({"status": (RunStatus.FAILED,)}, ["b-failed"]),
        ({"status": (RunStatus.FAILED, RunStatus.PARKED), "workflow": "w", "limit": 1}, ["b-failed"]),
        ({"status": (RunStatus.FAILED, RunStatus.COMPLETED)}, ["b-done", "b-failed"]),
        ({"status": (RunStatus.CANCELLED,)}, []),
        ({"workflow": "o*"}, ["b-done"]),
        ({"workflow": "w"}, ["b-failed", "a-running", "a-pending"]),
        ({"task_queue": "gpu"}, ["b-done"]),
        ({"run_id": "a-*"}, ["a-running", "a-pending"]),
        ({"run_id": "*ing"}, ["a-running", "a-pending"]),
        ({"run_id": "a-?ending"}, []),
        ({"run_id": "a"}, []),
        ({"created_since_us": NOW + 1, "created_until_us": NOW + 3}, ["b-failed", "a-running"]),
        ({"limit": 1}, ["b-done"]),
    ],
)
async def test_runs_are_listed_newest_first_and_filtered(
    store: Store, changes: dict[str, object], found: list[str]
) -> None:
    """All conditions hold together; `*` is the only wildcard."""
    await some_runs(store)

    assert await listed(store, **changes) == found
    if "limit" not in changes:
        counted = await store.count_runs(RunFilter(**changes), None)  # type: ignore[arg-type]
        assert sum(counted.values()) == len(found)


@pytest.mark.parametrize(
    ("by", "changes", "counts"),
    [
        ("status", {}, {"completed": 1, "failed": 1, "pending": 1, "running": 1}),
        ("status", {"status": (RunStatus.PENDING, RunStatus.FAILED)}, {"failed": 1, "pending": 1}),
        ("workflow", {}, {"w": 3, "other": 1}),
        ("queue", {"run_id": "b-*"}, {"default": 1, "gpu": 1}),
        (None, {"workflow": "w"}, {"": 3}),
        (None, {"workflow": "nosuch"}, {}),
        ("status", {"task_queue": "nosuch"}, {}),
    ],
)
async def test_runs_are_counted(
    store: Store, by: CountBy | None, changes: dict[str, object], counts: dict[str, int]
) -> None:
    """By the filters of lists; the most first, names that occur."""
    await some_runs(store)

    found = await store.count_runs(RunFilter(**changes), by)  # type: ignore[arg-type]
    assert list(found.items()) == list(counts.items())


async def test_parked_runs_are_listed_among_those_that_did_not_do_well(store: Store) -> None:
    """Whatever the way in which they are found; with their payloads or without."""
    worker = await a_worker(store)
    await close(store, worker, await started_by(store, worker, "late"), RunStatus.TIMED_OUT)
    held = await started_by(store, worker, "stuck", now_us=NOW + 1)
    await commit(store, worker, turn(held, None, after=Park(reason="why")))

    for wanted in (
        (RunStatus.PARKED, RunStatus.TIMED_OUT),
        (RunStatus.COMPLETED, RunStatus.PARKED, RunStatus.TIMED_OUT),
    ):
        assert await listed(store, status=wanted) == ["stuck", "late"]
        assert await listed(store, status=wanted, with_large_payloads=False) == ["stuck", "late"]


async def test_pages_neither_repeat_nor_skip(store: Store) -> None:
    """The last row seen is where the next page begins, also among runs of one instant."""
    for n in range(7):
        await start(store, f"r{n}")
    seen: list[str] = []
    before: tuple[int, int] | None = None
    while page := await store.list_runs(RunFilter(limit=3, before=before)):
        seen += [run.run_id for run in page]
        before = (page[-1].created_at_us, page[-1].pk)

    assert seen == [f"r{n}" for n in reversed(range(7))]


@pytest.mark.parametrize(
    "hostile", ["'; DROP TABLE run; --", "[a-z]*", "%", "_", "\\", "🦆" * 100, ")", "*" * 50]
)
async def test_hostile_text_is_only_text(store: Store, hostile: str) -> None:
    """Ids, names and patterns are bound values, never SQL."""
    await start(store, hostile, workflow=hostile, task_queue=hostile)

    assert (await store.get_run(hostile)).workflow == hostile
    assert await listed(store, run_id=hostile) in ([hostile], [])
    assert await store.find_run_ids(hostile) == [hostile]
    assert await listed(store) == [hostile]


async def test_text_that_a_database_cannot_hold_is_refused(store: Store, store_kind: str) -> None:
    """Postgres stores no NUL: the start is refused with a clear error, and the next one is not in its way."""
    if store_kind != "sqlite":
        for run_id in ("\x00", "\ud800"):
            with pytest.raises(StoreError, match="cannot be stored"):
                await start(store, run_id)
        assert await listed(store) == []
    else:
        await start(store, "\x00")
        assert (await store.get_run("\x00")).run_id == "\x00"
    await start(store, "x")
    assert "x" in await listed(store)


async def test_ids_are_found_by_how_they_begin_or_end(store: Store) -> None:
    """Newest first, at most as many as asked for; nothing in the text is a wildcard."""
    for n, run_id in enumerate(["order-1", "order-2", "my-order", "or*er"]):
        await start(store, run_id, now_us=NOW + n)

    assert await store.find_run_ids("order") == ["my-order", "order-2", "order-1"]
    assert await store.find_run_ids("order", limit=1) == ["my-order"]
    assert await store.find_run_ids("or*") == ["or*er"]


async def test_workers_are_listed_with_what_they_hold(store: Store) -> None:
    """People see who is there, alive or not."""
    worker = await a_worker(store, "one")
    gone = await a_worker(store, "two")
    await started_by(store, worker, "x")
    await store.retire_worker(gone)

    (alive,) = await store.list_workers()
    assert (alive.worker_id, alive.name, alive.runs, alive.is_alive) == (worker, "one", 1, True)
    assert alive.definitions == (("w", 1),)
    everyone = await store.list_workers(alive_only=False)
    assert [(one.name, one.is_alive, one.stopped_at_us is None) for one in everyone] == [
        ("one", True, True),
        ("two", False, False),
    ]
