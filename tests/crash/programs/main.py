"""The processes of the crash suite: what a forked child, or `python -m tests.crash.programs.main`, does."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec

import durable
from durable import Client, Encryption, RunHandle, Worker, Workflow, WorkflowFailedError, WorkflowStateError
from durable.default import engine_here
from durable.store.opening import Durability
from tests.crash.programs import (
    bulk_used,
    children_used,
    classes_used,
    demands,
    drained_used,
    graphs_used,
    handlers_used,
    nested_used,
    operators_used,
    parked_used,
    patterns_used,
    racing,
    retention_used,
    scopes_used,
    updates_used,
    workflows,
)
from tests.support import boundaries, crash_ledger, crash_points
from tests.support.boundaries import Boundary
from tests.support.crash_points import Plan

GRACE_SECONDS: Final = 0.1
KEYS: Final = {"k1": bytes(range(32)), "k2": bytes(range(32, 64))}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is to do."""

    program: Literal[
        "embedded",
        "embedded_one",
        "worker_one",
        "worker",
        "client",
        "starter",
        "asker",
        "patterns",
        "pattern_worker",
        "fragile",
        "graphs",
        "graph_worker",
        "nested",
        "nested_worker",
        "children",
        "child_worker",
        "classes",
        "class_worker",
        "updates",
        "update_worker",
        "rolling",
        "rolling_worker",
        "bulk",
        "opener",
        "operator",
        "parking",
        "racer",
        "scopes",
        "scope_worker",
        "handlers",
        "handler_worker",
        "retention_maker",
        "pruner",
        "drainer",
        "leaver",
        "finisher",
    ]
    directory: str
    url: str = ""  # default: a SQLite file in the directory
    plan: Plan = Plan()
    boundary: Boundary | None = None  # a zygote with the library preloaded
    warm_us: int | None = None
    spill: bool = False
    durability: Durability = "process"
    lease_seconds: float = 10.0
    concurrency: int = 100
    with_demands: bool = False
    runs: int = 0
    length: int = 3
    signals: int = 0
    workflow: str = ""
    argument: Any = None
    run_id: str = ""
    elsewhere: str = ""  # a queue whose activities are performed by a second worker
    key: str = ""  # which of KEYS its payloads are encrypted with; "": none
    until: Literal["result", "mistake", "return"] = "result"
    grace_seconds: float = GRACE_SECONDS


def main(options: Options) -> int:
    directory = Path(options.directory)
    os.environ["CRASH_DIRECTORY"] = options.directory
    os.environ["DURABLE_LEASE_TTL"] = str(options.lease_seconds)  # embedded engines have one, too
    os.environ[crash_ledger.VARIABLE] = str(directory / "ledger.jsonl")
    logging.basicConfig(
        level=logging.WARNING, format="%(created)f %(process)d %(levelname)s %(name)s %(message)s"
    )
    crash_points.install(
        options.plan, directory / "deaths.jsonl", warm_us=options.warm_us, spill=options.spill
    )
    if options.boundary is not None:
        boundaries.arm(
            options.boundary,
            files=directory / "runs.db",
            port=port_of(options.url),
            deaths=directory / "deaths.jsonl",
        )
    asyncio.run(globals()[options.program](options))
    print("write transactions:", *crash_points.points.names)
    if options.boundary is not None:
        print("calls that were counted:", boundaries.reached())
    return 0


def url(options: Options) -> str:
    return options.url or f"sqlite:///{Path(options.directory) / 'runs.db'}"


def codec(options: Options) -> Encryption | None:
    return Encryption({options.key: KEYS[options.key]}) if options.key else None


def port_of(server_url: str) -> int:
    """Return the port of a server of the tests, 0 without one."""
    return int(dict(parse_qsl(urlsplit(server_url).query)).get("port", 0))


def acknowledge(options: Options, what: str, *details: object) -> None:
    """Note that a call has returned: from now on it must hold, whatever dies."""
    crash_ledger.append(Path(options.directory) / "acknowledged.jsonl", [what, *details])
    crash_points.points.answer()


async def embedded(options: Options) -> None:
    """A plain script: the engine lives in this process."""
    durable.configure(url(options), durability=options.durability)
    await demands.make((await engine_here()).client, start_here)


async def embedded_one(options: Options) -> None:
    """A plain script that runs one workflow; it prints the result, makes a mistake, or does not wait for the end."""
    durable.configure(url(options), durability=options.durability, codec=codec(options))
    workflow: Workflow[..., Any] = getattr(workflows, options.workflow)
    run = await workflow.start(options.argument, run_id=options.run_id)
    if options.until == "result":
        print(msgspec.json.encode(await run.result()).decode())
        return
    ledger = Path(os.environ[crash_ledger.VARIABLE])
    while not any("/held" in line.key for line in crash_ledger.read(ledger)):  # noqa: ASYNC110  # events in a file
        await asyncio.sleep(0.005)
    if options.until == "mistake":
        raise RuntimeError("a mistake in the script")


async def worker_one(options: Options) -> None:
    """A worker that ends with one workflow; with `elsewhere` another one beside it performs its activities."""
    async with durable.connect(url(options), durability=options.durability) as client:
        workflow: Workflow[..., Any] = getattr(workflows, options.workflow)
        queue, lease = options.elsewhere, options.lease_seconds
        arguments = (options.argument, queue) if queue else (options.argument,)
        await client.start(workflow, *arguments, run_id=options.run_id)
        async with AsyncExitStack() as workers:
            await workers.enter_async_context(Worker(client, workflow, lease_seconds=lease))
            if queue:
                performer = Worker(
                    client, activities=[workflows], task_queue=queue, lease_seconds=lease, retention=None
                )
                await workers.enter_async_context(performer)
            await demands.closed(client, options.run_id)


async def asker(options: Options) -> None:
    """Somebody who starts one run and goes."""
    async with durable.connect(url(options), durability=options.durability, codec=codec(options)) as opened:
        workflow: Workflow[..., Any] = getattr(workflows, options.workflow)
        await opened.start(workflow, options.argument, run_id=options.run_id)
        acknowledge(options, "started", options.run_id)


async def worker(options: Options) -> None:
    """A worker; SIGTERM drains it."""
    async with durable.connect(url(options), durability=options.durability, codec=codec(options)) as client:
        serving = Worker(
            client, workflows, lease_seconds=options.lease_seconds, concurrency=options.concurrency
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.stop, options.grace_seconds)
        if not options.with_demands:
            await serving.run()
            return
        async with serving:
            await demands.make(client, client.start)


async def client(options: Options) -> None:
    """Somebody who asks for everything, and waits."""
    async with durable.connect(url(options), durability=options.durability) as opened:
        await demands.make(opened, opened.start)


async def starter(options: Options) -> None:
    """Somebody who starts many runs, signals and cancels some, and notes each call that returned."""
    async with durable.connect(url(options), durability=options.durability) as opened:
        if options.length:
            for first in range(0, options.runs, 10):
                ids = [f"chain-{number:03}" for number in range(first, min(first + 10, options.runs))]
                await start_many_once(opened, options, ids)
        if options.signals:
            await signal_and_cancel(opened, options)


async def start_many_once(opened: Client, options: Options, ids: list[str]) -> None:
    await opened.start_many(workflows.chain, [(options.length,)] * len(ids), run_ids=ids)
    for run_id in ids:
        acknowledge(options, "started", run_id)


async def signal_and_cancel(opened: Client, options: Options) -> None:
    run = await opened.start(workflows.listener, options.signals, run_id="listener")
    acknowledge(options, "started", "listener")
    waiting = await opened.start(workflows.cancellable, "c", run_id="cancelled")
    acknowledge(options, "started", "cancelled")

    async def tell(number: int) -> None:
        await run.signal(workflows.told, number, id=f"told-{number}")
        acknowledge(options, "told", number)

    for number in range(1, options.signals // 2 + 1):
        await tell(number)
    # The rest at once: on a file they share a transaction.
    await asyncio.gather(*[tell(number) for number in range(options.signals // 2 + 1, options.signals + 1)])
    if not await demands.is_cancel_known(opened, "cancelled"):
        try:
            await waiting.cancel("enough")
        except WorkflowStateError:
            return
        acknowledge(options, "cancelled")


async def opener(options: Options) -> None:
    """Somebody who opens the database, which brings its schema up to date, and goes."""
    async with durable.connect(url(options), durability=options.durability):
        acknowledge(options, "opened")


async def operator(options: Options) -> None:
    """A worker, and people who hold it back, retry, answer, copy and delete."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await operators_used.operate(client, lease_seconds=options.lease_seconds)


async def retention_maker(options: Options) -> None:
    """A worker that closes runs, and goes."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await retention_used.make(client, lease_seconds=options.lease_seconds)


async def pruner(options: Options) -> None:
    """Somebody who deletes what is closed: by a call, or as a worker. `run_id` says which."""
    how: Literal["call", "worker"] = "call" if options.run_id == "call" else "worker"
    async with durable.connect(url(options), durability=options.durability) as client:
        await retention_used.prune(client, how, lease_seconds=options.lease_seconds)


async def drainer(options: Options) -> None:
    """A worker that is told to stop while it is at work."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await drained_used.drain(client, lease_seconds=options.lease_seconds)


async def leaver(options: Options) -> None:
    """A plain script that ends before its runs do."""
    durable.configure(url(options), durability=options.durability)
    await drained_used.begin((await engine_here()).client, start_here, serves_all=False)


async def finisher(options: Options) -> None:
    """Who comes after them."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await drained_used.finish(client, lease_seconds=options.lease_seconds)


async def parking(options: Options) -> None:
    """A worker whose code is bad for a while."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await parked_used.park_and_mend(client, lease_seconds=options.lease_seconds)


async def bulk(options: Options) -> None:
    """A plain script with bulk operations and state machines."""
    durable.configure(url(options), durability=options.durability)
    await bulk_used.execute_all(Path(options.directory))


async def patterns(options: Options) -> None:
    """A plain script that executes every pattern."""
    durable.configure(url(options), durability=options.durability)
    await patterns_used.execute_all()


async def fragile(options: Options) -> None:
    """A plain script with sagas whose compensations kill the process at first."""
    durable.configure(url(options), durability=options.durability)
    if options.run_id == "tried_once":
        await patterns_used.tried_once.wait(
            await patterns_used.tried_once.start("tried_once", {}, "tried_once")
        )
        return
    if options.run_id == "fragile_body":
        with suppress(WorkflowFailedError):
            await patterns_used.fragile_body(run_id="fragile_body")
        return
    result = await patterns_used.Fragile().execute(run_id="fragile")
    error = result.unwrap_err()
    acknowledge(options, type(error).__name__, error.compensated, error.failed_compensations)


async def pattern_worker(options: Options) -> None:
    """A worker that only imports the module with the patterns; it first stores their runs, and ends when all are closed."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await patterns_used.store_all(client)
        async with Worker(client, patterns_used, lease_seconds=options.lease_seconds):
            for run_id in patterns_used.OUTCOMES:
                await demands.closed(client, run_id)


async def start_here(workflow: Workflow[..., Any], *arguments: Any, run_id: str) -> RunHandle[Any]:
    """Start a run, and drive it in this process."""
    return await workflow.start(*arguments, run_id=run_id)


async def scopes(options: Options) -> None:
    """A plain script with scopes of sagas."""
    durable.configure(url(options), durability=options.durability)
    await scopes_used.make((await engine_here()).client, start_here)


async def scope_worker(options: Options) -> None:
    """The same on a worker."""
    async with (
        durable.connect(url(options), durability=options.durability) as client,
        Worker(client, scopes_used, lease_seconds=options.lease_seconds),
    ):
        await scopes_used.make(client, client.start)


async def handlers(options: Options) -> None:
    """A plain script whose runs have handlers, and ask people."""
    durable.configure(url(options), durability=options.durability)
    client = (await engine_here()).client
    await handlers_used.store_early(client)
    await handlers_used.make(client, start_here)


async def handler_worker(options: Options) -> None:
    """The same on a worker."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await handlers_used.store_early(client)
        async with Worker(client, handlers_used, lease_seconds=options.lease_seconds):
            await handlers_used.make(client, client.start)


async def nested(options: Options) -> None:
    """A plain script with patterns in patterns."""
    durable.configure(url(options), durability=options.durability)
    await nested_used.execute_all()


async def nested_worker(options: Options) -> None:
    """The same on a worker, which ends when all of them are closed."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await nested_used.store_all(client)
        async with Worker(client, nested_used, lease_seconds=options.lease_seconds):
            await nested_used.answer(client)
            for run_id in nested_used.OUTCOMES:
                await demands.closed(client, run_id)


async def children(options: Options) -> None:
    """A plain script whose run has children."""
    durable.configure(url(options), durability=options.durability)
    await children_used.execute_all()


async def child_worker(options: Options) -> None:
    """The same on a worker, which ends when all of them are closed."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await children_used.store_all(client)
        lease = {"lease_seconds": options.lease_seconds}
        async with (
            Worker(client, children_used, **lease),
            Worker(client, children_used, task_queue=children_used.ANNEX, **lease),
        ):
            await children_used.let_all(client)
            for run_id in children_used.OUTCOMES:
                await demands.closed(client, run_id)


async def classes(options: Options) -> None:
    """A plain script whose runs are objects."""
    durable.configure(url(options), durability=options.durability)
    await classes_used.execute_all()


async def class_worker(options: Options) -> None:
    """The same on a worker, which ends when all of them are closed."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await classes_used.store_all(client)
        async with Worker(client, classes_used, lease_seconds=options.lease_seconds):
            await classes_used.tell_the_rest(client)
            for run_id in classes_used.OUTCOMES:
                await demands.closed(client, run_id)


async def updates(options: Options) -> None:
    """A plain script that calls into the run it drives."""
    durable.configure(url(options), durability=options.durability)
    await updates_used.execute_all()


async def update_worker(options: Options) -> None:
    """The same on a worker, which ends when the run is closed."""
    async with (
        durable.connect(url(options), durability=options.durability) as client,
        Worker(client, updates_used, lease_seconds=options.lease_seconds),
    ):
        await updates_used.call_one(client)
        await demands.closed(client, "cart")


async def rolling(options: Options) -> None:
    """A plain script with a run that continues as new, while somebody signals it."""
    durable.configure(url(options), durability=options.durability)
    run = await workflows.rolling.start(options.runs, run_id="rolling")
    await demands.roll(run, options.signals)


async def rolling_worker(options: Options) -> None:
    """The same on a worker."""
    async with durable.connect(url(options), durability=options.durability) as client:
        run = await client.start(workflows.rolling, options.runs, run_id="rolling")
        async with Worker(client, workflows, lease_seconds=options.lease_seconds):
            await demands.roll(run, options.signals)


async def racer(options: Options) -> None:
    """Race `runs` others of its kind on one state machine, once all of them are there."""
    durable.configure(url(options), durability=options.durability)
    directory = Path(options.directory)
    await racing.machine().recover()
    crash_ledger.append(directory / "racers.jsonl", os.getpid())
    while len((directory / "racers.jsonl").read_bytes().splitlines()) <= options.runs:  # noqa: ASYNC110  # others write it
        await asyncio.sleep(0.001)

    def entered(event: str, state: str) -> None:
        crash_ledger.append(directory / "callbacks.jsonl", state)

    beaten = await racing.race(entered, lambda state: acknowledge(options, state))
    print("was beaten", beaten, "times")


async def graphs(options: Options) -> None:
    """A plain script that executes every graph, and answers what they ask."""
    durable.configure(url(options), durability=options.durability)
    await graphs_used.execute_all()


async def graph_worker(options: Options) -> None:
    """A worker that only imports the module with the graphs; somebody beside it answers what they ask."""
    async with durable.connect(url(options), durability=options.durability) as client:
        await graphs_used.store_all(client)
        async with Worker(client, graphs_used, lease_seconds=options.lease_seconds):
            await graphs_used.answer_all(client)
            for run_id in graphs_used.OUTCOMES:
                await demands.closed(client, run_id)


if __name__ == "__main__":
    raise SystemExit(main(msgspec.json.decode(sys.argv[1], type=Options)))
