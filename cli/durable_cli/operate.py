"""Running things: run, start, recover, version. `serving` has the worker."""

from __future__ import annotations

import asyncio
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

import durable
from durable import ArgumentsError, Client, Run, RunHandle
from durable_cli.arguments import Given, parse_arguments
from durable_cli.codecs import codec_of
from durable_cli.completing import complete_workflow
from durable_cli.durations import duration_option
from durable_cli.finding import database, run_async
from durable_cli.options import Settings, app_option, common_options
from durable_cli.output import Output, glyph, json_text, now
from durable_cli.problems import INTERRUPTED, OK, Problem, did_you_mean, quoted, shell_word
from durable_cli.see import changes, print_result
from durable_cli.serving import Handlers, Service, rescue_text, serve
from durable_cli.targets import AnyWorkflow, Found, load_target, one_workflow, workflow_named

PROGRESS_SECONDS: Final = 0.1
LEASE_SECONDS: Final = 10.0


# ─ arguments for a workflow ──────────────────────────────────────────────────


class Call(NamedTuple):
    """Checked arguments of a workflow."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def checked_call(workflow: AnyWorkflow, words: Sequence[str], whole: str | None) -> Call:
    """Return the arguments typed for a workflow, checked against its signature; nothing is written."""
    given = parse_arguments(words, whole, read_stdin=sys.stdin.read)
    arguments = workflow.definition.arguments
    try:
        args, kwargs = arguments.decode(arguments.encode_json(given.positional, given.named))
    except ArgumentsError as error:
        raise Problem(str(error), hint=_arguments_hint(workflow, given)) from error
    return Call(args, kwargs)


def _arguments_hint(workflow: AnyWorkflow, given: Given) -> str:
    names = [name for name, _ in workflow.definition.arguments.parameters]
    for name in given.named:
        if name not in names and (near := did_you_mean(name, names)):
            return near
    signature = f"{workflow.name}({', '.join(_parameter_text(*one) for one in workflow.definition.arguments.parameters)})"
    if any(isinstance(value, str) for value in (*given.positional, *given.named.values())):
        return f"{signature}; text is a string, JSON is name:=3 or :=3"
    return signature


def _parameter_text(name: str, hint: Any) -> str:
    shown = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
    return name if hint is Any else f"{name}: {shown}"


_ARGUMENTS_HELP: Final = """ARGS: text is a string, name=text names it, n:=3 (or :=3) is JSON, @file.json reads a file.
They are checked against the workflow's signature before anything is written."""


# ─ run ───────────────────────────────────────────────────────────────────────


@click.command(
    "run",
    help=f"Run a workflow in this process, show its progress, and print its result.\n\n{_ARGUMENTS_HELP}",
)
@click.argument("target", metavar="TARGET")
@click.argument("words", metavar="[ARGS]...", nargs=-1)
@click.option(
    "--id", "run_id", metavar="ID", help="Names the run: the same id goes on with it, or prints its result."
)
@click.option(
    "--json", "whole", metavar="JSON", help="All arguments: an array, an object, or - for standard input."
)
@common_options
@click.pass_obj
def run_command(
    settings: Settings, target: str, words: tuple[str, ...], run_id: str | None, whole: str | None
) -> int:
    """Run a workflow here."""
    output = Output(settings)
    workflow = (
        workflow_named(target, settings) if _is_name(target, settings) else one_workflow(target, settings)
    )
    call = checked_call(workflow, words, whole)
    started: list[str] = []
    try:
        return run_async(_run(settings, output, workflow, call, run_id, started))
    except KeyboardInterrupt:
        if started:
            output.error(
                f"interrupted; run {started[0]} is stored and can go on", f"durable worker {target} --drain"
            )
        else:
            output.error("interrupted")
        return INTERRUPTED


def _is_name(target: str, settings: Settings) -> bool:
    """Whether a bare word is meant as a workflow of the app: it is no file, and no module of that name is here."""
    return (
        settings.app is not None
        and target.isidentifier()
        and not Path(f"{target}.py").exists()
        and not Path(target).is_dir()
    )


async def _run(
    settings: Settings,
    output: Output,
    workflow: AnyWorkflow,
    call: Call,
    run_id: str | None,
    started: list[str],
) -> int:
    durable.configure(settings.db, codec=codec_of(settings))
    handle = await workflow.options(run_id=run_id).start(*call.args, **call.kwargs)
    started.append(handle.run_id)
    both_stop_in_order = Handlers(signal.getsignal(signal.SIGINT), signal.SIGTERM)
    async with database(settings) as client:
        progress = _Progress(client, output, handle.run_id)
        await progress.begin(workflow.name)
        with both_stop_in_order:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(progress.watch())
                outcome = await _settled(handle)
                watching.cancel()
        run = await progress.end()
    if isinstance(outcome, BaseException):
        raise outcome
    if output.is_text:
        output.line(json_text(run.result))
    else:
        output.json(
            {
                "run_id": run.run_id,
                "generation": run.generation,
                "status": str(run.status),
                "result": run.result,
            }
        )
    return OK


async def _settled(handle: RunHandle[Any]) -> BaseException | None:
    """Wait for the end of a run; return what it failed with, so that progress can be told to the end first."""
    try:
        await handle.result()
    except durable.DurableError as error:
        return error
    return None


class _Progress:
    """Tells on stderr what happens in a run."""

    def __init__(self, client: Client, output: Output, run_id: str) -> None:
        self._client = client
        self._output = output
        self._run_id = run_id
        self._told: dict[int, tuple[str, int]] = {}
        self._generation = 0

    async def begin(self, workflow: str) -> None:
        open_runs = await self._client.list(
            workflow=workflow, status=("pending", "running", "waiting"), limit=20
        )
        left = [run.run_id for run in open_runs if run.run_id != self._run_id and run.worker is None]
        self._output.note(f"{glyph('running')} {workflow} {self._run_id} · db {self._client.url}")
        if left:
            shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
            self._output.note(
                f"note: unfinished, without a worker: {shown}; durable worker goes on with them"
            )

    async def watch(self) -> None:
        while True:
            began = time.monotonic()
            await self.tell()
            await asyncio.sleep(max(PROGRESS_SECONDS, 10 * (time.monotonic() - began)))

    async def tell(self) -> Run:
        run = await self._client.describe(self._run_id)
        if run.generation != self._generation:
            self._told.clear()
            self._generation = run.generation
        for line in changes(run, self._told):
            self._output.note(f"  {line}")
        return run

    async def end(self) -> Run:
        run = await self.tell()
        begin = run.started_at or run.created_at
        seconds = ((run.closed_at or now()) - begin).total_seconds()
        self._output.note(f"{glyph(run.status)} {run.status} after {seconds:.2f}s")
        return run


# ─ start ─────────────────────────────────────────────────────────────────────


@click.command("start", help=f"Store a run for a worker to drive, and print its id.\n\n"
               f"WORKFLOW: a name within --app, or itself module:workflow or file.py:workflow.\n\n{_ARGUMENTS_HELP}")  # fmt: skip
@click.argument("workflow", metavar="WORKFLOW", shell_complete=complete_workflow)
@click.argument("words", metavar="[ARGS]...", nargs=-1)
@click.option("--id", "run_id", metavar="ID", help="Names the run (default: generated).")
@click.option(
    "--task-queue", metavar="QUEUE", help="Where it waits for a worker (default: the workflow's own)."
)
@click.option("--delay", type=duration_option, metavar="DURATION", help="Hold the start back: 30s, 5m, 2h.")
@click.option(
    "--if-open",
    type=click.Choice(["attach", "fail", "terminate"]),
    default="attach",
    show_default=True,
    help="If the id has an open run.",
)
@click.option(
    "--if-closed",
    type=click.Choice(["return", "fail", "new", "new-if-failed"]),
    default="return",
    show_default=True,
    help="If it has a closed one.",
)
@click.option("--wait", is_flag=True, help="Wait for the result and print it instead of the id.")
@click.option(
    "--json", "whole", metavar="JSON", help="All arguments: an array, an object, or - for standard input."
)
@app_option
@common_options
@click.pass_obj
def start_command(
    settings: Settings, /, workflow: str, words: tuple[str, ...], whole: str | None, wait: bool, **how: Any
) -> int:
    """Store a run for a worker."""
    found = workflow_named(workflow, settings)
    call = checked_call(found, words, whole)
    how["if_closed"] = how["if_closed"].replace("-", "_")
    return run_async(_start(settings, Output(settings), found, call, wait, how))


async def _start(
    settings: Settings, output: Output, workflow: AnyWorkflow, call: Call, wait: bool, how: dict[str, Any]
) -> int:
    async with database(settings, create=True) as client:
        handle = await client.start(workflow, *call.args, **how, **call.kwargs)
        run = await client.describe(handle.run_id)
        if wait:
            return await print_result(client, output, run, None)
        _print_started(output, run)
    return OK


def _print_started(output: Output, run: Run) -> None:
    if output.is_text:
        output.line(run.run_id)
        output.note(
            f"{glyph(run.status)} {run.workflow} {run.status} · queue {quoted(run.task_queue)} · next: durable show {shell_word(run.run_id)}"
        )
        return
    output.json(
        {"run_id": run.run_id, "generation": run.generation, "workflow": run.workflow, "status": str(run.status),
         "task_queue": run.task_queue}
    )  # fmt: skip


# ─ recover ───────────────────────────────────────────────────────────────────


@click.command("recover")
@app_option
@common_options
@click.pass_obj
def recover_command(settings: Settings) -> int:
    """Take the runs of dead workers back, so that living workers go on with them at once.

    Living workers do this by themselves; this is for when none was there. With --app the runs are also driven here, until
    none of them can go on by itself.
    """
    output = Output(settings)
    found = [load_target(settings.given_app, settings)] if settings.given_app else []
    return run_async(_recover(settings, output, found))


async def _recover(settings: Settings, output: Output, found: Sequence[Found]) -> int:
    async with database(settings) as client:
        rescued = await client.rescue(_lease(settings))
        living = await client.workers()
        if output.is_text:
            output.line(f"recovered {rescue_text(rescued)}")
        else:
            output.json(
                {
                    "runs": sum(one.runs for one in rescued),
                    "workers": [{"worker_id": o.worker_id, "name": o.name, "runs": o.runs} for o in rescued],
                }
            )
        if output.is_text and not living and not found and any(one.runs for one in rescued):
            output.note("hint: no worker is alive: durable worker TARGET goes on with them")
    if found:
        return await serve(settings, output, found, Service(drain=True))
    return OK


def _lease(settings: Settings) -> float:
    text = settings.environ.get("DURABLE_LEASE_TTL", "")
    try:
        return float(text) if text else LEASE_SECONDS
    except ValueError:
        raise Problem(f"DURABLE_LEASE_TTL must be seconds, not {text!r}") from None


# ─ version ───────────────────────────────────────────────────────────────────


@click.command("version")
@common_options
@click.pass_obj
def version_command(settings: Settings) -> int:
    """Print the versions of durable and Python."""
    output = Output(settings)
    if output.is_text:
        output.line(f"durable {durable.__version__}")
        output.note(f"python {platform.python_version()} on {platform.platform()}")
    else:
        output.json({"durable": durable.__version__, "python": platform.python_version()})
    return OK
