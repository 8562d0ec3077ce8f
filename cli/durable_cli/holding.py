"""Holding back and letting go: pause and resume, of a run, a task queue, or a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from durable import Client
from durable_cli.completing import complete_run_id
from durable_cli.finding import database, exact_run_id, run_async
from durable_cli.options import Settings, common_options
from durable_cli.output import Output
from durable_cli.problems import NOT_FOUND, OK, Problem, did_you_mean, quoted

F = TypeVar("F", bound=Callable[..., Any])
_WHICH: Final = "name one of: a run's ID, --task-queue QUEUE, --worker NAME"


def _which_options(command: F) -> F:
    """Add what says which run, queue or worker is meant."""
    for decorate in (
        click.option("--worker", metavar="NAME", help="A worker: its name or id in `durable workers`."),
        click.option("--task-queue", metavar="QUEUE", help="A task queue, for all workers."),
        click.argument("run_id", metavar="[ID]", required=False, shell_complete=complete_run_id),
    ):
        command = decorate(command)
    return command


@click.command("pause")
@_which_options
@click.option("--reason", metavar="TEXT", help="Kept with it; durable why and show tell it.")
@common_options
@click.pass_obj
def pause_command(
    settings: Settings,
    run_id: str | None,
    task_queue: str | None,
    worker: str | None,
    reason: str | None,
) -> int:
    """Hold a run, a task queue or a worker back until durable resume.

    Kept in the database; all workers obey within a second. What runs at that moment may end and is recorded, nothing new
    begins. Signals are kept and timers that fall due wait. A paused worker lives on and hands its runs to others.
    """
    _check_one(run_id, task_queue, worker)
    return run_async(_pause(settings, Output(settings), (run_id, task_queue, worker), reason))


async def _pause(
    settings: Settings,
    output: Output,
    which: tuple[str | None, str | None, str | None],
    reason: str | None,
) -> int:
    run_id, task_queue, worker = which
    async with database(settings) as client:
        if run_id is not None:
            await exact_run_id(client, run_id, "pause")
            was_paused = (await client.describe(run_id)).paused_at is not None
            await client.pause(run_id, reason)
            is_new = not was_paused
        elif task_queue is not None:
            is_new = await client.pause_task_queue(task_queue, reason)
        else:
            worker = await _worker_name(client, str(worker))
            is_new = await client.pause_worker(worker, reason)
    _done(output, "pause", (run_id, task_queue, worker), is_new, "paused" if is_new else "was paused already")
    return OK


@click.command("resume")
@_which_options
@common_options
@click.pass_obj
def resume_command(settings: Settings, run_id: str | None, task_queue: str | None, worker: str | None) -> int:
    """Let a paused run, task queue or worker go on, or a parked run.

    A parked run goes on from where it stopped: deploy code that fits its journal first, or it parks again.
    """
    _check_one(run_id, task_queue, worker)
    return run_async(_resume(settings, Output(settings), run_id, task_queue, worker))


async def _resume(
    settings: Settings, output: Output, run_id: str | None, task_queue: str | None, worker: str | None
) -> int:
    async with database(settings) as client:
        if run_id is not None:
            await exact_run_id(client, run_id, "resume")
            await client.resume(run_id)
            did = True
        elif task_queue is not None:
            did = await client.resume_task_queue(task_queue)
        else:
            worker = await _worker_name(client, str(worker))
            did = await client.resume_worker(worker)
    said = "resumed" + (": a worker goes on with it" if run_id else "") if did else "was not paused"
    _done(output, "resume", (run_id, task_queue, worker), did, said)
    return OK


def _check_one(*given: str | None) -> None:
    if sum(one is not None for one in given) != 1:
        raise Problem(_WHICH, hint="durable pause --help")


async def _worker_name(client: Client, text: str) -> str:
    """Return the name of a living or paused worker; `text` is that, or an id."""
    names = {str(one.worker_id): one.name for one in await client.workers()}
    known = {*names.values(), *(one.name for one in await client.pauses() if one.kind == "worker")}
    if text in known:
        return text
    if text in names:
        return names[text]
    hint = did_you_mean(text, sorted(known), otherwise="durable workers")
    raise Problem(f"no living worker is called {quoted(text)}", code=NOT_FOUND, hint=hint)


def _done(
    output: Output, verb: str, which: tuple[str | None, str | None, str | None], did: bool, said: str
) -> None:
    run_id, task_queue, worker = which
    if output.is_text:
        what = run_id or (f"queue {quoted(task_queue)}" if task_queue else f"worker {quoted(worker or '')}")
        output.note(f"{what} {said}")
        return
    data = {"run_id": run_id, "task_queue": task_queue, "worker": worker}
    named = {key: value for key, value in data.items() if value is not None}
    output.json({**named, verb: "done" if did else "unchanged"})
