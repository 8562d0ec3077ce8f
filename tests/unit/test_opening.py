"""From what a person writes to a store's URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import durable
from durable import connect
from durable.errors import DefinitionError, StoreBusyError
from durable.store.opening import masked, normalised, open_store
from durable.store.postgres.location import locate


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("durable.db", "sqlite:///durable.db"),
        ("/var/lib/a.db", "sqlite:////var/lib/a.db"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("postgres://h/db", "postgresql://h/db"),
        ("postgresql://u:p@h/db", "postgresql://u:p@h/db"),
    ],
)
def test_urls_are_normalised(written: str, url: str) -> None:
    """A bare path is a SQLite file."""
    assert normalised(written) == url


@pytest.mark.parametrize("written", ["sqlite:a.db", "sqlite://a.db", "mysql://u:secret@h/db", "redis://h"])
def test_other_urls_are_refused_without_their_password(written: str) -> None:
    """The message names the URL, never the password."""
    with pytest.raises(DefinitionError) as raised:
        normalised(written)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("wrong", [5, b"durable.db", Path("durable.db")])
def test_what_is_no_text_is_no_address(wrong: Any) -> None:
    """Said where it is given, not at the first run."""
    for take in (normalised, connect, durable.configure):
        with pytest.raises(DefinitionError, match="named by text"):
            take(wrong)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p4ss:w@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("postgresql://h/db", "postgresql://h/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h:5432/db", "postgresql://h:5432/db"),
        ("postgresql://:p@h/db", "postgresql://:***@h/db"),
        ("postgresql://u:p@ss/w?r#d@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p\nq@h/db", "postgresql://u:***@h/db"),
        ("postgresql://h/db?user=u&password=p&sslmode=require", "postgresql://h/db?user=u&password=***&sslmode=require"),
        ("postgresql://h/db?sslpassword=p", "postgresql://h/db?sslpassword=***"),
        ("host=h user=u password=p dbname=db", "host=h user=u password=*** dbname=db"),
        ("host=h password='p q\\' r' dbname=db", "host=h password=*** dbname=db"),
        ("PGPASSWORD=p host=h", "PGPASSWORD=*** host=h"),
        ("sqlite:////srv/shop@home/a.db", "sqlite:////srv/shop@home/a.db"),
        ("durable.db", "durable.db"),
    ],
)  # fmt: skip
def test_passwords_are_masked(url: str, shown: str) -> None:
    """Whatever they hold, and wherever they stand."""
    assert masked(url) == shown


async def test_an_address_does_not_show_its_password() -> None:
    """It is handed about in this library, and might get into a log."""
    client = connect("postgresql://u:secret@h/db?password=secret")

    for text in (repr(client.address), str(client.address), client.url, repr(client)):
        assert "secret" not in text


@pytest.mark.parametrize("url", ["", ":memory:", "sqlite:///", "sqlite:///:memory:"])
async def test_memory_is_no_place_for_a_database(url: str) -> None:
    """Threads and processes could not share it."""
    with pytest.raises(DefinitionError, match="name a file"):
        await open_store(url)


async def test_a_server_that_is_not_there_is_busy_and_its_password_is_not_told() -> None:
    """It may come up again, so whoever runs for long tries again."""
    with pytest.raises(StoreBusyError) as raised:
        await open_store("postgresql://u:secret@127.0.0.1:1/db?schema=mine")
    assert "secret" not in str(raised.value)
    assert "127.0.0.1" in str(raised.value)


def test_a_schema_and_a_pooler_are_taken_out_of_the_url() -> None:
    """What is ours must not reach the driver, what is the driver's must."""
    place = locate("postgresql://u:p@h:1/db?schema=shop&sslmode=require&pooler=transaction", "shown")

    assert place.dsn == "postgresql://u:p@h:1/db?sslmode=require"
    assert (place.schema, place.is_pooled, place.shown) == ("shop", True, "shown")
    assert locate("postgresql://h/db", "").schema == "durable"


@pytest.mark.parametrize(
    "query",
    [
        "schema=",
        "schema=a-b",
        'schema="x"',
        "schema=A",
        "schema=pg_x",
        "schema=1a",
        "schema=" + "a" * 49,
        "pooler=session",
    ],
)
def test_a_schema_is_a_plain_word(query: str) -> None:
    """It stands in every statement: nothing may be in it that SQL could read as anything else."""
    with pytest.raises(DefinitionError, match=r"schema|pooler"):
        locate(f"postgresql://h/db?{query}", "the url")
