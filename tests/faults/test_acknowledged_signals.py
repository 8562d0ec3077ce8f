"""A sender that was answered may forget: its signal is on the disk, though the server goes down at once and again and again.

Workers are told of a signal before it is on the disk, and its sender is answered after. So the sender is alone here in one case, since then
nothing but its own answer waits for the disk; in the other there are three, which share.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from durable import RunHandle, Signal, connect, workflow
from tests.conftest import without_server
from tests.support.postgres import NoServer, Server, find_binaries
from tests.support.workers import running_worker, until

ROUNDS = 12  # an answer before the disk is caught by the first few, when the sender is alone

told = Signal("told", str)
THE_END = "that was all"


@workflow
async def listens() -> list[str]:
    """Take in signals up to the last one."""
    heard: list[str] = []
    while (last := await told.wait()) != THE_END:
        heard.append(last)
    return heard


@pytest.fixture
def flushing() -> Iterator[Server]:
    """A server that flushes, as people's do."""
    try:
        server = Server(find_binaries(), {"fsync": "on", "full_page_writes": "on"})
    except NoServer as missing:
        without_server(str(missing))
    yield server
    server.remove()


@pytest.mark.slow
@pytest.mark.parametrize("senders", [1, 3])
async def test_no_acknowledged_signal_is_lost_or_doubled_when_the_server_stops_at_once(
    flushing: Server, senders: int
) -> None:
    """Each under an id of its own, so that one whose answer was lost is sent again: it counts once (P4, I3)."""
    chance = random.Random(senders)
    acknowledged: list[str] = []
    async with connect(flushing.tcp_url) as client:
        run = await client.start(listens, run_id="listens")  # nobody drives it yet
        is_over = asyncio.Event()
        sending = [asyncio.create_task(send(run, str(who), acknowledged, is_over)) for who in range(senders)]
        for _ in range(ROUNDS):
            enough = len(acknowledged) + chance.randrange(5, 60)
            await until(lambda enough=enough: len(acknowledged) >= enough)
            await asyncio.to_thread(flushing.restart, "immediate")
        is_over.set()
        await asyncio.gather(*sending)

        await run.signal(told, THE_END)
        async with running_worker(client, listens):
            heard = Counter(await run.result(60))

    assert not [text for text in acknowledged if heard[text] != 1]
    assert heard.keys() == set(acknowledged)  # every sender was answered in the end


async def send(run: RunHandle[list[str]], who: str, acknowledged: list[str], is_over: asyncio.Event) -> None:
    number = 0
    while not is_over.is_set():
        text = f"{who}/{number}"
        await run.signal(told, text, id=text)
        acknowledged.append(text)
        number += 1
