"""Taking care of a database: migrate, back up, prune."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from durable import RunStatus, connect
from durable_cli.durations import duration_option
from durable_cli.finding import database, run_async
from durable_cli.options import Settings, common_options
from durable_cli.output import Output, builtins, bytes_text, count, iso
from durable_cli.problems import CONFLICT, OK, RUN_FAILED, Problem, ask

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
    if file.exists() or file.is_symlink():
        raise Problem(f"{file} exists", code=CONFLICT, hint="a backup overwrites nothing: name a new file")
    return run_async(_backup(settings, Output(settings), file))


async def _backup(settings: Settings, output: Output, file: Path) -> int:
    async with database(settings) as client:
        made = await client.backup(file)
    if output.is_text:
        output.line(f"{made.path}  {bytes_text(made.bytes)}")
    else:
        output.json(builtins(made))
    return OK


@click.command("prune")
@click.option(
    "--older-than",
    type=duration_option,
    metavar="DURATION",
    required=True,
    help="Runs that were closed longer ago: 30d, 12h.",
)
@click.option(
    "--status",
    multiple=True,
    type=click.Choice(CLOSED),
    help="Only those that ended so. Repeat it for any of several.",
)
@click.option("--dry-run", is_flag=True, help="Count them, delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_obj
def prune_command(
    settings: Settings, older_than: float, status: tuple[str, ...], dry_run: bool, yes: bool
) -> int:
    """Delete closed runs with everything that belongs to them: journal, payloads, earlier generations, message ids.

    In small batches, so that workers go on. Open runs are never touched. The file does not shrink: its space is used again.
    Workers do the same by themselves, for runs that were closed 30 days ago: durable worker --retention.
    """
    return run_async(_prune(settings, Output(settings), older_than, list(status), dry_run, yes))


async def _prune(
    settings: Settings, output: Output, older_than: float, status: list[str], dry_run: bool, yes: bool
) -> int:
    async with database(settings) as client:
        pruned = await client.prune(older_than, status=status, dry_run=True)
        if not dry_run and pruned.runs:
            if not yes:
                ask(
                    f"delete {count(pruned.runs, 'run')} closed before {iso(pruned.before)}, for good",
                    "prune",
                )
            pruned = await client.prune(older_than, status=status)
    if not output.is_text:
        output.json({**builtins(pruned), "is_dry": dry_run})
    elif dry_run:
        output.line(f"{count(pruned.runs, 'run')} closed before {iso(pruned.before)} would be deleted")
    else:
        rows = f" with {count(pruned.journal_rows, 'journal row')}" if pruned.runs else ""
        output.line(f"{count(pruned.runs, 'run')} deleted{rows}, closed before {iso(pruned.before)}")
    return OK
