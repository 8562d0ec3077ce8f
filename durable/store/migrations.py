"""Numbered `.sql` files that bring a schema forward: which there are, and how one is cut into statements.

Knows nothing of connections: a store applies them, each in one transaction, under its own lock. Migrations only go
forward, are never edited once released, and old code must run on the schema before the next one (expand, then
contract).
"""

from __future__ import annotations

import re
import sqlite3
from functools import cache
from importlib import resources

import msgspec

from durable.errors import InternalError

_FILE = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    name: str
    script: str

    @property
    def statements(self) -> tuple[str, ...]:
        """The script cut into SQLite statements; Postgres takes it whole."""
        return split_script(self.script)


@cache
def load_migrations(package: str) -> tuple[Migration, ...]:
    """Return the migrations in the `migrations` directory of `package`, in order, numbered from 1 without gaps."""
    found = []
    for entry in resources.files(package).joinpath("migrations").iterdir():
        if (match := _FILE.match(entry.name)) is not None:
            found.append(
                Migration(
                    number=int(match.group(1)),
                    name=match.group(2),
                    script=entry.read_text(encoding="utf-8"),
                )
            )
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise InternalError(f"the migrations of {package} are not numbered 1..{len(found)}")
    return tuple(found)


def split_script(text: str) -> tuple[str, ...]:
    """Cut a script at the semicolons that end a statement, so that all of it runs inside one transaction.

    (`executescript` would commit the transaction first.) Semicolons in triggers and strings are understood.
    """
    statements: list[str] = []
    pending = ""
    for line in text.splitlines():
        if line.lstrip().startswith("--"):
            continue
        pending += line + "\n"
        if line.rstrip().endswith(";") and sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    if pending.strip():
        raise InternalError(f"a migration ends inside a statement: {pending.strip()[:80]!r}")
    return tuple(statements)
