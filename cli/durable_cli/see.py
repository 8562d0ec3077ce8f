"""Looking at runs: list, show, result, wait. They read; nothing here changes a run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, get_args

import click

from durable import (
    Client,
    DurableError,
    PlatformFault,
    Run,
    RunCancelledError,
    RunHandle,
    RunParkedError,
    WorkflowFailedError,
    WorkflowTimeoutError,
)
from durable_cli.completing import complete_run_id
from durable_cli.durations import ago_text, duration_option
from durable_cli.filters import filter_options
from durable_cli.finding import LAST, database, find_run, run_async
from durable_cli.options import Settings, app_option, common_options
from durable_cli.output import (
    COLOURS,
    VALUE_BYTES_MAX,
    Output,
    builtins,
    columns,
    count,
    cut,
    escaped,
    glyph,
    iso,
    json_text,
    now,
    value_text,
)
from durable_cli.problems import OK, RUN_FAILED, TIMED_OUT, USAGE, Problem, shell_word
from durable_cli.standing import show_stack
from durable_cli.story import facts, needs_a_worker, outcome, picture, step_line, took

REFRESH_SECONDS: Final = 0.5
ENDED_BADLY: Final = (
    WorkflowFailedError,
    RunCancelledError,
    WorkflowTimeoutError,
    RunParkedError,
    PlatformFault,
)


# ─ list ──────────────────────────────────────────────────────────────────────


@click.command("list")
@filter_options
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="At most so many, newest first.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on showing changes until interrupted.")
@common_options
@click.pass_obj
def list_command(settings: Settings, /, follow: bool, **filters: Any) -> None:
    """List runs, newest first, and what each waits for or how it ended."""
    filters["status"] = list(filters["status"]) or None
    filters["with_large_payloads"] = settings.output != "text"
    run_async(_list(settings, Output(settings), filters, follow))


CountBy = Literal["status", "workflow", "queue"]


@click.command("count")
@filter_options
@click.option("--by", type=click.Choice(get_args(CountBy)), help="Of each, the most first.")
@common_options
@click.pass_obj
def count_command(settings: Settings, /, by: CountBy | None, **filters: Any) -> None:
    """Count the runs that fit all filters. One query, which reads no journal: one that waits in its worker's memory counts as running."""
    filters["status"] = list(filters["status"]) or None
    run_async(_count(settings, Output(settings), by, filters))


async def _count(settings: Settings, output: Output, by: CountBy | None, filters: dict[str, Any]) -> None:
    async with database(settings) as client:
        if by is None:
            total = await client.count(**filters)
            if output.is_text:
                output.line(str(total))
            else:
                output.json({"count": total})
            return
        counts = await client.count(by=by, **filters)
    if output.is_text:
        for name, number in counts.items():
            output.row([escaped(name), str(number)])
    else:
        output.json({"by": by, "counts": counts})


async def _list(settings: Settings, output: Output, filters: dict[str, Any], follow: bool) -> None:
    async with database(settings) as client:
        if follow:
            await _follow_list(client, output, filters)
        else:
            _print_list(client, output, await client.list(**filters), limit=filters["limit"])


def _print_list(client: Client, output: Output, runs: list[Run], *, limit: int) -> None:
    if output.format == "json":
        output.json({"runs": [summary(run) for run in runs]})
    elif output.format == "jsonl":
        for run in runs:
            output.json(summary(run))
    elif output.is_rich:
        for line in list_picture(runs, output, now(), db=client.url):
            output.line(line)
    else:
        for run in runs:
            output.row(list_row(run, now()))
    if not runs and output.is_text:
        output.note(f"no runs in {client.url}")
    elif len(runs) == limit and output.is_text:
        output.note(f"the newest {limit}; more with --limit")


def summary(run: Run) -> dict[str, Any]:
    """Return a run as JSON data, without its journal."""
    data: dict[str, Any] = builtins(run)
    del data["journal"]
    return data


def list_row(run: Run, at: datetime) -> list[str]:
    """Return the cells of a piped list: id, workflow, status, started, took, waiting on or result."""
    return [
        run.run_id,
        run.workflow,
        str(run.status),
        iso(run.started_at or run.created_at),
        took(run, at),
        outcome(run),
    ]


def list_picture(runs: Sequence[Run], output: Output, at: datetime, *, db: str) -> list[str]:
    """Return the lines of a list on a terminal."""
    terminal = output.out
    if not runs:
        return []
    rows = [["  ID", "WORKFLOW", "STATUS", "STARTED", "TOOK", "WAITING ON / RESULT"]]
    rows += [
        [
            f"{'!' if needs_a_worker(run) else glyph(run.status)} {run.run_id}",
            run.workflow,
            str(run.status),
            ago_text((at - (run.started_at or run.created_at)).total_seconds()),
            took(run, at),
            outcome(run),
        ]
        for run in runs
    ]
    lines = []
    for i, cells in enumerate(columns(rows, gap=3)):
        left = sum(len(cell) for cell in cells[:-1])
        cells[-1] = cut(cells[-1], max(10, terminal.width - left) if terminal.width else 0)
        if i == 0:
            lines.append(terminal.paint("".join(cells), dim=True))
            continue
        cells[2] = terminal.paint(cells[2], COLOURS.get(runs[i - 1].status))
        lines.append("".join(cells).rstrip())
    failed = sum(run.status in ("failed", "timed_out") for run in runs)
    parts = [count(len(runs), "run"), *([f"{failed} failed"] if failed else []), f"db {db}"]
    parts.append(f"next: durable show {'@last-failed' if failed else shell_word(runs[0].run_id)}")
    return [*lines, terminal.paint(" · ".join(parts), dim=True)]


async def _follow_list(client: Client, output: Output, filters: dict[str, Any]) -> None:
    shown: dict[tuple[str, int], str] = {}
    async for _ in _beats():
        runs = await client.list(**filters)
        if output.is_rich:
            output.line(
                "\x1b[H\x1b[2J"
                + "\n".join(list_picture(runs, output, now(), db=client.url) or ["no runs yet"])
            )
            continue
        for run in reversed(runs):
            key, state = (run.run_id, run.generation), f"{run.status} {outcome_kind(run)}"
            if shown.get(key) != state:
                shown[key] = state
                if output.is_text:
                    output.row(list_row(run, now()))
                else:
                    output.json(summary(run))


def outcome_kind(run: Run) -> str:
    """Return what a run waits for without the parts that change by themselves, as `in 5s` does."""
    return " ".join(f"{one.kind}:{one.name}" for one in run.waiting_on)


# ─ show ──────────────────────────────────────────────────────────────────────


@click.command("show")
@click.argument("run_id", metavar="[ID]", default=LAST, shell_complete=complete_run_id)
@click.option("--events", is_flag=True, help="The raw, numbered journal.")
@click.option(
    "--stack",
    metavar="[TARGET]",
    is_flag=False,
    flag_value="",
    help="Where its coroutines stand, rebuilt with the code of TARGET (or --app).",
)
@click.option("--values", is_flag=True, help="With --stack: the local variables at every line, too.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is closed.")
@app_option
@common_options
@click.pass_obj
def show_command(
    settings: Settings, run_id: str, events: bool, stack: str | None, values: bool, follow: bool
) -> None:
    """Tell the story of one run (default: the newest): its steps, its error, and what it waits for.

    ID may be the beginning or the end of an id, id@2 for an earlier generation, @last or @last-failed.
    With -o json the raw journal is included. --stack replays the journal in this process: no worker is needed, no activity
    runs, nothing is written; without the code it shows the lines that the journal recorded.
    """
    if events + follow + (stack is not None) > 1:
        raise Problem("--events, --stack and --follow do not go together", code=USAGE)
    if values and stack is None:
        raise Problem("--values goes with --stack", code=USAGE)
    if stack is not None:
        run_async(show_stack(settings, Output(settings), run_id, stack or settings.app, with_values=values))
        return
    run_async(_show(settings, Output(settings), run_id, events, follow))


async def _show(settings: Settings, output: Output, text: str, events: bool, follow: bool) -> None:
    async with database(settings) as client:
        run = await find_run(client, text)
        if events:
            recorded = await client.recorded(f"{run.run_id}@{run.generation}")
            _print_events(output, recorded.to_data())
        elif follow:
            await _follow_run(client, output, run)
        elif output.is_text:
            _print_run(output, run)
        else:
            recorded = await client.recorded(f"{run.run_id}@{run.generation}")
            output.json({**builtins(run), "events": recorded.shown_events()})


def _print_run(output: Output, run: Run) -> None:
    if output.is_rich:
        for line in picture(run, output.out, now()):
            output.line(line)
    else:
        for cells in facts(run, now()):
            output.row(cells)


async def _follow_run(client: Client, output: Output, run: Run) -> None:
    """Show a run until it is closed: redrawn on a terminal, one line for every change otherwise."""
    address = f"{run.run_id}@{run.generation}"
    told: dict[int, tuple[str, int]] = {}
    async for _ in _beats():
        run = await client.describe(address)
        if output.is_rich:
            output.line("\x1b[H\x1b[2J" + "\n".join(picture(run, output.out, now())))
        elif output.is_text:
            for line in changes(run, told):
                output.line(line)
        elif told_once(run, told):
            output.json(builtins(run))
        if run.status.is_closed:
            if run.status == "continued":
                address = f"{run.run_id}@{run.generation + 1}"
                told.clear()
                continue
            break
    if output.is_text and not output.is_rich:
        output.row(["status", str(run.status), outcome(run)])


def changes(run: Run, told: dict[int, tuple[str, int]]) -> list[str]:
    """Return a line for every entry that changed since `told`, which is brought up to date."""
    lines = []
    for number, entry in enumerate(run.journal, 1):
        state = (str(entry.status), entry.attempts)
        if told.get(number) != state:
            told[number] = state
            lines.append(step_line(number, entry, now(), run.kind))
    return lines


def told_once(run: Run, told: dict[int, tuple[str, int]]) -> bool:
    """Whether anything changed since `told`, which is brought up to date."""
    status = (str(run.status), 0)
    is_news = bool(changes(run, told)) or told.get(0) != status
    told[0] = status
    return is_news


def _event_value(value: Any) -> str:
    if isinstance(value, str) and len(value) <= VALUE_BYTES_MAX and re.fullmatch(r"[!-~]+", value):
        return value
    text = json_text(value)
    return text if len(text) <= VALUE_BYTES_MAX else value_text(value)


def _print_events(output: Output, recorded: Mapping[str, Any]) -> None:
    """Print the raw journal; as JSON, exactly what `durable.testing.replay` and `durable check --against` read."""
    events: list[dict[str, Any]] = recorded["events"]
    if output.format == "json":
        output.json(recorded)
        return
    about = {"run_id": recorded["run_id"], "generation": recorded["generation"]}
    if output.format == "jsonl":
        for event in events:
            output.json({**about, **event})
        return
    rows = [
        [
            str(event["number"]),
            event.get("at", ""),
            event["event"],
            " ".join(
                f"{key}={_event_value(value)}"
                for key, value in event.items()
                if key not in ("number", "at", "event")
            ),
        ]
        for event in events
    ]
    if output.is_rich:
        for cells in columns(rows):
            output.line(cut("".join(cells), output.out.width).rstrip())
    else:
        for row in rows:
            output.row(row)


# ─ result and wait ───────────────────────────────────────────────────────────


@click.command("result")
@click.argument("run_id", metavar="ID", shell_complete=complete_run_id)
@click.option(
    "--timeout",
    type=duration_option,
    metavar="DURATION",
    help="Wait at most so long: 30s, 5m, 0 for not at all.",
)
@common_options
@click.pass_obj
def result_command(settings: Settings, run_id: str, timeout: float | None) -> int:
    """Wait for a run and print its result as JSON. Exit code 1 if it failed, 5 if the time is up."""
    return run_async(_result(settings, Output(settings), run_id, timeout))


async def _result(settings: Settings, output: Output, text: str, timeout: float | None) -> int:
    async with database(settings) as client:
        run = await find_run(client, text)
        return await print_result(client, output, run, timeout)


async def print_result(client: Client, output: Output, run: Run, timeout: float | None) -> int:
    """Wait for a run and print its result; raise what it failed with."""
    if not run.status.is_closed and output.is_text and timeout != 0:
        output.note(f"{glyph(run.status)} {run.run_id} {run.status}, waiting on {outcome(run)}")
    handle: RunHandle[Any] = await client.get(f"{run.run_id}@{run.generation}")
    try:
        value = await handle.result(timeout=timeout)
    except TimeoutError:
        run = await client.describe(run.run_id)
        raise Problem(
            f"run {run.run_id!r} is still {run.status}, waiting on {outcome(run)}",
            code=TIMED_OUT,
            hint=f"durable show {shell_word(run.run_id)}",
        ) from None
    if output.is_text:
        output.line(json_text(value))
    else:
        output.json(
            {"run_id": run.run_id, "generation": run.generation, "status": "completed", "result": value}
        )
    return OK


@click.command("wait")
@click.argument("run_ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_run_id)
@click.option("--timeout", type=duration_option, metavar="DURATION", help="Wait at most so long: 30s, 5m.")
@common_options
@click.pass_obj
def wait_command(settings: Settings, run_ids: tuple[str, ...], timeout: float | None) -> int:
    """Wait until runs are closed. Exit code 1 if any of them did not complete, 5 if the time is up."""
    return run_async(_wait(settings, Output(settings), run_ids, timeout))


async def _wait(settings: Settings, output: Output, texts: Sequence[str], timeout: float | None) -> int:
    async with database(settings) as client:
        runs = [await find_run(client, text) for text in texts]
        for run in runs:
            if not run.status.is_closed and output.is_text:
                output.note(f"{glyph(run.status)} {run.run_id} {run.status}, waiting on {outcome(run)}")
        ended: dict[str, str] = {}
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
                for run in runs:
                    group.create_task(_wait_for_one(client, output, run, ended))
        except TimeoutError:
            left = [run for run in runs if run.run_id not in ended]
            run = await client.describe(left[0].run_id)
            raise Problem(
                f"{count(len(left), 'run')} still open: {', '.join(one.run_id for one in left)}",
                code=TIMED_OUT,
                hint=f"{run.run_id} waits on {outcome(run)}",
            ) from None
        return OK if all(status == "completed" for status in ended.values()) else RUN_FAILED


async def _wait_for_one(client: Client, output: Output, run: Run, ended: dict[str, str]) -> None:
    handle: RunHandle[Any] = await client.get(f"{run.run_id}@{run.generation}")
    try:
        await handle.result()
    except ENDED_BADLY:
        pass  # the status below says how
    except DurableError:
        raise
    run = await client.describe(run.run_id)
    ended[run.run_id] = str(run.status)
    if output.is_text:
        output.row([run.run_id, str(run.status), outcome(run)])
    else:
        output.json({"run_id": run.run_id, "generation": run.generation, "status": str(run.status)})


async def _beats() -> AsyncIterator[None]:
    """Yield now and after every pause, without end."""
    while True:
        yield
        await asyncio.sleep(REFRESH_SECONDS)
