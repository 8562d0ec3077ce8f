"""What is tried again without anybody asking: suspects, one at a time; parked runs, once by every other code."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from durable import Client, RunStatus, Signal, activity, workflow
from durable.worker.fingerprint import Fingerprints
from durable.worker.live import LiveRun
from tests.support.workers import (
    declare_dead,
    file_of,
    is_released,
    is_waiting,
    looked_up,
    running_worker,
    status_is,
    tampered,
    until,
)

number = Signal("number", int)


@activity
async def one() -> int:
    return 1


@workflow
async def waits() -> int:
    return await one() + await number.wait()


# ─ suspects ──


async def is_suspect(client: Client, run_id: str) -> bool:
    """Ask what a claim would tell."""
    ((suspicion,),) = looked_up(file_of(client), "SELECT suspicion FROM run WHERE run_id = ?", run_id)
    return bool(suspicion)


async def test_suspects_are_driven_and_cleared(client: Client) -> None:
    """A hundred that did nothing wrong go on, in the same worker's next life, as if nothing had happened."""
    async with running_worker(client, waits) as worker:
        runs = await client.start_many(waits, [()] * 100)
        for run in runs:
            await is_waiting(run, "signal")
        await declare_dead(client, worker)
        for run in runs:
            await run.signal(number, 2)
        assert [await run.result(60) for run in runs] == [3] * 100
        fresh = await client.start(waits)
        await is_waiting(fresh, "signal")
        await declare_dead(client, worker)
        await until(lambda: _is_cleared(client, fresh.run_id))
        await fresh.signal(number, 1)
        assert await fresh.result(60) == 2


async def _is_cleared(client: Client, run_id: str) -> bool:
    record = await client.store.get_run(run_id)
    return record.owner is not None and record.owner_is_alive and not await is_suspect(client, run_id)


async def test_suspects_are_recorded_before_they_are_driven_one_at_a_time(client: Client) -> None:
    """Between the record and the next, only that run's code runs."""
    driven: list[str] = []
    recorded: list[str] = []

    @workflow
    async def tells(name: str) -> None:
        await number.wait()

    async with running_worker(client, tells) as worker:
        runs = [await client.start(tells, name, run_id=name) for name in "abcde"]
        for run in runs:
            await is_waiting(run, "signal")
        keys = {(await client.store.get_run(name)).pk: name for name in "abcde"}
        real = worker.life.store.try_suspect
        drive_alone = worker.life.driver.drive_alone

        def drive(run: LiveRun) -> bool:
            driven.append(run.run_id)
            return drive_alone(run)

        async def try_suspect(worker_id: int, trial: Any) -> bool:
            if trial.suspect is not None:
                assert recorded == driven, "the last one is over before the next is recorded"
                recorded.append(keys[trial.suspect[0]])
            return await real(worker_id, trial)

        worker.life.store.try_suspect = try_suspect  # type: ignore[method-assign]
        worker.life.driver.drive_alone = drive  # type: ignore[method-assign]
        await declare_dead(client, worker)
        for run in runs:
            await run.signal(number, 1)
        for run in runs:
            await run.result(60)
        worker.life.store.try_suspect = real  # type: ignore[method-assign]
    assert sorted(recorded) == list("abcde")
    assert recorded == driven


async def test_a_suspect_that_waits_for_a_lost_activity_is_adjourned(client: Client) -> None:
    """Its outcome may be what is deadly: it is cleared only when that has been taken in."""
    begun: list[int] = []
    gate: list[int] = []

    @activity
    async def slow() -> int:
        begun.append(1)
        await until(lambda: gate)
        return 5

    slow_at_once = slow.options(retries=5)

    @workflow
    async def calls() -> int:
        return await slow_at_once() + await number.wait()

    async with running_worker(client, calls) as worker:
        run = await client.start(calls)
        await until(lambda: begun)
        await declare_dead(client, worker)
        await until(lambda: len(begun) == 2)
        assert await is_suspect(client, run.run_id)
        gate.append(1)
        await is_waiting(run, "signal")
        await until(lambda: _is_cleared(client, run.run_id))
        await run.signal(number, 1)
        assert await run.result(60) == 6


async def test_a_database_in_trouble_only_delays_suspects(client: Client) -> None:
    """Nothing is driven that could not be recorded before, and what came of it is recorded in the end."""
    from durable import StoreError

    async with running_worker(client, waits) as worker:
        run = await client.start(waits)
        await is_waiting(run, "signal")
        real = worker.life.store.try_suspect
        failures = {"before": [StoreError("no"), StoreError("not yet")], "after": [StoreError("no")] * 2}

        async def try_suspect(worker_id: int, trial: Any) -> bool:
            if left := failures["after" if trial.suspect is None else "before"]:
                raise left.pop()
            return await real(worker_id, trial)

        worker.life.store.try_suspect = try_suspect  # type: ignore[method-assign]
        await declare_dead(client, worker)
        await until(lambda: _is_cleared(client, run.run_id))
        await run.signal(number, 2)
        assert await run.result(60) == 3
        worker.life.store.try_suspect = real  # type: ignore[method-assign]
    assert failures == {"before": [], "after": []}


# ─ parked runs and other code ──


class Deployment:
    """A package of the author's, of which one version at a time is installed and imported."""

    def __init__(self, directory: Path) -> None:
        self._package = directory / "shop_of_test"
        self._package.mkdir()
        (self._package / "__init__.py").write_text("")

    def deploy(self, source: str) -> ModuleType:
        (self._package / "flows.py").write_text(textwrap.dedent(source))
        self.forget()
        return importlib.import_module("shop_of_test.flows")

    def forget(self) -> None:
        for name in [name for name in sys.modules if name.startswith("shop_of_test")]:
            del sys.modules[name]
        importlib.invalidate_caches()


FLOW = """
    from durable import Signal, activity, workflow

    number = Signal("number", int)

    @activity
    async def first() -> int:
        return 1

    @activity
    async def second() -> int:
        return 2

    @workflow
    async def sums() -> int:
        return await STEP() + await number.wait()
"""
GOOD, BAD = FLOW.replace("STEP", "first"), FLOW.replace("STEP", "second")
WORSE = BAD + "    # another try\n"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.forget()


async def parked_run(client: Client, shop: Deployment) -> Any:
    """Leave a run that good code began and bad code parked."""
    flows = shop.deploy(GOOD)
    async with running_worker(client, flows, warm_us=0):
        run = await client.start(flows.sums, run_id="r")
        await is_released(run)
    flows = shop.deploy(BAD)
    async with running_worker(client, flows):
        await run.signal("number", 10)
        await status_is(run, "parked")
    return run


async def test_a_deploy_of_good_code_resumes_parked_runs_by_itself(client: Client, shop: Deployment) -> None:
    """Nobody has to ask for it (P13)."""
    run = await parked_run(client, shop)

    async with running_worker(client, shop.deploy(GOOD)):
        await status_is(run, "completed")
    assert await run.result(60) == 11


async def test_the_same_code_does_not_try_a_parked_run_again(client: Client, shop: Deployment) -> None:
    """However often it is restarted; other bad code tries once."""
    run = await parked_run(client, shop)
    claim_no = await _claims(client)

    flows = shop.deploy(BAD)
    async with running_worker(client, flows):
        other = await client.start(flows.sums, run_id="other")
        await is_waiting(other, "signal")
        assert await _claims(client) == claim_no
    async with running_worker(client, shop.deploy(WORSE)):
        await until(lambda: _parked_again(client, claim_no + 1))
    async with running_worker(client, shop.deploy(WORSE)):
        assert (await run.describe()).status is RunStatus.PARKED
        assert await _claims(client) == claim_no + 1
    await run.resume()
    async with running_worker(client, shop.deploy(WORSE)):
        await until(lambda: _parked_again(client, claim_no + 2))


async def _claims(client: Client) -> int:
    ((claim_no,),) = looked_up(file_of(client), "SELECT claim_no FROM run WHERE run_id = 'r'")
    return int(claim_no)


async def _parked_again(client: Client, claims: int) -> bool:
    claimed = await _claims(client)  # first: a run that is being claimed now was parked before
    record = await client.store.get_run("r")
    return record.status is RunStatus.PARKED and claimed == claims


async def test_good_code_resumes_what_old_code_parks_again_and_again(
    client: Client, shop: Deployment
) -> None:
    """A rolling deployment: the run goes back and forth, and gets on each time (P13)."""
    twice = [code.replace("await number", "await number.wait() + await number") for code in (GOOD, BAD)]
    good = shop.deploy(twice[0])
    async with running_worker(client, good, warm_us=0):
        run = await client.start(good.sums, run_id="r")
        await is_released(run)
    for value in (10, 20):
        async with running_worker(client, shop.deploy(twice[1])):
            await run.signal("number", value)
            await status_is(run, "parked")
        async with running_worker(client, shop.deploy(twice[0]), warm_us=0):
            await until(lambda: _went_on(client))
    assert await run.result(60) == 31


async def _went_on(client: Client) -> bool:
    record = await client.store.get_run("r")
    return record.status in (RunStatus.WAITING, RunStatus.COMPLETED) and record.owner is None


async def test_what_parked_a_run_is_kept_with_both_lines_and_what_to_do(
    client: Client, shop: Deployment
) -> None:
    """The recorded source line, today's, and the patch that would have kept both ways open."""
    await parked_run(client, shop)

    seen = await client.describe("r")
    assert seen.failure is not None
    assert seen.failure.type == "durable.errors:NonDeterminismError"
    for part in ("'first'", "'second'", "shop_of_test/flows.py:16", "durable.patched"):
        assert part in (seen.reason or "")


async def test_damage_is_not_repaired_by_the_same_code(client: Client, shop: Deployment) -> None:
    """An undecodable journal parks its run again, once, under other code."""
    flows = shop.deploy(GOOD)
    async with running_worker(client, flows, warm_us=0):
        run = await client.start(flows.sums, run_id="r")
        await is_released(run)
    tampered(file_of(client), "UPDATE journal SET data = x'ff00' WHERE run = 1")
    async with running_worker(client, flows):
        await run.signal("number", 10)
        await status_is(run, "parked")
    before = await _claims(client)
    async with running_worker(client, shop.deploy(BAD)):
        await until(lambda: _parked_again(client, before + 1))


def test_a_fingerprint_follows_the_package_of_the_workflow(shop: Deployment) -> None:
    """Its own modules count, those of others do not."""
    flows = shop.deploy(GOOD)
    first = Fingerprints().of(flows.sums.definition)
    same = Fingerprints().of(shop.deploy(GOOD).sums.definition)
    other = Fingerprints().of(shop.deploy(BAD).sums.definition)

    assert first == same != other
    assert Fingerprints().of(waits.definition) == Fingerprints().of(waits.definition) != other
