"""Databases of every schema there has been, opened by this code, which is killed at every boundary of bringing them up to date.

A migration is one transaction: what is found after a death is the schema before it or the one after it, and whoever opens the
database next finishes the work. Runs that were in it go on.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from durable import RunStatus
from durable.store.migrations import load_migrations
from durable.store.postgres import schema as server_schema
from durable.store.postgres.location import locate
from durable.store.sqlite.schema import PACKAGE
from durable.store.statements import load_statements
from tests.crash.test_every_boundary import MAKERS, SERVER_MAKERS, has_died
from tests.support import postgres
from tests.support.boundaries import Boundary
from tests.support.crash_checks import Outcome
from tests.support.crashes import Scene, Stage, until_untouched

NEWEST: Final = len(load_migrations(PACKAGE))
SERVER_NEWEST: Final = len(load_migrations(server_schema.PACKAGE))
RUNS: Final = ("chain-000", "chain-001")
READY: Final = (
    "INSERT INTO run (run_id, workflow, version, task_queue, status, ready_at_us, created_at_us)"
    " VALUES ('{}', 'chain', 1, 'default', 0, 1, 1)"
)
INPUTS: Final = "INSERT INTO run_payload (run, generation, input) SELECT id, 1, {} FROM run"
CATALOGUE: Final = (
    "SELECT number, name FROM migration ORDER BY number",
    "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
    " WHERE table_schema = current_schema() ORDER BY table_name, column_name",
    "SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY indexname",
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = current_schema()::regnamespace ORDER BY conrelid::regclass::text, conname",
    "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace ORDER BY proname",
    "SELECT pg_get_triggerdef(pg_trigger.oid) FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid"
    " WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal ORDER BY relname, tgname",
)


def make_old(scene: Scene, version: int) -> None:
    """Make a database of an earlier schema, with two runs nobody has begun; 0: there is none."""
    if version == 0:
        return
    if not scene.is_server:
        make_old_file(scene.database, version)
        return
    place = locate(scene.url, scene.url)
    scripts = [one.sql for one in asyncio.run(server_schema.pending_migrations(place))[:version]]
    given = INPUTS.format("convert_to('{\"length\":3}', 'UTF8')")
    postgres.executed(scene.url, *scripts, *map(READY.format, RUNS), given)


def make_old_file(path: Path, version: int) -> None:
    sql = load_statements(PACKAGE)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(sql["create_migration_table"])
        for migration in load_migrations(PACKAGE)[:version]:
            for statement in migration.statements:
                database.execute(statement)
            record = {"number": migration.number, "name": migration.name, "now_us": 1}
            database.execute(sql["record_migration"], record)
        for key, value in (("database_id", "d"), ("hash_seed", "7"), ("created_at_us", "1")):
            database.execute(sql["write_meta"], {"key": key, "value": value})
        for run_id in RUNS:
            database.execute(READY.format(run_id))
        database.execute(INPUTS.format("CAST('{\"length\":3}' AS BLOB)"))


def schema_of(scene: Scene) -> list[tuple[Any, ...]]:
    """Return all that there is in a database, by name, and that it is whole."""
    if scene.is_server:
        name = locate(scene.url, scene.url).schema
        looked = [row for look in CATALOGUE for row in postgres.looked_up(scene.url, look)]
        return [tuple(str(value).replace(name, "durable") for value in row) for row in looked]
    with closing(sqlite3.connect(scene.database)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        numbers = database.execute("SELECT number, name FROM migration ORDER BY number").fetchall()
        made = database.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
        return [*numbers, *made]


def undisturbed(version: int, stage: Stage, directory: Path) -> list[tuple[Any, ...]]:
    with stage(directory / f"{version}-undisturbed") as scene:
        make_old(scene, version)
        assert scene.launch("opener").wait() == 0, scene.story()
        return schema_of(scene)


def every_boundary(
    version: int,
    make: Callable[[int], Boundary],
    stage: Stage,
    directory: Path,
    *,
    points: Sequence[int] | None = None,
) -> int:
    """Return at how many boundaries something happened."""
    wanted = undisturbed(version, stage, directory)

    def at(point: int) -> bool:
        with stage(directory / f"{version}-{point}") as scene:
            make_old(scene, version)
            has_died(scene, scene.launch("opener", boundary=make(point), durability="full"))
            assert scene.launch("opener").wait() == 0, scene.story()
            assert schema_of(scene) == wanted, scene.story()
            if version:
                they_go_on(scene)
            return bool(scene.deaths())

    return until_untouched(at, points)


def they_go_on(scene: Scene) -> None:
    worker = scene.launch("worker")
    scene.wait_until_closed(RUNS)
    scene.stop(worker)
    done = Outcome(status=RunStatus.COMPLETED, result=[0, 1, 4])
    scene.check(dict.fromkeys(RUNS, done))


@pytest.mark.slow
@pytest.mark.stores("sqlite")
@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("version", [0, 1, NEWEST - 1])
def test_a_migration_disturbed_at_some_boundaries_is_finished_by_the_next_opener(
    version: int, how: str, tmp_path: Path, watched_stage: Stage
) -> None:
    """A sample of `..._at_any_boundary`."""
    points = [2, 9, 16, 23] if version == NEWEST - 1 else [4, 15, 26, 37, 48]
    assert every_boundary(version, MAKERS[how], watched_stage, tmp_path, points=points) >= 2


@pytest.mark.slow
@pytest.mark.stores("postgres")
@pytest.mark.parametrize("how", SERVER_MAKERS)
@pytest.mark.parametrize("version", [0, 1, SERVER_NEWEST - 1])
def test_a_migration_disturbed_at_some_messages_is_finished_by_the_next_opener(
    version: int, how: str, tmp_path: Path, watched_stage: Stage
) -> None:
    """A sample of `..._at_any_message`."""
    messages = [12, 19, 25] if version == SERVER_NEWEST - 1 else [12, 22, 33, 41]
    points = [2 * n - n % 2 for n in messages] if how == "killed" else messages
    assert every_boundary(version, SERVER_MAKERS[how], watched_stage, tmp_path, points=points) >= 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.stores("sqlite")
@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("version", range(NEWEST))
def test_a_migration_disturbed_at_any_boundary_is_finished_by_the_next_opener(
    version: int, how: str, tmp_path: Path, watched_stage: Stage
) -> None:
    """From every earlier schema, and from no file at all."""
    met = every_boundary(version, MAKERS[how], watched_stage, tmp_path)

    print(f"schema {version}: {how} at {met} boundaries")
    assert met >= 10


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.stores("postgres")
@pytest.mark.parametrize("how", SERVER_MAKERS)
@pytest.mark.parametrize("version", range(SERVER_NEWEST))
def test_a_migration_disturbed_at_any_message_is_finished_by_the_next_opener(
    version: int, how: str, tmp_path: Path, watched_stage: Stage
) -> None:
    """The same on a server."""
    met = every_boundary(version, SERVER_MAKERS[how], watched_stage, tmp_path)

    print(f"schema {version}: {how} at {met} messages")
    assert met >= 10
