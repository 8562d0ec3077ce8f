"""Only SQLite may open the files of a database: whoever closes another descriptor of them drops this process's locks (P31)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from durable import Signal, Worker, activity, connect, workflow
from tests.support.workers import is_waiting

FILES = ("", "-wal", "-shm", "-journal")
go = Signal("go", int)
_watched: dict[str, list[str]] = {}


@activity
def work() -> int:
    return 1


@workflow
async def waits() -> int:
    return await work() + await go.wait()


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event == "open" and isinstance(arguments[0], str | bytes):
        name = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()
        for opened in _watched.values():
            opened.append(name)


@contextmanager
def files_opened_by_python() -> Iterator[list[str]]:
    """Collect what Python's own `open` and `os.open` are asked for; what SQLite opens itself is not seen."""
    sys.addaudithook(_on_event)  # for good: it looks at nothing once the block has ended
    opened: list[str] = []
    _watched["here"] = opened
    try:
        yield opened
    finally:
        del _watched["here"]


async def test_no_file_of_the_database_is_opened_but_by_sqlite(tmp_path: Path) -> None:
    """Through all that is done with one: making it, work, a backup, a look, pruning, closing, and opening it again."""
    database = tmp_path / "shop.db"
    with files_opened_by_python() as opened:
        for number in range(2):
            async with connect(f"sqlite:///{database}") as client, Worker(client, waits):
                run = await client.start(waits, run_id=f"r{number}")
                await is_waiting(run, "signal")
                await client.backup(tmp_path / f"copy{number}.db")
                await client.health()
                await client.schema()
                await run.signal(go, 1)
                assert await run.result(60) == 2
                await client.prune(older_than=0)

    assert any(name.endswith(".lock") for name in opened), "the hook sees nothing"
    assert not {str(database) + ending for ending in FILES} & set(opened)
