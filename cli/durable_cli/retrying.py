"""Trying again: a closed run, or activities of an open one. Asks before something that was done may be done anew."""

from __future__ import annotations

from typing import NamedTuple

import click

from durable import Client, Reopened, Run
from durable_cli.batches import collapsed
from durable_cli.completing import complete_run_id
from durable_cli.finding import database, exact_run_id, run_async
from durable_cli.options import Settings, common_options
from durable_cli.output import Output, builtins, count, escaped
from durable_cli.problems import CONFLICT, OK, Problem, ask, shell_word


class Wish(NamedTuple):
    """What is to be tried again, and how."""

    activity: str | None
    from_start: bool
    dry_run: bool
    yes: bool


@click.command("retry")
@click.argument("run_id", metavar="ID", shell_complete=complete_run_id)
@click.option(
    "--activity",
    metavar="NAME|N",
    help="Only this one: its name, or its number in durable show.",
)
@click.option(
    "--from-start", is_flag=True, help="Keep nothing, as a new start would: with new idempotency keys."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, kept and forgotten, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_obj
def retry_command(
    settings: Settings, run_id: str, activity: str | None, from_start: bool, dry_run: bool, yes: bool
) -> int:
    """Try a failed, timed-out, cancelled or terminated run again, for a worker to take; of an open run, what waits for a retry, now.

    The next generation keeps the journal up to what went wrong: before the activity whose error ended the run, or that
    --activity names, before the request to cancel; all of it, if its time was up or it was terminated. What is kept is not done
    again. If an error of the workflow's own code ended it, nothing is kept. Asks if completed activities are forgotten: they may
    run again, and if one of them undid something, --from-start is what you want.

    Of an open run, activities that have failed and wait for their next attempt have it at once: all, or that of --activity.
    """
    wish = Wish(activity, from_start, dry_run, yes)
    return run_async(_retry(settings, Output(settings), run_id, wish))


async def _retry(settings: Settings, output: Output, run_id: str, wish: Wish) -> int:
    async with database(settings) as client:
        await exact_run_id(client, run_id, "retry")
        run = await client.describe(run_id)
        activity = _meant(run, wish.activity)
        if run.status.is_closed:
            await _reopen(client, output, run_id, wish, activity)
        elif wish.from_start:
            raise Problem(f"{run_id} is {run.status}: only a closed run can begin anew", code=CONFLICT)
        else:
            await _retry_now(client, output, run, wish, activity)
    return OK


def _meant(run: Run, activity: str | None) -> str | int | None:
    """Return the name, or the number in the journal of what has that number in `durable show`."""
    if activity is None or not activity.isdecimal():
        return activity
    lines = collapsed(run).journal
    if not 0 < int(activity) <= len(lines):
        raise Problem(f"{run.run_id} has no step {activity}", hint=f"durable show {shell_word(run.run_id)}")
    return lines[int(activity) - 1].number


async def _reopen(
    client: Client, output: Output, run_id: str, wish: Wish, activity: str | int | None
) -> None:
    told = await client.retry(run_id, activity=activity, from_start=wish.from_start, dry_run=True)
    if not wish.dry_run:
        if told.forgotten and not wish.yes:
            ask(f"retry {run_id}? {forgotten_text(told)}", "retry")
        told = await client.retry(run_id, activity=activity, from_start=wish.from_start)
    if not output.is_text:
        output.json(builtins(told))
        return
    kept = f"{count(told.kept_events, 'event')} of its journal kept" if told.kept_events else "nothing kept"
    would = "would be " if told.is_dry else ""
    output.note(f"{run_id}@{told.generation} {would}opened, {kept}: a worker goes on with it")
    if told.forgotten:
        output.note(f"note: {forgotten_text(told)}")


async def _retry_now(
    client: Client, output: Output, run: Run, wish: Wish, activity: str | int | None
) -> None:
    names = await client.retry_now(run.run_id, activity, dry_run=wish.dry_run)
    if not output.is_text:
        output.json({"run_id": run.run_id, "activities": names, "is_dry": wish.dry_run})
        return
    would = "would have" if wish.dry_run else "has" if len(names) == 1 else "have"
    output.note(f"{run.run_id}: {', '.join(map(escaped, names))} {would} the next attempt now")


def forgotten_text(told: Reopened) -> str:
    """Return what of a run was done and is not part of its next generation."""
    names = ", ".join(map(escaped, told.forgotten[:5])) + (", …" if len(told.forgotten) > 5 else "")
    return f"{count(len(told.forgotten), 'activity')} completed and forgotten, may run again: {names}"
