"""Makes a schema ours: probes it, applies migrations. Safe when many processes do so at once.

Migrations run in one transaction under a lock of the database, so all of them happen or none. Each one leaves the schema such that the
code before it still works (expand first, contract a version later): an old worker goes on, and a worker that finds a schema
newer than it knows refuses, saying so.
"""

from __future__ import annotations

from typing import Final

from durable.errors import NotADatabaseError, SchemaVersionError, StoreError
from durable.seams import SystemClock, SystemRandom
from durable.store.migrations import Migration, load_migrations
from durable.store.postgres.connection import PACKAGE, Database, Session, in_schema
from durable.store.postgres.location import Place
from durable.store.records import PendingMigration, Schema
from durable.store.statements import load_statements

# What `_write_meta` writes, for people who run migrations by hand.
_META: Final = """INSERT INTO durable.meta (key, value) VALUES
    ('database_id', md5(random()::text || clock_timestamp()::text)),
    ('hash_seed', floor(random() * 4294967296)::bigint::text),
    ('created_at_us', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text);"""
# However little time the role has for a statement: a migration takes what it takes.
_PATIENCE: Final = "SET LOCAL lock_timeout = 60000; SET LOCAL statement_timeout = 0"


async def probe(db: Session, shown: str) -> int:
    """Return the version of the schema, 0 if it is not there or empty; refuse one that is not ours, or newer than this code."""
    found = await db.row("look_at_schema", schema=db.schema)
    if found["is_used"] and not found["is_ours"]:
        raise NotADatabaseError(
            f"{shown}: the schema {db.schema!r} holds other tables; it was not touched. Name another one with ?schema="
        )
    if not found["is_ours"]:
        return 0
    version = int(await db.value("read_schema_version"))
    newest = len(load_migrations(PACKAGE))
    if version > newest:
        raise SchemaVersionError(
            f"{shown} has schema {version}, this code knows schemas up to {newest}; upgrade the library"
        )
    return version


async def migrate(database: Database, *, create: bool) -> None:
    """Bring the schema up to date if it is behind. `create=False`: it must be there."""
    version = await database.run(lambda db: probe(db, database.shown))
    if version == 0 and not create:
        raise StoreError(f"{database.shown}: no run was ever started here")
    if version < len(load_migrations(PACKAGE)):
        await database.run(lambda db: _apply(db, database.shown))


async def require_current(database: Database) -> None:
    """For a database that cannot be written: its schema must be the one this code knows."""
    version = await database.run(lambda db: probe(db, database.shown))
    if version == 0:
        raise StoreError(f"{database.shown}: no run was ever started here")
    if version < len(load_migrations(PACKAGE)):
        raise SchemaVersionError(
            f"{database.shown} has an older schema ({version}) and is a standby; migrate its primary first: durable migrate"
        )


async def _apply(db: Session, shown: str) -> None:
    await db.execute(_PATIENCE)
    await db.fetch("lock_migrations")
    version = await probe(db, shown)  # again, now that nobody else can
    if version == 0:
        await db.fetch("create_schema")
        await db.fetch("create_migration_table")
    for migration in load_migrations(PACKAGE)[version:]:
        await db.execute(in_schema(migration.script, db.schema))
        if migration.number == 1:
            await _write_meta(db)
        await db.fetch("record_migration", number=migration.number, name=migration.name)


async def _write_meta(db: Session) -> None:
    random = SystemRandom()
    for key, value in (
        ("database_id", random.request_id()),
        ("hash_seed", str(random.seed() % (1 << 32))),
        ("created_at_us", str(SystemClock().now_us())),
    ):
        await db.fetch("write_meta", key=key, value=value)


async def read_schema(place: Place) -> Schema:
    """Return the version of a schema without changing it; 0 if it is not there."""
    database = Database(place, durability="full", name="durable")
    try:
        await database.probe()
        version = await database.run(lambda db: probe(db, database.shown))
    finally:
        await database.close()
    return Schema(version=version, newest=len(load_migrations(PACKAGE)))


async def pending_migrations(place: Place) -> list[PendingMigration]:
    """Return the migrations that a schema lacks, for psql; the first one makes it."""
    version = (await read_schema(place)).version
    return [
        PendingMigration(number=one.number, name=one.name, sql=_script(one, place.schema))
        for one in load_migrations(PACKAGE)[version:]
    ]


def _script(migration: Migration, schema: str) -> str:
    recorded = (
        "INSERT INTO durable.migration (number, name, applied_at_us)\n"
        f"VALUES ({migration.number}, '{migration.name}', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);"
    )
    sql = load_statements(PACKAGE)
    made = [f"{sql['create_schema']};", f"{sql['create_migration_table']};"] if migration.number == 1 else []
    facts = [_META] if migration.number == 1 else []
    parts = ["BEGIN;", *made, migration.script.strip(), *facts, recorded, "COMMIT;"]
    return in_schema("\n\n".join(parts), schema)
