"""Named SQL and migration scripts: how files are cut."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from durable.errors import InternalError
from durable.store.migrations import load_migrations, split_script
from durable.store.postgres.connection import statements_for
from durable.store.statements import load_statements, numbered, parse_statements

STORES = ("durable.store.sqlite", "durable.store.postgres")


def test_statements_are_found_by_name_without_comments() -> None:
    """A name starts a statement; comments and the closing semicolon go."""
    found = parse_statements(
        "-- A file.\n\n-- name: one\n-- why\nSELECT 1\nWHERE 1;\n\n-- name: two\nSELECT 2;\n"
    )

    assert dict(found) == {"one": "SELECT 1\nWHERE 1", "two": "SELECT 2"}
    assert len(found) == 2


def test_a_statement_can_be_like_another_but_for_one_place() -> None:
    """Said once: two texts that must be the same would not stay so."""
    found = parse_statements(
        "-- name: all\nSELECT id FROM run\nWHERE TRUE;\n-- name: old\n-- Those of last year.\n-- like: all, with age > 1 for TRUE\n"
    )

    assert found["old"] == "SELECT id FROM run\nWHERE age > 1"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;", "two SQL statements are named 'a'"),
        ("-- name: a\n-- nothing\n", "without SQL: a"),
        ("SELECT 1;\n-- name: a\nSELECT 2;", "before the first name"),
        (
            "-- name: a\nSELECT 1;\n-- name: b\n-- like: a, with 2 for 3",
            "'3' does not stand in the SQL statement 'a' once",
        ),
        ("-- name: b\n-- like: c, with 2 for 3", "in the SQL statement 'c' once"),
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


@pytest.mark.parametrize("package", STORES)
def test_every_statement_of_a_store_stands_alone(package: str) -> None:
    """One statement per name."""
    for name, sql in load_statements(package).items():
        assert ";" not in sql, name


@pytest.mark.parametrize("package", STORES)
def test_every_statement_of_a_store_is_used(package: str) -> None:
    """Its name stands in the store's code."""
    code = "".join(path.read_text() for path in Path(package.replace(".", "/")).glob("*.py"))

    assert [name for name in load_statements(package) if f'"{name}"' not in code] == []


def test_names_become_numbers() -> None:
    """The same name is the same number; casts, words with colons and quoted text are left alone."""
    found = numbered("SELECT :a::bigint, :b, ':c' WHERE x = :a AND y = 'it''s :d' AND z = :e_1")

    assert found.text == "SELECT $1::bigint, $2, ':c' WHERE x = $1 AND y = 'it''s :d' AND z = $3"
    assert found.names == ("a", "b", "e_1")


def test_every_statement_of_the_postgres_store_names_its_schema() -> None:
    """Whatever the search path of the role is, nothing of anybody else's is touched."""
    tables = re.findall(
        r"CREATE (?:TABLE|VIEW|SEQUENCE) durable\.(\w+)", load_migrations(STORES[1])[0].script
    )
    for name, sql in statements_for("shop").items():
        for table in tables:
            assert not re.search(rf"(FROM|JOIN|INTO|UPDATE|USING) {table}\b(?!\.)", sql.text), (name, table)
        assert "durable" not in sql.text.replace("durable_now", ""), name


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


@pytest.mark.parametrize("package", STORES)
def test_migrations_are_numbered_from_one(package: str) -> None:
    """The number of migrations is the schema version."""
    migrations = load_migrations(package)

    assert [migration.number for migration in migrations] == list(range(1, len(migrations) + 1))
    assert migrations[0].name == "initial"
