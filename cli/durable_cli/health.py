"""How things are: why a run stands still, which workers live, what is wrong with a database. Reads; changes nothing."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple

import click

import durable
from durable import Client, connect
from durable_cli.completing import complete_run_id
from durable_cli.durations import ago_text
from durable_cli.finding import LAST, database, find_run, run_async
from durable_cli.options import Settings, common_options
from durable_cli.output import Output, builtins, bytes_text, columns, count, escaped, glyph, iso, now
from durable_cli.problems import OK, RUN_FAILED, quoted, shell_word

LOG_BYTES_MAX: Final = 64 << 20  # above it, whoever writes copies the log into the database
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


# ─ why ───────────────────────────────────────────────────────────────────────


@click.command("why")
@click.argument("run_id", metavar="[ID]", default=LAST, shell_complete=complete_run_id)
@common_options
@click.pass_obj
def why_command(settings: Settings, run_id: str) -> int:
    """Say why a run (default: the newest) is not moving: exactly one reason, and what to do.

    The reasons: closed, parked, unreadable, paused, delayed, no_worker, claim, worker_lost, unread, turn, activity, slot, retry, signal,
    condition, timer, deadlock. docs/operations.md explains each.
    """
    return run_async(_why(settings, Output(settings), run_id))


async def _why(settings: Settings, output: Output, text: str) -> int:
    async with database(settings) as client:
        run = await find_run(client, text)
        why = await client.why(f"{run.run_id}@{run.generation}")
    reason = str(why.reason)
    name = why.queue if reason == "paused" and why.queue else why.name
    steps = next_steps(reason, why.run_id, str(why.status), name, why.queue or why.task_queue)
    if not output.is_text:
        output.json({**builtins(why), "next": steps})
        return OK
    facts = [
        ("run", why.run_id),
        ("workflow", f"{why.workflow} version {why.version}"),
        ("queue", escaped(why.task_queue)),
        ("status", str(why.status)),
        ("reason", reason),
        ("text", escaped(why.text)),
        ("since", iso(why.since)),
        ("due", iso(why.due_at)),
        ("source", why.source),
        ("worker", escaped(why.worker or "")),
        *(("waiting on", escaped(one.text)) for one in why.waiting_on),
        *(("next", step) for step in steps),
    ]
    if not output.is_rich:
        for key, value in facts:
            if value:
                output.row([key, value])
        return OK
    since = "" if why.since is None else f"  ({ago_text((now() - why.since).total_seconds())})"
    output.line(output.out.paint(f"{glyph(why.status)} {why.run_id} {why.status}: {reason}", bold=True))
    output.line(f"{escaped(why.text)}{since}")
    if why.source:
        output.line(f"at {why.source}")
    if len(why.waiting_on) > 1:
        output.line(f"all it waits for: {'; '.join(escaped(one.text) for one in why.waiting_on)}")
    output.line(output.out.paint(f"next: {' · '.join(steps)}", dim=True))
    return OK


def next_steps(reason: str, run_id: str, status: str, name: str, task_queue: str) -> list[str]:
    """Return the commands that help against a reason, or that show more."""
    run_id = shell_word(run_id)
    match reason:
        case "closed":
            return [f"durable {'result' if status == 'completed' else 'show'} {run_id}"]
        case "parked":
            return [f"durable show {run_id}", f"durable resume {run_id}"]
        case "paused":
            if not name:
                return [f"durable resume {run_id}"]
            return [f"durable resume --{'task-queue' if name == task_queue else 'worker'} {shell_word(name)}"]
        case "no_worker":
            return [worker_command(task_queue)]
        case "worker_lost":
            return ["durable recover", worker_command(task_queue)]
        case "signal":
            return [f"durable signal {run_id} {shell_word(name)} VALUE"]
        case "retry":
            return [f"durable retry {run_id}", f"durable show {run_id} -f"]
        case "deadlock":
            return [f"durable cancel {run_id}"]
        case _:
            return [f"durable show {run_id} -f"]


def worker_command(task_queue: str) -> str:
    """Return the command that serves a queue."""
    return "durable worker TARGET" + (
        "" if task_queue == "default" else f" --task-queue {shell_word(task_queue)}"
    )


# ─ workers ───────────────────────────────────────────────────────────────────


@click.command("workers")
@common_options
@click.pass_obj
def workers_command(settings: Settings) -> int:
    """List the living workers: what they serve, and how many runs each holds.

    Those with the kind "embedded" are plain scripts, which drive their own runs only.
    """
    return run_async(_workers(settings, Output(settings)))


async def _workers(settings: Settings, output: Output) -> int:
    async with database(settings) as client:
        lost = set(await client.find_lost_workers())
        known = await client.workers()
        paused = {one.name for one in await client.pauses() if one.kind == "worker"}
        url = client.url
    rows: list[dict[str, Any]] = [
        {
            "worker_id": one.worker_id,
            "name": one.name,
            "host": one.host,
            "pid": one.pid,
            "kind": "embedded" if one.embedded else "worker",
            "task_queue": one.task_queue,
            "task_queues": list(one.task_queues),
            "runs": one.runs,
            "tasks": one.tasks,
            "activities": list(one.activities),
            "is_paused": one.name in paused,
            "workflows": [
                {"workflow": workflow, "version": version} for workflow, version in one.definitions
            ],
            "since": iso(instant(one.started_at_us)),
            "last_beat": "" if one.beat_at_us is None else iso(instant(one.beat_at_us)),
        }
        for one in known
        if one.worker_id not in lost
    ]
    if output.format == "json":
        output.json({"workers": rows, "lost": sorted(lost)})
    elif output.format == "jsonl":
        for row in rows:
            output.json(row)
    else:
        _print_workers(output, rows)
        if not rows:
            output.note(f"no living worker in {url}")
        if lost:
            output.note(f"{count(len(lost), 'worker')} died holding runs or a place: durable recover")
    return OK


def _print_workers(output: Output, rows: list[dict[str, Any]]) -> None:
    table = [
        [
            str(row["worker_id"]),
            escaped(row["name"]),
            escaped(row["host"]),
            str(row["pid"]),
            row["kind"] + (", paused" if row["is_paused"] else ""),
            ", ".join(map(escaped, row["task_queues"])),
            str(row["runs"]),
            str(row["tasks"]),
            row["since"],
            ", ".join(escaped(f"{one['workflow']}@{one['version']}") for one in row["workflows"]),
        ]
        for row in rows
    ]
    if not output.is_rich:
        for cells in table:
            output.row(cells)
    elif table:
        heading = ["ID", "NAME", "HOST", "PID", "KIND", "QUEUE", "RUNS", "TASKS", "SINCE", "WORKFLOWS"]
        for number, cells in enumerate(columns([heading, *table])):
            output.line(output.out.paint("".join(cells), dim=number == 0))


def instant(at_us: int) -> datetime:
    """Return an aware UTC datetime; for a number out of all range (a damaged row) the nearest there is."""
    try:
        return _EPOCH + timedelta(microseconds=at_us)
    except OverflowError:
        return (datetime.max if at_us > 0 else datetime.min).replace(tzinfo=UTC)


# ─ doctor ────────────────────────────────────────────────────────────────────


class Check(NamedTuple):
    """One thing that was looked at. Anything but ok wants somebody to act."""

    check: str
    status: Literal["ok", "warning", "error"]
    text: str
    hint: str = ""


_SIGNS: Final = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@click.command("doctor")
@common_options
@click.pass_obj
def doctor_command(settings: Settings) -> int:
    """Look for what is wrong with a database and its workers. Exit code 1 if anything wants somebody to act.

    Versions, schema, durability, size of the log, locks, dead workers, queues and workflows without a worker, parked runs.
    Changes nothing.
    """
    return run_async(_doctor(settings, Output(settings)))


async def _doctor(settings: Settings, output: Output) -> int:
    client = connect(settings.db, create=False)
    schema = await client.schema()
    checks = [check_schema(schema.version, schema.newest)]
    if checks[0].status == "ok":
        async with client:
            checks += [check async for check in _checks(client)]
    else:
        checks.append(Check("versions", "ok", versions()))  # opening would migrate: look no further
    is_well = all(check.status == "ok" for check in checks)
    if output.is_text:
        _print_checks(output, checks)
        output.note(f"{'all is well' if is_well else 'not all is well'} · db {client.url}")
    else:
        output.json({"db": client.url, "ok": is_well, "checks": [check._asdict() for check in checks]})
    return OK if is_well else RUN_FAILED


def check_schema(version: int, newest: int) -> Check:
    """Judge a database's schema."""
    if version == newest:
        return Check("schema", "ok", f"schema {version} of {newest}")
    return Check("schema", "warning", f"schema {version} of {newest}", "durable migrate")


def versions(engine: str = "") -> str:
    """Return the versions of what is at work here."""
    known = [f"python {platform.python_version()}", f"durable {durable.__version__}", engine]
    return ", ".join(one for one in known if one)


async def _checks(client: Client) -> AsyncIterator[Check]:
    health = await client.health()
    workers = await client.workers()
    lost = set(await client.find_lost_workers())
    yield Check("versions", "ok", versions(health.engine))
    yield Check("durability", "ok", f"{health.journal_mode}, durability {health.durability} as opened here")
    free = (
        "" if health.free_bytes is None else f", of which {bytes_text(health.free_bytes)} are free for reuse"
    )
    yield Check("size", "ok", f"{bytes_text(health.database_bytes)}{free}")
    if health.log_bytes is not None:
        yield check_log(health.log_bytes)
    if health.locks is None:
        if health.unwritable:
            yield Check(
                "rights", "error", health.unwritable, "docs/guides/postgres.md lists the rights of each role"
            )
    elif health.unwritable:
        yield Check("locks", "error", health.unwritable, "check the owner and the rights of the file")
    elif not health.locks:
        yield Check(
            "locks", "error", "the directory of locks beside the database is missing", "open it again"
        )
    else:
        yield Check("locks", "ok", f"locks in {health.locks}")
    for worker in workers:
        if worker.worker_id in lost:
            held = count(worker.runs, "run") + (
                f" and {count(worker.tasks, 'activity')}" if worker.tasks else ""
            )
            text = f"worker {escaped(worker.name)} is dead and holds {held}"
            yield Check("dead workers", "warning", text, "durable recover")
    living = [one for one in workers if not one.embedded and one.worker_id not in lost]
    yield Check("workers", "ok", count(len(living), "living worker"))
    for pause in await client.pauses():
        what = f"{'queue' if pause.kind == 'task_queue' else 'worker'} {quoted(pause.name)} is paused"
        since = ago_text((now() - instant(pause.at_us)).total_seconds())
        yield Check(
            "pauses", "ok", f"{what} since {since}" + (f": {escaped(pause.reason)}" if pause.reason else "")
        )
    served = {
        (queue, *definition) for one in living for queue in one.task_queues for definition in one.definitions
    }
    groups = [
        (one.task_queue, one.workflow, one.version, one.state, one.runs, instant(one.since_us))
        for one in health.open_runs
    ]
    queues = {queue for one in living for queue in one.task_queues}
    for check in check_queues(groups, queues, served, now()):
        yield check
    tasks = [
        (one.task_queue, one.activity, one.tasks, instant(one.since_us))
        for one in health.open_tasks
        if one.state in ("ready", "delayed")
    ]
    performed = {(queue, name) for one in living for queue in one.task_queues for name in one.activities}
    for check in check_tasks(tasks, performed, now()):
        yield check


def check_log(log_bytes: int) -> Check:
    """Judge the size of the write-ahead log."""
    if log_bytes <= LOG_BYTES_MAX:
        return Check("log", "ok", f"write-ahead log {bytes_text(log_bytes)}")
    return Check(
        "log",
        "warning",
        f"write-ahead log {bytes_text(log_bytes)}: somebody reads an old state for long, or nobody checkpoints",
        "look for a stopped process or an open transaction",
    )


Group = tuple[str, str, int, str, int, datetime]  # queue, workflow, version, state, runs, since


def check_queues(
    groups: Sequence[Group], queues: set[str], served: set[tuple[str, str, int]], at: datetime
) -> Iterator[Check]:
    """Judge open runs by whether a living worker serves them; a queue that nobody serves is told once."""
    complaints = 0
    for queue in sorted({group[0] for group in groups} - queues):
        ready = [group for group in groups if group[0] == queue and group[3] == "ready"]
        if ready:
            complaints += 1
            runs = sum(group[4] for group in ready)
            since = ago_text((at - min(group[5] for group in ready)).total_seconds())
            text = f'queue "{escaped(queue)}" has {count(runs, "ready run")} (the oldest since {since}) and no worker'
            yield Check("queues", "warning", text, worker_command(queue))
    for definition in sorted({group[:3] for group in groups} - served):
        queue, workflow, version = definition
        runs = sum(
            group[4] for group in groups if group[:3] == definition and group[3] in ("ready", "waiting")
        )
        is_told = queue not in queues and any(
            group[:3] == definition and group[3] == "ready" for group in groups
        )
        if runs and not is_told:
            complaints += 1
            text = f'{escaped(workflow)} version {version} has {count(runs, "open run")} on queue "{escaped(queue)}" and no worker'
            yield Check("workflows", "warning", text, worker_command(queue))
    if not complaints:
        yield Check("queues", "ok", "every open run that needs a worker has one")
    for queue, workflow, version, state, runs, _ in groups:
        if state == "parked":
            complaints += 1
            text = f'{escaped(workflow)} version {version} has {count(runs, "parked run")} on queue "{escaped(queue)}"'
            hint = f"durable list --status parked --workflow {workflow}; after the fix: durable resume ID"
            yield Check("parked runs", "warning", text, hint)


def check_tasks(
    tasks: Sequence[tuple[str, str, int, datetime]], performed: set[tuple[str, str]], at: datetime
) -> Iterator[Check]:
    """Judge activities on other queues (queue, activity, how many, since) by whether a living worker performs them there."""
    for (queue, activity), waiting in groupby(tasks, key=lambda one: one[:2]):
        if (queue, activity) in performed:
            continue
        found = list(waiting)
        since = ago_text(max(0.0, (at - min(one[3] for one in found)).total_seconds()))
        calls = count(sum(one[2] for one in found), "call")
        text = f'queue "{escaped(queue)}" has {calls} of activity {escaped(activity)} (the oldest since {since}) and no worker for it'
        yield Check("activities", "warning", text, worker_command(queue))


def _print_checks(output: Output, checks: list[Check]) -> None:
    for check in checks:
        if not output.is_rich:
            output.row([check.status, check.check, check.text, check.hint])
            continue
        sign, colour = _SIGNS[check.status]
        hint = f"   → {check.hint}" if check.hint else ""
        output.line(f"{output.out.paint(sign, colour)} {check.text}{output.out.paint(hint, dim=True)}")
