"""Trying closed runs again: retry. Asks before something that was done may be done anew."""

from __future__ import annotations

import click

from durable import Reopened
from durable_cli.completing import complete_run_id
from durable_cli.finding import database, exact_run_id, run_async
from durable_cli.options import Settings, common_options
from durable_cli.output import Output, builtins, count, escaped
from durable_cli.problems import OK, ask


@click.command("retry")
@click.argument("run_id", metavar="ID", shell_complete=complete_run_id)
@click.option(
    "--from-start", is_flag=True, help="Keep nothing, as a new start would: with new idempotency keys."
)
@click.option("--dry-run", is_flag=True, help="Say what would be kept and forgotten, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_obj
def retry_command(settings: Settings, run_id: str, from_start: bool, dry_run: bool, yes: bool) -> int:
    """Try a failed, timed-out, cancelled or terminated run again, for a worker to take.

    Its next generation keeps the journal up to what went wrong: before the activity whose error ended it, before the request
    to cancel; all of it, if its time was up or it was terminated. What is kept is not done again. If an error of the
    workflow's own code ended it, nothing is kept. Asks if completed activities are forgotten: they may run again, and if one
    of them undid something, --from-start is what you want.
    """
    return run_async(_retry(settings, Output(settings), run_id, from_start, dry_run, yes))


async def _retry(
    settings: Settings, output: Output, run_id: str, from_start: bool, dry_run: bool, yes: bool
) -> int:
    async with database(settings) as client:
        await exact_run_id(client, run_id, "retry")
        told = await client.retry(run_id, from_start=from_start, dry_run=True)
        if not dry_run:
            if told.forgotten and not yes:
                ask(f"retry {run_id}? {forgotten_text(told)}", "retry")
            told = await client.retry(run_id, from_start=from_start)
    if not output.is_text:
        output.json(builtins(told))
        return OK
    kept = f"{count(told.kept_events, 'event')} of its journal kept" if told.kept_events else "nothing kept"
    would = "would be " if told.is_dry else ""
    output.note(f"{run_id}@{told.generation} {would}opened, {kept}: a worker goes on with it")
    if told.forgotten:
        output.note(f"note: {forgotten_text(told)}")
    return OK


def forgotten_text(told: Reopened) -> str:
    """Return what of a run was done and is not part of its next generation."""
    names = ", ".join(map(escaped, told.forgotten[:5])) + (", …" if len(told.forgotten) > 5 else "")
    return f"{count(len(told.forgotten), 'activity')} completed and forgotten, may run again: {names}"
