"""Whatever a test of the patterns has recorded is replayed when it is over: their own code must be deterministic, too."""

from __future__ import annotations

import pytest

from durable.testing import Journals


@pytest.fixture(autouse=True)
def every_journal_is_replayed(durable_journals: Journals) -> None:
    """See `durable.pytest_plugin`."""
