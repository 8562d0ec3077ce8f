"""Fixtures of the crash suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import boundaries
from tests.support.crashes import Scene, Stage, Zygote

CLOCKS = boundaries.SOURCE.with_name("clocks.c")


@pytest.fixture(scope="session")
def zygotes() -> Iterator[list[Zygote]]:
    """Two, of different hash seeds: whoever takes over hashes otherwise than whoever died."""
    started = [Zygote(seed) for seed in ("1", "20261122")]
    yield started
    for zygote in started:
        zygote.close()


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Zygote]]:
    """Two whose children's writes to the disk, or messages to a server, are counted call by call."""
    library = compiled(tmp_path_factory, boundaries.SOURCE)
    started = [Zygote(seed, preload=library) for seed in ("1", "20261122")]
    yield started
    for zygote in started:
        zygote.close()


@pytest.fixture(scope="session")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What sets the wall clock of a process, preloaded."""
    return compiled(tmp_path_factory, CLOCKS)


def compiled(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    try:
        return boundaries.build(tmp_path_factory.mktemp(source.stem), source)
    except boundaries.NoCompilerError as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture
def server_url(store_kind: str, request: pytest.FixtureRequest) -> str | None:
    """The server of a test, if it is about one."""
    return None if store_kind == "sqlite" else str(request.getfixturevalue("postgres").url)


@pytest.fixture
def stage(zygotes: list[Zygote], server_url: str | None) -> Stage:
    """Where the scenes of a test are played."""
    return Stage(zygotes, server_url)


@pytest.fixture
def watched_stage(watched: list[Zygote], server_url: str | None) -> Stage:
    """The same, for scenes with boundaries."""
    return Stage(watched, server_url)


@pytest.fixture
def scene(tmp_path: Path, stage: Stage) -> Iterator[Scene]:
    with stage(tmp_path / "scene") as opened:
        yield opened
