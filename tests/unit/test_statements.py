"""Named SQL and migration scripts: how files are cut."""

from __future__ import annotations

import pytest

from durable.errors import InternalError
from durable.store.migrations import load_migrations, split_script
from durable.store.statements import load_statements, parse_statements


def test_statements_are_found_by_name_without_comments() -> None:
    """A name starts a statement; comments and the closing semicolon go."""
    found = parse_statements(
        "-- A file.\n\n-- name: one\n-- why\nSELECT 1\nWHERE 1;\n\n-- name: two\nSELECT 2;\n"
    )

    assert dict(found) == {"one": "SELECT 1\nWHERE 1", "two": "SELECT 2"}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;", "two SQL statements are named 'a'"),
        ("-- name: a\n-- nothing\n", "without SQL: a"),
        ("SELECT 1;\n-- name: a\nSELECT 2;", "before the first name"),
    ],
)
def test_a_file_that_makes_no_sense_is_our_fault(text: str, complaint: str) -> None:
    """Mistakes in our SQL files are internal errors, found at the first load."""
    with pytest.raises(InternalError, match=complaint):
        parse_statements(text)


def test_an_unknown_name_is_our_fault() -> None:
    """A typing mistake in a statement's name says which."""
    with pytest.raises(InternalError, match="'nosuch'"):
        load_statements("durable.store.sqlite")["nosuch"]


def test_every_statement_of_the_sqlite_store_stands_alone() -> None:
    """One statement per name."""
    for name, sql in load_statements("durable.store.sqlite").items():
        assert ";" not in sql, name


def test_scripts_are_cut_at_statements_not_at_semicolons() -> None:
    """Triggers hold semicolons of their own."""
    script = """
-- a comment; with a semicolon
CREATE TABLE a (x TEXT DEFAULT ';');
CREATE TRIGGER t BEFORE DELETE ON a
BEGIN
    SELECT RAISE(ABORT, 'no; never');
END;
"""
    first, second = split_script(script)

    assert first.startswith("CREATE TABLE")
    assert second.endswith("END;")


def test_a_script_that_ends_early_is_our_fault() -> None:
    """A forgotten semicolon does not drop a statement."""
    with pytest.raises(InternalError, match="ends inside"):
        split_script("CREATE TABLE a (x TEXT)")


def test_migrations_are_numbered_from_one() -> None:
    """The number of migrations is the schema version."""
    migrations = load_migrations("durable.store.sqlite")

    assert [migration.number for migration in migrations] == list(range(1, len(migrations) + 1))
    assert migrations[0].name == "initial"
