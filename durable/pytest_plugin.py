"""Fixtures for users' tests, which pytest finds by itself. They cost nothing until a test asks for one.

`durable_env` is a `durable.testing.Environment`, to be entered by the test; `durable_journals` replays, when the test is over, every run that any
of its databases held, and keeps them for whoever wants to look.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from durable.testing.environment import Environment
    from durable.testing.journals import Journals


@pytest.fixture
def durable_env() -> Environment:
    """A place for runs, with a clock that skips: `async with durable_env as env:`."""
    from durable.testing.environment import Environment

    return Environment()


@pytest.fixture
def durable_journals() -> Iterator[Journals]:
    """The runs of all databases that the test closes; each is replayed with the code of the test when it is over."""
    from durable.testing.journals import Journals

    journals = Journals()
    with journals.kept():
        yield journals
    journals.replay()
