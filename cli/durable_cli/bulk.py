"""`durable bulk`: one verb for all runs that fit some filters. Says first which, asks, and goes on past what cannot be done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import click
import msgspec

from durable import Client, Run, RunNotFoundError, WorkflowStateError
from durable_cli.filters import filter_options
from durable_cli.finding import database, run_async
from durable_cli.options import Settings, common_options
from durable_cli.output import Output, count, escaped
from durable_cli.problems import OK, Problem, ask, shell_word
from durable_cli.retrying import forgotten_text

_OPEN: Final = ("pending", "running", "waiting", "parked")
# What a verb is for, unless --status says otherwise.
STATUSES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "cancel": _OPEN,
        "terminate": _OPEN,
        "pause": _OPEN,
        "resume": _OPEN,
        "signal": _OPEN,
        "retry": ("failed", "timed_out"),
    }
)
SHOWN_MAX: Final = 20


class Deed(NamedTuple):
    """What is done to each run."""

    verb: str
    reason: str | None
    name: str | None
    value: Any
    pause_seconds: float


@click.command("bulk")
@click.argument("verb", metavar="VERB", type=click.Choice(list(STATUSES)))
@filter_options
@click.option("--reason", metavar="TEXT", help="Recorded: for cancel, terminate and pause.")
@click.option("--name", metavar="NAME", help="The signal to send.")
@click.option("--value", metavar="JSON", default="null", show_default=True, help="Its value.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="At most N runs a second.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=10_000,
    show_default=True,
    help="At most so many, newest first.",
)
@click.option("--dry-run", is_flag=True, help="Say which runs, do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_obj
def bulk_command(
    settings: Settings,
    /,
    verb: str,
    reason: str | None,
    name: str | None,
    value: str,
    rate: float | None,
    limit: int,
    dry_run: bool,
    yes: bool,
    **filters: Any,
) -> int:
    """Cancel, terminate, pause, resume, signal or retry all runs that fit the filters.

    VERB: cancel, terminate, pause, resume, signal, retry. Without --status: open runs, for resume those that are paused or
    parked, for retry those that failed or timed out; of open ones retry means those with an activity that waits for its next attempt,
    which it has at once. At least one other filter is needed. Each run is a transaction of its
    own; one that cannot be helped is skipped and told, and so is one whose retry would forget completed activities.
    """
    if not any(filters.values()):
        raise Problem(f"bulk {verb} needs a filter", hint="--id '*' means every run")
    if (verb == "signal") != (name is not None):
        raise Problem("bulk signal needs --name, and nothing else takes it")
    try:
        decoded = msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise Problem(f"--value is no JSON: {error}", hint="""text needs quotes: --value '"yes"'""") from None
    deed = Deed(verb, reason, name, decoded, 0.0 if rate is None else 1 / rate)
    filters["status"] = list(filters["status"]) or list(STATUSES[verb])
    return run_async(_bulk(settings, Output(settings), deed, {**filters, "limit": limit}, dry_run, yes))


async def _bulk(
    settings: Settings, output: Output, deed: Deed, filters: dict[str, Any], dry_run: bool, yes: bool
) -> int:
    async with database(settings) as client:
        runs = [run for run in await client.list(**filters) if _is_meant(deed.verb, run)]
        if not dry_run and runs and not yes:
            ask(f"{deed.verb} {count(len(runs), 'run')}: {_names(runs)}", f"bulk {deed.verb}")
        skipped: dict[str, str] = {}
        for run in () if dry_run else runs:
            if why := await _do(client, run, deed):
                skipped[run.run_id] = why
            await asyncio.sleep(deed.pause_seconds)
    done = [run.run_id for run in runs if run.run_id not in skipped]
    _tell(output, deed.verb, done, skipped, is_dry=dry_run)
    if len(runs) == filters["limit"] and output.is_text:
        output.note(f"note: the newest {len(runs)}; repeat it for the rest")
    return OK


def _is_meant(verb: str, run: Run) -> bool:
    if verb == "resume":
        return run.paused_at is not None or run.status == "parked"
    if verb == "retry" and not run.status.is_closed:
        return any(one.kind == "retry" for one in run.waiting_on)
    return verb != "pause" or run.paused_at is None


def _names(runs: list[Run]) -> str:
    shown = ", ".join(run.run_id for run in runs[:3])
    return shown + (", …" if len(runs) > 3 else "")


async def _do(client: Client, run: Run, deed: Deed) -> str:
    """Do it to one run; return why not, if it cannot be done."""
    run_id = run.run_id
    try:
        match deed.verb:
            case "cancel":
                await client.cancel(run_id, deed.reason)
            case "terminate":
                await client.terminate(run_id, deed.reason)
            case "pause":
                await client.pause(run_id, deed.reason)
            case "resume":
                await client.resume(run_id)
            case "signal":
                await client.signal(run_id, str(deed.name), deed.value)
            case _ if run.status.is_closed:
                return await _retry(client, run_id)
            case _:
                await client.retry_now(run_id)
    except (WorkflowStateError, RunNotFoundError) as error:
        return str(error)
    return ""


async def _retry(client: Client, run_id: str) -> str:
    told = await client.retry(run_id, dry_run=True)
    if told.forgotten:
        return f"{forgotten_text(told)}; alone: durable retry {shell_word(run_id)}"
    await client.retry(run_id)
    return ""


def _tell(output: Output, verb: str, done: list[str], skipped: dict[str, str], *, is_dry: bool) -> None:
    if not output.is_text:
        told = [{"run_id": run_id, "why": why} for run_id, why in skipped.items()]
        output.json({"verb": verb, "runs": done, "skipped": told, "is_dry": is_dry})
        return
    for run_id in done:
        output.line(run_id)
    for run_id, why in list(skipped.items())[:SHOWN_MAX]:
        output.note(f"skipped {run_id}: {escaped(why)}")
    if len(skipped) > SHOWN_MAX:
        output.note(f"… and {len(skipped) - SHOWN_MAX} more")
    verdict = f"{count(len(done), 'run')} {'would be meant' if is_dry else 'done'}"
    output.note(f"bulk {verb}: {verdict}" + (f", {len(skipped)} skipped" if skipped else ""))
