"""What befalls a server and the way to it: workers go on by themselves, nothing that was acknowledged is lost or doubled.

Each test hurts, heals, and then everything that was acknowledged must end as if nothing had happened (I1 to I4, I10, I15, I17).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from durable import activity, connect, seams, workflow
from durable.store.postgres.connection import STATEMENT_SECONDS
from durable.store.records import WorkerInfo
from tests.conftest import without_server
from tests.faults.world import LEASE_SECONDS, at_work
from tests.support.postgres import NoServer, Server, find_binaries, in_schema, looked_up
from tests.support.proxy import Proxy
from tests.support.workers import running_worker, until

COMMITS = (b".journal (run",)
STARTS = (b".request (request_id",)
SENDS = (b".send_message(",)
TRANSACTIONS = (b"COMMIT",)  # those of several statements


# ─ the connection ──


@pytest.mark.parametrize(
    "marks",
    [COMMITS, *(pytest.param(one, marks=pytest.mark.slow) for one in (STARTS, SENDS, TRANSACTIONS))],
    ids=["commits", "starts", "signals", "transactions"],
)
async def test_replies_that_never_come(through: str, proxy: Proxy, marks: tuple[bytes, ...]) -> None:
    """Committed, and nobody was told: the truth is read before anything else is done (P16, P4)."""
    async with at_work(through) as world:
        await until(lambda: len(world.sent) >= 2)
        proxy.marks = marks
        for _ in range(6):
            proxy.lost_replies += 1
            await until(lambda: proxy.lost_replies == 0)
            await asyncio.sleep(0.05)
    assert proxy.done == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "marks", [COMMITS, STARTS, SENDS, TRANSACTIONS], ids=["commits", "starts", "signals", "transactions"]
)
async def test_statements_that_never_arrive(through: str, proxy: Proxy, marks: tuple[bytes, ...]) -> None:
    """Cut off before the server got them: nothing was written, and it is done again."""
    async with at_work(through) as world:
        await until(lambda: len(world.sent) >= 2)
        proxy.marks = marks
        for _ in range(6):
            proxy.cut_statements += 1
            await until(lambda: proxy.cut_statements == 0)
            await asyncio.sleep(0.05)
    assert proxy.done == 6


@pytest.mark.slow
async def test_connections_that_are_cut_again_and_again(through: str, proxy: Proxy) -> None:
    """All of them, at any moment, the heartbeat's and the listener's included."""
    async with at_work(through) as world:
        await until(lambda: len(world.sent) >= 2)
        for _ in range(10):
            proxy.reset()
            await asyncio.sleep(0.07)


@pytest.mark.slow
async def test_a_server_that_cannot_be_reached_for_longer_than_a_lease(through: str, proxy: Proxy) -> None:
    """Nobody can take anything over meanwhile, and everybody begins anew."""
    async with at_work(through) as world:
        await until(lambda: len(world.sent) >= 2)
        proxy.refuses = True
        proxy.reset()
        await asyncio.sleep(1.5)
        proxy.refuses = False


async def test_a_worker_that_hears_nothing_is_replaced_and_its_late_writes_do_not_count(
    through: str, direct: str, proxy: Proxy
) -> None:
    """Half a partition: what it sends arrives, what it is told does not. The other one takes its runs over (P8, P9)."""
    async with at_work(direct, through) as world:
        await until(lambda: len(world.sent) >= 2)
        proxy.is_deaf = True
        await asyncio.sleep(2.5)
        proxy.is_deaf = False
        proxy.reset()


async def test_closing_waits_for_no_server_that_is_silent(
    through: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that could not retire its workers says that they are gone, if that is heard soon: else their leases run out."""
    monkeypatch.setattr("durable.store.postgres.opened.LAST_BEAT_SECONDS", 0.1)
    async with connect(through) as client:
        await client.store.register_worker(WorkerInfo(name="w", task_queue="default", definitions=()))
        proxy.is_deaf = True
        async with asyncio.timeout(STATEMENT_SECONDS / 2):
            await client.store.close()


@pytest.mark.slow
async def test_a_slow_way(through: str, proxy: Proxy) -> None:
    """Twenty milliseconds each way: slower, and nothing else."""
    proxy.delay = 0.02
    async with at_work(through) as world:
        await until(lambda: len(world.sent) >= 3)


# ─ the server ──


async def test_whoever_looks_for_the_dead_rides_over_connections_that_have_just_ended(
    direct: str, victim: Server
) -> None:
    """A worker that begins does so, before it has any loop that would try again."""
    async with connect(direct) as client:
        await client.list()
        victim.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'")

        assert await client.store.rescue_dead_workers(LEASE_SECONDS) == []


async def test_sessions_that_are_terminated(direct: str, victim: Server) -> None:
    """pg_terminate_backend on everybody, in whatever they are at."""
    async with at_work(direct) as world:
        await until(lambda: len(world.sent) >= 2)
        for _ in range(8):
            await asyncio.to_thread(
                victim.sql,
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'",
            )
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("mode", [pytest.param("fast", marks=pytest.mark.slow), "immediate"])
async def test_a_server_that_restarts(direct: str, victim: Server, mode: str) -> None:
    """With or without time to say good-bye; workers and clients ride over it."""
    async with at_work(direct) as world:
        await until(lambda: len(world.sent) >= 2)
        for _ in range(2):
            await asyncio.to_thread(victim.restart, mode)
            sent = len(world.sent)
            await until(lambda sent=sent: len(world.sent) > sent)


READ_ONLY = ("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
WRITABLE = ("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
OURS = "SELECT pid FROM pg_stat_activity WHERE usename = 'app'"


async def test_a_server_that_becomes_read_only_under_live_connections(direct: str, victim: Server) -> None:
    """Every write is refused, for longer than a lease, by a server that answers; then it takes them again."""
    async with at_work(direct) as world:
        await until(lambda: len(world.sent) >= 2)
        before = set(victim.sql(OURS).split())
        await asyncio.to_thread(victim.sql, *READ_ONLY)
        try:
            await asyncio.sleep(1.5)
            assert not before & set(victim.sql(OURS).split()), "somebody kept a connection to it"
        finally:
            await asyncio.to_thread(victim.sql, *WRITABLE)


@pytest.mark.slow
async def test_a_fail_over_to_a_standby_while_the_old_primary_lives_on(schema: str) -> None:
    """The old one still answers, read-only, and its sockets live: nobody stays there, nobody believes what it says."""
    settings = {"max_connections": "60"}
    async with AsyncExitStack() as stack:
        old = a_server(stack, settings)
        old.sql("CREATE ROLE app LOGIN", "CREATE DATABASE runs OWNER app")
        new = a_server(stack, settings, primary=old)
        hosts = f"127.0.0.1:{old.port},127.0.0.1:{new.port}"
        url = in_schema(f"postgresql://app@{hosts}/runs?target_session_attrs=read-write", schema)
        async with at_work(url) as world:
            await until(lambda: len(world.sent) >= 2)
            await asyncio.to_thread(old.sql, *READ_ONLY)
            await until(lambda: has_everything(old, new))
            await asyncio.to_thread(new.promote)
            sent = len(world.sent)
            await until(lambda: len(world.sent) > sent + 2)
            assert old.sql(OURS) == "", "somebody stayed"


def a_server(stack: AsyncExitStack, settings: dict[str, str], primary: Server | None = None) -> Server:
    try:
        server = Server(find_binaries(), settings, primary=primary)
    except NoServer as missing:
        without_server(str(missing))
    stack.callback(server.remove)
    return server


def has_everything(primary: Server, standby: Server) -> bool:
    """Whether a primary that takes no writes any more has handed all of them on."""
    written = primary.sql("SELECT pg_current_wal_lsn()")
    return standby.sql(f"SELECT pg_last_wal_replay_lsn() >= '{written}'") == "t"


@pytest.mark.slow
async def test_no_connection_left(direct: str, victim: Server) -> None:
    """Others have taken them all: what is open goes on, the rest waits its turn."""
    async with at_work(direct) as world, AsyncExitStack() as stack:
        await until(lambda: len(world.sent) >= 2)
        hogs = await every_connection(f"postgresql://postgres@127.0.0.1:{victim.port}/postgres")
        for hog in hogs:
            stack.push_async_callback(hog.close)
        victim_sessions = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'"
        )
        await hogs[0].execute(victim_sessions)  # so that ours have to come back, and cannot
        await asyncio.sleep(1.0)


async def every_connection(url: str) -> list[Any]:
    """Open connections until the server has none left."""
    hogs: list[Any] = []
    while True:
        try:
            hogs.append(await asyncpg.connect(url))
        except asyncpg.TooManyConnectionsError:
            return hogs


@pytest.mark.parametrize(
    "state",
    ["40001", *(pytest.param(one, marks=pytest.mark.slow) for one in ("40P01", "57014", "53200", "55P03"))],
)
async def test_statements_that_fail_for_no_fault_of_ours(direct: str, state: str) -> None:
    """Serialization failures, deadlocks, cancelled statements, no memory, locks: one insert in five."""
    async with at_work(direct) as world:
        await until(lambda: len(world.sent) >= 1)
        # In a thread: a trigger waits for transactions under way, and those wait for this loop.
        await asyncio.to_thread(
            looked_up,
            direct,
            f"""CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF random() < 0.2 THEN RAISE EXCEPTION 'trouble' USING ERRCODE = '{state}'; END IF;
                RETURN NEW;
            END $$""",
        )
        for table in ("journal", "inbox", "request"):
            await asyncio.to_thread(
                looked_up,
                direct,
                f"CREATE TRIGGER trouble BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION trouble()",
            )
        await asyncio.sleep(1.5)
        for table in ("journal", "inbox", "request"):
            await asyncio.to_thread(looked_up, direct, f"DROP TRIGGER trouble ON {table}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "idle_session_timeout = 150",
        "idle_in_transaction_session_timeout = 1",
        "statement_timeout = 100",
        "default_transaction_isolation = 'serializable'",
    ],
)
async def test_defaults_of_the_role_that_do_not_suit_us(direct: str, victim: Server, setting: str) -> None:
    """An administrator's choice for everybody: connections that end when idle, short statements, strict isolation."""
    victim.sql(f"ALTER ROLE app SET {setting}")
    try:
        async with at_work(direct) as world:
            await until(lambda: len(world.sent) >= 5)
    finally:
        victim.sql("ALTER ROLE app RESET ALL")


# ─ clocks ──


async def test_clocks_hours_apart_change_nothing(direct: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's wall clock jumps by hours at every look: timers, delays and timeouts go by the server's."""
    jumps = itertools.cycle([0, 3 * 3600, -5 * 3600, 86_400])
    true = time.time_ns
    monkeypatch.setattr(seams.time, "time_ns", lambda: true() + next(jumps) * 10**9)

    @activity
    async def quick() -> int:
        return 1

    @workflow(timeout=600)
    async def sleeps() -> None:
        await asyncio.sleep(0.3)
        await quick()

    async with connect(direct) as client, running_worker(client, sleeps, warm_us=0):
        began = time.monotonic()
        runs = [await client.start(sleeps) for _ in range(5)]
        delayed = await client.start(sleeps, delay=0.5)
        for run in runs:
            await run.result(60)
        assert 0.3 <= time.monotonic() - began < 600
        await delayed.result(60)
        assert 0.8 <= time.monotonic() - began < 600  # no jump is that small
