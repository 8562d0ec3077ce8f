"""Damaged rows: one run out of a hundred has bytes that were changed behind our back. It parks, and says which; the rest goes on.

No check finds every change: one that leaves valid JSON of the right type is a different value, and only encryption tells.
"""

from __future__ import annotations

import pytest

from durable import Client, Retry, RunHandle, Signal, activity, activity_info, heartbeat, workflow
from tests.support.workers import (
    Calls,
    file_of,
    is_released,
    running_worker,
    status_is,
    tampered,
    until,
)

RUNS, VICTIM = 100, 37  # the statements below call it run 38: numbers begin with 1

go = Signal("go", str)
calls = Calls()


@activity
async def before(number: int) -> str:
    calls(f"before {number}")
    return f"result {number}"


@activity(retry=Retry(max_attempts=3, initial=0.05))
async def after(number: int) -> str:
    calls(f"after {number}")
    return "done"


@workflow
async def order(number: int) -> str:
    said = await before(number)
    return f"{said} {await go.wait()} {await after(number)}"


@activity(retry=Retry(max_attempts=2, initial=0.2))
async def told(number: int) -> str:
    if activity_info().attempt == 1:
        heartbeat({"at": number})
        calls(f"first {number}")
        raise ConnectionError("no line")
    calls(f"second {number}")
    return f"from {activity_info().heartbeat_details[0]['at']}"


@workflow
async def telling(number: int) -> str:
    return await told(number)


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.names.clear()


async def many_waiting(client: Client) -> list[RunHandle[str]]:
    """Start them all; each has done its first step, waits for a signal, and is in nobody's hands."""
    async with running_worker(client, order, warm_us=0):
        runs = await client.start_many(
            order, [(number,) for number in range(RUNS)], run_ids=[f"order-{n}" for n in range(RUNS)]
        )
        for run in runs:
            await is_released(run)
    return runs


async def all_but_one_finish(client: Client, runs: list[RunHandle[str]], *, reason: str) -> None:
    """Drive them on: the others finish, the victim parks with that reason, nothing of it was executed."""
    async with running_worker(client, order):
        for number, run in enumerate(runs):
            if number != VICTIM:
                assert await run.result(60) == f"result {number} go done"
        await status_is(runs[VICTIM], "parked")
    assert calls.of(f"before {VICTIM}") == 1
    assert calls.of(f"after {VICTIM}") == 0
    await it_is_told(client, f"order-{VICTIM}", reason)


async def it_is_told(client: Client, run_id: str, reason: str) -> None:
    """Every way of looking at the run works and says why."""
    why = await client.why(run_id)
    assert (why.reason, reason in why.text) == ("parked", True), why.text
    described = await client.describe(run_id)
    assert (described.status, reason in (described.reason or "")) == ("parked", True)
    assert run_id in {run.run_id for run in await client.list(limit=RUNS)}
    assert [run.run_id for run in await client.list(status="parked")] == [run_id]
    await client.health()


def changed(expression: str) -> str:
    """Return the statement that replaces the victim's journal rows' data."""
    return f"UPDATE journal SET data = {expression} WHERE run = 38 AND turn = 1"  # noqa: S608 - constants


ROW = "turn 1, part 1: a journal row cannot be read"
DAMAGE: dict[str, tuple[str, str]] = {
    "journal: not JSON": (changed("x'7b22'"), ROW),
    "journal: not UTF-8": (changed("x'7b22ff22'"), ROW),
    "journal: cut in half": (changed("substr(data, 1, length(data) / 2)"), ROW),
    "journal: empty": (changed("x''"), ROW),
    "journal: zeros": (changed("zeroblob(length(data))"), ROW),
    "journal: an entry nobody knows": (
        changed("CAST(replace(CAST(data AS TEXT), '\"started\"', '\"startled\"') AS BLOB)"),
        ROW,
    ),
    "journal: a later format": (
        changed("CAST(replace(CAST(data AS TEXT), '\"v\":1', '\"v\":9') AS BLOB)"),
        "has format 9",
    ),
    "journal: nested without end": (changed("CAST(replace(hex(zeroblob(9000)), '0', '[') AS BLOB)"), ROW),
    "journal: the first row is gone": (
        "DELETE FROM journal WHERE run = 38 AND turn = 1",
        "turn 2, part 1 does not follow",
    ),
    "journal: the last row is gone": (
        "DELETE FROM journal WHERE run = 38 AND turn = (SELECT max(turn) FROM journal WHERE run = 38)",
        "the journal ends at turn",
    ),
    "journal: all rows are gone": (
        "UPDATE journal SET generation = 7 WHERE run = 38",
        "the journal ends at turn 0",
    ),
    "journal: a turn's number": ("UPDATE journal SET turn = 9 WHERE run = 38 AND turn = 1", "does not follow"),
    "journal: a part's number": ("UPDATE journal SET part = 2 WHERE run = 38 AND turn = 1", "does not follow"),
    "run: another generation": ("UPDATE run SET generation = 9 WHERE id = 38", "the journal ends at turn 0"),
    "run: a later last turn": ("UPDATE run SET last_turn = 99 WHERE id = 38", "though turn 99 was written"),
    "input: the row is gone": ("DELETE FROM run_payload WHERE run = 38", "stored arguments of order()"),
    "input: not JSON": ("UPDATE run_payload SET input = x'00' WHERE run = 38", "stored arguments of order()"),
    "input: of another type": (
        "UPDATE run_payload SET input = CAST('{\"number\":\"x\"}' AS BLOB) WHERE run = 38",
        "stored arguments of order()",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_row_parks_its_run_and_no_other(client: Client, damage: str) -> None:
    """It is found before anything is executed; the reason names the row and quotes nothing of it."""
    statement, reason = DAMAGE[damage]
    runs = await many_waiting(client)
    tampered(file_of(client), statement)
    for run in runs:
        await run.signal(go, "go")
    await all_but_one_finish(client, runs, reason=reason)


@pytest.mark.parametrize("data", [b"", b'"go', b'"\xff\xfe"', b"\x00" * 40, b"[" * 5000])
@pytest.mark.parametrize("kind", ["signal", "cancel"])
async def test_a_damaged_message_parks_its_run_and_stays_out_of_the_journal(
    client: Client, kind: str, data: bytes
) -> None:
    """A journal row that took it in could not be read any more, when the message can still be repaired."""
    runs = await many_waiting(client)
    for run in runs:
        await run.signal(go, "go")
    tampered(
        file_of(client),
        f"UPDATE inbox SET data = ?, kind = '{kind}' WHERE run = 38",  # noqa: S608 - constants
        parameters=(data,),
    )
    what = "a cancel request" if kind == "cancel" else "a signal 'go'"
    await all_but_one_finish(client, runs, reason=f"message 1, {what}: not what was stored")

    tampered(
        file_of(client),
        "UPDATE inbox SET data = CAST('\"go\"' AS BLOB), kind = 'signal' WHERE run = 38",
    )
    await runs[VICTIM].resume()
    async with running_worker(client, order):
        assert await runs[VICTIM].result(60) == f"result {VICTIM} go done"


async def test_a_message_that_comes_with_the_end_is_checked_as_well(client: Client) -> None:
    """It would go into the last row; the turn that could not be built leaves nothing behind."""

    @workflow
    async def ends(number: int) -> str:
        return await go.wait()

    async with running_worker(client, ends, warm_us=0):
        run = await client.start(ends, 1)
        await is_released(run)
    await run.signal(go, "one")
    await run.signal(go, "two")
    tampered(file_of(client), "UPDATE inbox SET data = x'00' WHERE msg = 2")
    async with running_worker(client, ends):
        await status_is(run, "parked")
    assert (await client.store.get_run(run.run_id)).unread == 2


@pytest.mark.parametrize(
    ("column", "data"),
    [
        ("failure", b"{}"),
        ("failure", b"\xff" * 9),
        ("details", b"[1"),
        ("details", b'["\xff"]'),
        ("failure", b""),
    ],
)
async def test_a_damaged_attempt_parks_its_run_and_no_other(client: Client, column: str, data: bytes) -> None:
    """No further attempt is made on the strength of it."""
    async with running_worker(client, telling) as worker:
        runs = await client.start_many(telling, [(number,) for number in range(RUNS)])
        await until(lambda: len(calls.names) >= RUNS)
        worker.stop(0)
    begun = set(calls.names)
    assert f"second {VICTIM}" not in begun
    tampered(
        file_of(client),
        f"UPDATE attempt SET {column} = ? WHERE run = 38",  # noqa: S608 - constants
        parameters=(data,),
    )
    async with running_worker(client, telling):
        for number, run in enumerate(runs):
            if number != VICTIM:
                assert await run.result(60) == f"from {number}"
        await status_is(runs[VICTIM], "parked")
    assert calls.of(f"second {VICTIM}") == 0
    await it_is_told(client, runs[VICTIM].run_id, "the attempt row of operation 1")


@pytest.mark.parametrize(
    "change",
    ["status = 77", "status = -5", "created_at_us = 1 << 62", "deadline_us = 1 << 62", "due_at_us = -(1 << 62)", "attempt = -1",
     "task_queue = ''", "owner = 99"],
)  # fmt: skip
async def test_a_run_whose_row_is_damaged_hides_no_other(client: Client, change: str) -> None:
    """Lists, `why` and `describe` answer, whatever the numbers are, and the others finish."""
    runs = await many_waiting(client)
    tampered(file_of(client), f"UPDATE run SET {change} WHERE id = 38")  # noqa: S608 - constants

    assert len(await client.list(limit=RUNS)) == RUNS
    seen = await runs[VICTIM].describe()
    assert (await runs[VICTIM].why()).text
    await client.health()
    if change.startswith("status"):
        assert (seen.status, "there is no status" in (seen.reason or "")) == ("parked", True)
    async with running_worker(client, order):
        for number, run in enumerate(runs):
            if number != VICTIM:
                await run.signal(go, "go")
                assert await run.result(60) == f"result {number} go done"


@pytest.mark.parametrize("column", ["result", "failure", "input"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b'{"a":'])
async def test_a_closed_run_with_a_damaged_payload_can_be_looked_at(
    client: Client, column: str, data: bytes
) -> None:
    """What cannot be read is said to be unreadable, in its place."""
    async with running_worker(client, telling):
        run = await client.start(telling, 1, run_id="t")
        await run.result(60)
    tampered(file_of(client), f"UPDATE run_payload SET {column} = ?", parameters=(data,))  # noqa: S608 - constants
    seen = await client.describe("t")
    assert [one.run_id for one in await client.list()] == ["t"]
    assert (await client.why("t")).reason == "closed"
    match column:
        case "failure":
            assert "cannot be read" in (seen.error or "")
        case "result":
            assert seen.result == "<unreadable>"
        case _:
            assert seen.input == "<unreadable>"
