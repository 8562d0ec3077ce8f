"""Fixtures of the crash suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crashes import Scene, Zygote


@pytest.fixture(scope="session")
def zygotes() -> Iterator[list[Zygote]]:
    """Two, of different hash seeds: whoever takes over hashes otherwise than whoever died."""
    started = [Zygote(seed) for seed in ("1", "20261122")]
    yield started
    for zygote in started:
        zygote.close()


@pytest.fixture
def scene(tmp_path: Path, zygotes: list[Zygote]) -> Iterator[Scene]:
    with Scene(tmp_path / "scene", zygotes) as opened:
        yield opened
