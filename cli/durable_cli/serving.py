"""`durable worker`: the process that serves workflows, and how it is started, watched, reloaded and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple, NoReturn

import click

import durable
from durable import Client, DurableError, Worker
from durable_cli.durations import duration_option, retention_option
from durable_cli.finding import database, run_async
from durable_cli.logs import FORMATS, LEVELS, set_up
from durable_cli.options import Settings, app_option, common_options
from durable_cli.output import Output, count, escaped
from durable_cli.probes import Address, address_option, answering
from durable_cli.problems import INTERRUPTED, OK, Problem
from durable_cli.reloading import Sources
from durable_cli.systemd import Manager
from durable_cli.targets import AnyActivity, AnyWorkflow, Found, load_served

GRACE_SECONDS: Final = 30.0
RELOAD_GRACE_SECONDS: Final = 1.0  # what runs is handed back, uncharged, and begins again with the new code
RETENTION_SECONDS: Final = 30 * 86_400.0
ACTIVATION_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 2.0  # the longest that a probe waits for the database
# A worker's process is ours: its runs and turns are many small objects without cycles, which the collector would walk again and again.
COLLECTOR_THRESHOLDS: Final = (50_000, 20, 100)
HASH_SEED_MARK: Final = "DURABLE_HASH_SEED"  # the seed with which this process was started anew, by us
SECOND_SIGNAL_CODES: Final = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: 143}


class Service(NamedTuple):
    """How a worker's process serves; times are seconds. No retention: closed runs stay for ever."""

    queues: Sequence[str] = ()
    concurrency: int = 100
    task_concurrency: int | None = None
    max_runs: int = 10_000
    drain: bool = False
    grace: float = GRACE_SECONDS
    retention: float | None = RETENTION_SECONDS
    activation_limit: float = ACTIVATION_SECONDS
    health: Address | None = None
    reload: bool = False


# ─ the command ───────────────────────────────────────────────────────────────


@click.command("worker")
@click.argument("targets", metavar="TARGET...", nargs=-1)
@click.option(
    "--task-queue",
    "queues",
    metavar="QUEUE",
    multiple=True,
    help="Where to claim runs, and activities that name the queue (default: the workflows' own). Repeatable.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Activities at a time of its own runs, per queue.",
)
@click.option(
    "--task-concurrency",
    type=click.IntRange(1),
    help="Activities at a time of other workers' runs, per queue (default: as many).",
)
@click.option(
    "--max-runs",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Runs it drives or keeps at hand, per queue.",
)
@click.option(
    "--drain", is_flag=True, help="Finish the backlog and exit: wait for timers and retries, not for signals."
)
@click.option(
    "--grace",
    type=duration_option,
    metavar="DURATION",
    default="30s",
    show_default=True,
    help="How long running activities may take after a signal.",
)
@click.option(
    "--retention",
    type=retention_option,
    metavar="DURATION",
    default="30d",
    show_default=True,
    help="Delete runs closed longer ago than that, where their workflow has no retention= of its own; none: never.",
)
@click.option(
    "--activation-limit",
    type=duration_option,
    metavar="DURATION",
    default="30s",
    show_default=True,
    help="Interrupt and park a workflow that computes for longer; a loop still for twice that ends the process.",
)
@click.option(
    "--health",
    type=address_option,
    metavar="[HOST]:PORT",
    help="Answer /healthz and /readyz there (host: 127.0.0.1).",
)
@click.option("--reload", is_flag=True, help="Start anew when a source file changes (development).")
@click.option("--log-format", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--log-level", type=click.Choice(LEVELS), default="warning", show_default=True)
@app_option
@common_options
@click.pass_obj
def worker_command(
    settings: Settings, /, targets: tuple[str, ...], log_format: str, log_level: str, **how: Any
) -> int:
    """Serve the workflows of one or several targets: claim their runs and drive them, until stopped.

    Also their activities, for runs of other workers that call them with one of its queues as their task_queue; a target without
    workflows serves those alone. TARGET: module, module:workflow, path/file.py or path/file.py:workflow (default: --app). SIGTERM and Ctrl-C drain: nothing
    new is claimed, running activities get the grace, the rest is handed back, uncharged (a thread that goes on has had its attempt). A second one stops at once. SIGHUP
    drains and starts the process anew. Under systemd (Type=notify) it says when it is ready, alive, and stopping.
    """
    names = targets or ((settings.app,) if settings.app else ())
    if not names:
        raise Problem("no target", hint="durable worker module (or file.py), or set DURABLE_APP")
    service = Service(**how)
    if service.reload and not _is_own_process():
        raise Problem("--reload starts the process anew, and this one is not the command line's own")
    if _is_own_process():
        _restart_with_hash_seed(settings)
    set_up(log_format, log_level)
    output = Output(settings)
    sources = Sources([Path.cwd(), settings.project_directory]) if service.reload else None
    try:
        found = [load_served(name, settings) for name in names]
    except Problem as problem:
        if sources is None:
            raise
        output.error(problem.message, problem.hint)
        _restart_after(sources, output)
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    return run_async(serve(settings, output, found, service, sources))


def _is_own_process() -> bool:
    """Whether this process is the command line and nothing else, so that it may be started anew."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    started_as = spec.name if spec is not None else Path(sys.argv[0]).stem
    return (
        os.name == "posix"
        and bool(sys.executable)
        and started_as in ("durable", "durable.__main__", "durable_cli.__main__")
    )


def _restart_with_hash_seed(settings: Settings) -> None:
    """Start this process anew, once, under the database's hash seed: sets of strings are then ordered alike everywhere.

    Not where Python ignores its environment (-I, -E), and not over a PYTHONHASHSEED that somebody chose.
    """
    marked = os.environ.get(HASH_SEED_MARK)
    if sys.flags.ignore_environment or (os.environ.get("PYTHONHASHSEED") or "random") not in (
        "random",
        marked,
    ):
        return
    seed = run_async(_hash_seed(settings))
    if seed is None or seed == marked:
        return
    _restart({"PYTHONHASHSEED": seed, HASH_SEED_MARK: seed})


async def _hash_seed(settings: Settings) -> str | None:
    async with database(settings, create=True) as client:
        return await client.store.read_meta("hash_seed")


def _restart(changed: dict[str, str] | None = None) -> NoReturn:
    """Replace this process by itself, as it was started: same process id, same words, today's files."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until there is somebody to take it again
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | (changed or {}))


def _restart_after(sources: Sources, output: Output) -> NoReturn:
    """Wait until a file changes, then start anew."""
    changed = run_async(sources.wait())
    output.note(f"{escaped(changed.name)} changed: starting anew")
    _restart()


# ─ serving ───────────────────────────────────────────────────────────────────


async def serve(
    settings: Settings,
    output: Output,
    found: Sequence[Found],
    how: Service,
    sources: Sources | None = None,
) -> int:
    """Work until stopped, or with `drain` until nothing can go on by itself."""
    workflows = list({id(one): one for each in found for one in each.workflows}.values())
    functions = list({id(one): one for each in found for one in each.functions}.values())
    served = list(dict.fromkeys(how.queues)) or _own_queues(workflows, functions)
    if not workflows and not (functions and served):
        names = ", ".join(each.name for each in found)
        raise Problem(f"no workflow in {names}", hint="decorate an async function with @workflow")
    performed = _served_once(functions, output)
    async with database(settings, create=True) as client:
        workers = [
            Worker(
                client,
                *workflows,
                activities=performed,
                task_queue=queue,
                concurrency=how.concurrency,
                task_concurrency=how.task_concurrency,
                max_runs=how.max_runs,
                retention=how.retention,
                activation_limit=how.activation_limit,
            )
            for queue in served
        ]
        crew = _Crew(client, workers, output, how)
        with crew.signals():
            async with crew.probes():
                output.note(_banner(found, served, how.concurrency, client.url))
                await crew.work(sources)
    if crew.starts_anew:
        _restart()
    return OK


def _own_queues(workflows: Sequence[AnyWorkflow], functions: Sequence[AnyActivity]) -> list[str]:
    """Return the queues that workflows name; where there is none, those that activities name."""
    named = {one.definition.task_queue for one in workflows}
    return sorted(named or {queue for one in functions if (queue := one.definition.task_queue) is not None})


def _served_once(functions: Sequence[AnyActivity], output: Output) -> list[AnyActivity]:
    """Return those whose name means one function: of two, a call from elsewhere could mean either."""
    by_name: dict[str, list[AnyActivity]] = {}
    for one in functions:
        by_name.setdefault(one.definition.served_as, []).append(one)
    served = {name: same[0] for name, same in by_name.items() if all(one.fn is same[0].fn for one in same)}
    for name in by_name.keys() - served.keys():
        output.note(f"two activities are called {escaped(name)}: it is not served to runs of other workers")
    return list(served.values())


def _banner(found: Sequence[Found], queues: Sequence[str], concurrency: int, url: str) -> str:
    parts = [
        f"{escaped(each.name)}: {count(len(each.workflows), 'workflow')}"
        + (f", {count(each.activities, 'activity')}" if each.activities else "")
        for each in found
    ]
    queue_text = f"{'queue' if len(queues) == 1 else 'queues'} {', '.join(map(escaped, queues))}"
    return " · ".join(
        [f"durable {durable.__version__}", *parts, queue_text, f"concurrency {concurrency}", escaped(url)]
    )


class _Crew:
    """The workers of one process, one per task queue: how they are watched from outside, and how they are stopped."""

    def __init__(self, client: Client, workers: Sequence[Worker], output: Output, how: Service) -> None:
        self._client = client
        self._workers = workers
        self._output = output
        self._how = how
        self._grace = how.grace
        self._manager = Manager()
        self._is_ready = False
        self._is_stopping = False
        self.starts_anew = False

    async def work(self, sources: Sources | None) -> None:
        """Run the workers to their end, and beside them what watches."""
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(self._manager.keep_watch())]
            if sources is not None:
                watching.append(group.create_task(self._reload_after(sources)))
            try:
                await self._run_workers()
            finally:
                for task in watching:
                    task.cancel()
                self._is_ready = False

    async def _run_workers(self) -> None:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(worker.run(drain=self._how.drain)) for worker in self._workers]
            while not all(  # noqa: ASYNC110  # a worker has no event for "started"
                worker.worker_id or task.done() for worker, task in zip(self._workers, running, strict=True)
            ):
                await asyncio.sleep(0.01)
            self._is_ready = True
            self._output.note(self._ready_text())
            self._manager.ready(f"serving {', '.join(worker.task_queue for worker in self._workers)}")
            if self._is_stopping:  # the signal came before the start was over
                self._stop_workers()

    def _ready_text(self) -> str:
        rescued = [one for worker in self._workers for one in worker.rescued if one.runs]
        recovered = f"recovered {rescue_text(rescued)} · " if rescued else ""
        until = (
            "drains the backlog, then exits"
            if self._how.drain
            else f"Ctrl-C drains ({self._grace:g}s), again stops now"
        )
        return f"{recovered}ready.  {until}"

    # ─ stopping ──

    def _stop_workers(self) -> None:
        for worker in self._workers:
            if worker.worker_id:
                worker.stop(self._grace)

    def signals(self) -> Handlers:
        """Return the context in which SIGINT and SIGTERM drain, the second one exits at once, and SIGHUP starts anew."""
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            # A handler of the interpreter, not of the loop: it also works while the loop is stuck in users' code.
            if number == signal.SIGHUP:
                if not self._is_stopping:
                    loop.call_soon_threadsafe(self._start_anew, "SIGHUP", self._grace)
                return
            if self._is_stopping:
                os._exit(SECOND_SIGNAL_CODES.get(signal.Signals(number), INTERRUPTED))
            self._is_stopping = True
            loop.call_soon_threadsafe(self._begin_to_stop)

        numbers = [signal.SIGINT, signal.SIGTERM]
        if not _is_own_process():
            return Handlers(on_signal, *numbers)
        # One that insists may do so to the very end: an exception while the loop is closed would leave it half closed.
        return Handlers(on_signal, *numbers, signal.SIGHUP, stays=lambda: self._is_stopping)

    def _begin_to_stop(self) -> None:
        self.starts_anew = False  # whoever asks a process to stop does not want another one
        self._output.note(f"draining ({self._grace:g}s), again stops now")
        self._manager.stopping("draining")
        self._stop_workers()

    def _start_anew(self, why: str, grace: float) -> None:
        if self._is_stopping or self.starts_anew:
            return
        self.starts_anew = True
        self._grace = grace
        self._output.note(f"{escaped(why)}: draining ({grace:g}s), then starting anew")
        self._manager.reloading()
        self._stop_workers()

    async def _reload_after(self, sources: Sources) -> None:
        changed = await sources.wait()
        self._start_anew(f"{changed.name} changed", min(self._grace, RELOAD_GRACE_SECONDS))

    # ─ probes ──

    @asynccontextmanager
    async def probes(self) -> AsyncIterator[None]:
        """Answer probes while the block runs, if an address was given."""
        async with contextlib.AsyncExitStack() as stack:
            if self._how.health is not None:
                pages = {"/healthz": self._health, "/readyz": self._readiness}
                address = await stack.enter_async_context(answering(self._how.health, pages))
                self._output.note(f"health on http://{address.host}:{address.port}/healthz and /readyz")
            yield

    async def _health(self) -> tuple[bool, dict[str, Any]]:
        """The loop turns, or nobody would answer; a worker whose loops broke has ended the process."""
        return True, {"status": "ok", "workers": self._told()}

    async def _readiness(self) -> tuple[bool, dict[str, Any]]:
        """It claims runs, and the database answers."""
        if self._is_stopping or self.starts_anew:
            return False, {"status": "stopping", "workers": self._told()}
        if not self._is_ready:
            return False, {"status": "starting", "workers": self._told()}
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                pauses = await self._client.pauses()
        except (DurableError, TimeoutError) as error:
            return False, {"status": "no database", "error": type(error).__name__}
        paused = sum(
            pause.name == (worker.task_queue if pause.kind == "task_queue" else worker.name)
            for pause in pauses
            for worker in self._workers
        )
        return True, {"status": "paused" if paused else "ok", "workers": self._told()}

    def _told(self) -> list[dict[str, Any]]:
        return [{"worker_id": one.worker_id, "task_queue": one.task_queue} for one in self._workers]


class Handlers:
    """Signal handlers; put back at the end, unless they are to stay."""

    def __init__(
        self, handler: Any, *numbers: signal.Signals, stays: Callable[[], bool] = lambda: False
    ) -> None:
        self._handler = handler
        self._numbers = numbers
        self._stays = stays
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._handler)

    def __exit__(self, *unused: object) -> None:
        if self._stays():
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)


def rescue_text(rescued: Sequence[Any]) -> str:
    """Return `2 runs from worker web-1:412`."""
    runs = count(sum(one.runs for one in rescued), "run")
    if not rescued:
        return f"{runs}: no dead worker"
    return f"{runs} from dead {count(len(rescued), 'worker').split(' ', 1)[1]} {', '.join(escaped(one.name) for one in rescued)}"
