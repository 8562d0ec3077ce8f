"""Taking care of a database: migrate, back up, prune."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click

from durable import Client, Pruned, RunStatus, connect
from durable_cli.completing import complete_workflow
from durable_cli.durations import duration_option
from durable_cli.finding import database, run_async
from durable_cli.options import Settings, app_option, common_options
from durable_cli.output import Output, builtins, bytes_text, count, escaped, iso
from durable_cli.problems import CONFLICT, OK, RUN_FAILED, Problem, ask
from durable_cli.targets import AnyWorkflow, load_target

ENDED_WELL: Final = ("completed", "compensated")
CLOSED: Final = tuple(str(one) for one in RunStatus if one.is_closed and one != "continued")


@click.command("migrate")
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if there is something to migrate.")
@click.option("--sql", "shows_sql", is_flag=True, help="Change nothing; print the SQL that would be run.")
@common_options
@click.pass_obj
def migrate_command(settings: Settings, check: bool, shows_sql: bool) -> int:
    """Bring a database's schema up to this version of durable.

    Whatever opens a database for work does the same; this is for deployments that want it as a step of its own. There is no
    way back: keep a backup. In a Postgres database it makes the schema, if its role may. Exit code 4 if the database is newer than this code.
    """
    if check and shows_sql:
        raise Problem("--check and --sql do not go together")
    if shows_sql:
        return run_async(_print_sql(settings, Output(settings)))
    return run_async(_migrate(settings, Output(settings), check))


async def _print_sql(settings: Settings, output: Output) -> int:
    """Print what is pending as a script for the database's own shell; nothing if nothing is."""
    pending = await connect(settings.db, create=False).pending_migrations()
    if not output.is_text:
        output.json({"migrations": builtins(pending)})
        return OK
    for migration in pending:
        output.line(f"-- {migration.number:04d} {migration.name}\n{migration.sql}\n")
    if not pending:
        output.note("nothing to migrate")
    return OK


async def _migrate(settings: Settings, output: Output, check: bool) -> int:
    client = connect(settings.db, create=False)
    before = await client.schema()
    after = before
    if not check:
        if before.version == 0 and settings.db.startswith(("postgresql://", "postgres://")):
            client = connect(settings.db)  # the database is there; only our schema is not
        async with client:
            after = await client.schema()
    if not output.is_text:
        output.json({"from": before.version, "to": after.version, "newest": after.newest})
    elif before.version == after.version:
        output.line(f"schema {after.version} of {after.newest}")
    else:
        output.line(f"schema {before.version} of {before.newest}, now {after.version}")
    return OK if after.version == after.newest else RUN_FAILED


@click.command("backup")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@common_options
@click.pass_obj
def backup_command(settings: Settings, file: Path) -> int:
    """Copy the database as it is at this moment into a new FILE, while workers go on.

    The file appears when it is complete and checked. Nothing is overwritten: exit code 6 if it exists.
    """
    if os.path.lexists(file):  # no error for a name that no file can have: the copy says what is wrong
        raise Problem(f"{file} exists", code=CONFLICT, hint="a backup overwrites nothing: name a new file")
    return run_async(_backup(settings, Output(settings), file))


async def _backup(settings: Settings, output: Output, file: Path) -> int:
    async with database(settings) as client:
        made = await client.backup(file)
    if output.is_text:
        output.line(f"{escaped(made.path)}  {bytes_text(made.bytes)}")
    else:
        output.json(builtins(made))
    return OK


@click.command("prune")
@click.option(
    "--older-than",
    type=duration_option,
    metavar="DURATION",
    help="Runs that were closed longer ago: 30d, 12h.",
)
@click.option(
    "--status",
    multiple=True,
    type=click.Choice(CLOSED),
    help="Only those that ended so. Repeat it for any of several.",
)
@click.option(
    "--workflow",
    metavar="NAME",
    help="Only of this workflow, and whatever retention= it has.",
    shell_complete=complete_workflow,
)
@click.option("--dry-run", is_flag=True, help="Count them, delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@app_option
@common_options
@click.pass_obj
def prune_command(
    settings: Settings,
    older_than: float | None,
    status: tuple[str, ...],
    workflow: str | None,
    dry_run: bool,
    yes: bool,
) -> int:
    """Delete closed runs with everything that belongs to them: journal, payloads, earlier generations, message ids.

    In small batches, so that workers go on. Open runs are never touched. The file does not shrink: its space is used again.
    Runs whose workflow wants them kept for longer (retention=) stay, unless --workflow names it. Workers do the same by themselves,
    for runs that were closed 30 days ago: durable worker --retention.

    With --app instead of --older-than: sagas of the app's managers that were completed, or compensated, as long ago as their configuration says
    (SagaConfig.cleanup_completed_after_hours).
    """
    which = {"status": list(status), "workflow": workflow}
    output = Output(settings)
    if settings.given_app:
        if older_than is not None or status or workflow:
            raise Problem("--app does not go together with --older-than, --status and --workflow")
        found = load_target(settings.given_app, settings)
        return run_async(_tidy(settings, output, found.workflows, dry_run, yes))
    if older_than is None:
        raise Problem("say which runs", hint="durable prune --older-than 30d, or --app TARGET for its sagas")
    return run_async(_prune(settings, output, older_than, which, dry_run, yes))


async def _tidy(
    settings: Settings, output: Output, workflows: list[AnyWorkflow], dry_run: bool, yes: bool
) -> int:
    """Delete runs that ended well, workflow by workflow, as long ago as each says."""
    kept = {
        one.name: timedelta(microseconds=one.definition.tidied_us)
        for one in workflows
        if one.definition.tidied_us is not None
    }

    async def pruned(client: Client, *, is_dry: bool) -> dict[str, Pruned]:
        return {
            name: await client.prune(
                older, status=ENDED_WELL, workflow=name, heeds_retention=True, dry_run=is_dry
            )
            for name, older in kept.items()
        }

    async with database(settings) as client:
        done = await pruned(client, is_dry=True)
        found = sum(one.runs for one in done.values())
        if not dry_run and found:
            if not yes:
                ask(f"delete {count(found, 'saga')} that ended well, for good", "prune")
            done = await pruned(client, is_dry=False)
    if not output.is_text:
        output.json({"workflows": {name: builtins(one) for name, one in done.items()}, "is_dry": dry_run})
        return OK
    if not done:
        output.note("no saga there says how long it is kept")
    verb = "would be deleted" if dry_run else "deleted"
    for name, one in done.items():
        output.line(f"{escaped(name)}: {count(one.runs, 'run')} {verb}, ended well before {iso(one.before)}")
    return OK


async def _prune(
    settings: Settings, output: Output, older_than: float, which: dict[str, Any], dry_run: bool, yes: bool
) -> int:
    async with database(settings) as client:
        pruned = await client.prune(older_than, **which, dry_run=True)
        if not dry_run and pruned.runs:
            if not yes:
                ask(
                    f"delete {count(pruned.runs, 'run')} closed before {iso(pruned.before)}, for good",
                    "prune",
                )
            pruned = await client.prune(older_than, **which)
    if not output.is_text:
        output.json({**builtins(pruned), "is_dry": dry_run})
    elif dry_run:
        output.line(f"{count(pruned.runs, 'run')} closed before {iso(pruned.before)} would be deleted")
    else:
        rows = f" with {count(pruned.journal_rows, 'journal row')}" if pruned.runs else ""
        output.line(f"{count(pruned.runs, 'run')} deleted{rows}, closed before {iso(pruned.before)}")
    return OK
