"""From what a person writes to a store's URL."""

from __future__ import annotations

import pytest

from durable.errors import DefinitionError, StoreError
from durable.store.opening import masked, normalised, open_store


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


def test_passwords_are_masked() -> None:
    """What stands between the colon and the at-sign is nobody's business."""
    assert masked("postgresql://u:p4ss:w@h:5432/db") == "postgresql://u:***@h:5432/db"
    assert masked("postgresql://h/db") == "postgresql://h/db"


@pytest.mark.parametrize("url", ["", ":memory:", "sqlite:///", "sqlite:///:memory:"])
async def test_memory_is_no_place_for_a_database(url: str) -> None:
    """Threads and processes could not share it."""
    with pytest.raises(DefinitionError, match="name a file"):
        await open_store(url)


async def test_a_database_without_a_store_is_a_clear_error() -> None:
    """Postgres has no store yet; the password is not told."""
    with pytest.raises(StoreError) as raised:
        await open_store("postgresql://u:secret@h/db")
    assert "secret" not in str(raised.value)
