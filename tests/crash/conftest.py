"""Fixtures of the crash suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crashes import Scene, Stage, Zygote


@pytest.fixture(scope="session")
def zygotes() -> Iterator[list[Zygote]]:
    """Two, of different hash seeds: whoever takes over hashes otherwise than whoever died."""
    started = [Zygote(seed) for seed in ("1", "20261122")]
    yield started
    for zygote in started:
        zygote.close()


@pytest.fixture
def stage(store_kind: str, zygotes: list[Zygote], request: pytest.FixtureRequest) -> Stage:
    """Where the scenes of a test are played."""
    if store_kind == "sqlite":
        return Stage(zygotes, None)
    return Stage(zygotes, request.getfixturevalue("postgres").url)


@pytest.fixture
def scene(tmp_path: Path, stage: Stage) -> Iterator[Scene]:
    with stage(tmp_path / "scene") as opened:
        yield opened
