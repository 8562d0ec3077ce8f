"""`durable check`: does the code of workflows hold what replay asks of it, and would runs that exist go on under it?

Reads only. Nothing of a run is driven, no activity runs, nothing is written.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec

from durable import DurableError, RecordedRun, RunStatus, UndecodableError, UnreadableRun, connect
from durable.testing import replay
from durable_cli.codecs import codec_of
from durable_cli.filters import filter_options
from durable_cli.finding import run_async
from durable_cli.junit import Case, write_junit
from durable_cli.linting import Fault, lint
from durable_cli.options import Settings, common_options
from durable_cli.output import Output, count, escaped, now
from durable_cli.problems import DATABASE, OK, RUN_FAILED, Problem, quoted
from durable_cli.targets import AnyWorkflow, Found, load_target

FILES: Final = (".json", ".jsonl")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What today's code would do with one run. `verdict` is "fits", "breaks" or "unknown": not of this code."""

    run_id: str
    workflow: str
    status: str
    verdict: str
    events: int = 0
    text: str = ""  # why it breaks
    event: int | None = None  # the first that does not fit
    warnings: tuple[str, ...] = ()
    hash_seed: str | None = None  # the one under which it breaks or differs, if not under this process's own


class Asked(NamedTuple):
    """Which runs are to be replayed: those of a database or file that fit the filters, at most `limit`."""

    against: str
    filters: dict[str, Any]
    limit: int | None


@click.command("check")
@click.argument("target", required=False)
@click.option(
    "--against",
    metavar="DATABASE|FILE",
    help="Replay its runs: a database, or files of `durable show --events -o json`.",
)
@filter_options
@click.option(
    "--limit", type=click.IntRange(1), help="Replay at most so many runs, the newest (default: all)."
)
@click.option(
    "--hash-seeds",
    type=click.IntRange(0, 16),
    default=1,
    show_default=True,
    help="Replay under so many other hash seeds, too.",
)
@click.option("--strict", is_flag=True, help="Warnings count: other arguments, another result.")
@click.option(
    "--junit", type=click.Path(dir_okay=False), metavar="FILE", help="Write a report for CI servers."
)
@common_options
@click.pass_obj
def check_command(
    settings: Settings,
    /,
    target: str | None,
    against: str | None,
    limit: int | None,
    hash_seeds: int,
    strict: bool,
    junit: str | None,
    **filters: Any,
) -> int:
    """Look for what a replay would answer differently in the workflows of TARGET (default: --app); exit code 1 if there is something.

    With --against, runs of a database are replayed with this code as well: without side effects, read-only, live ones and closed ones. Each that would
    break is listed, with the lines of both sides. The filters say which runs. A line with `# durable: ignore` is left alone.
    """
    name = target or settings.app
    if name is None:
        raise Problem("do not know which code to check", hint="durable check app.py")
    output = Output(settings)
    found = load_target(name, settings)
    if not found.workflows:
        raise Problem(f"{found.name} has no workflow", hint="decorate an async function with @workflow")
    faults = _lint_all(found.workflows)
    verdicts: list[Verdict] = []
    if against is not None:
        asked = Asked(against, _absolute(filters), limit)
        verdicts = _replay_all(settings, asked, found.workflows)
        for seed in range(1, hash_seeds + 1) if verdicts else ():
            verdicts = _merged(verdicts, _under_seed(settings, name, asked, seed=seed), str(seed))
    _tell(output, found, faults, verdicts, was_asked=against is not None)
    if junit is not None:
        write_junit(Path(junit), [*_lint_cases(found.workflows, faults), *map(_run_case, verdicts)])
    is_bad = any(one.verdict == "breaks" or (strict and one.warnings) for one in verdicts)
    return RUN_FAILED if faults or is_bad else OK


def _lint_all(workflows: Sequence[AnyWorkflow]) -> list[Fault]:
    by_place = {(one.path, one.line, one.column, one.rule): one for flow in workflows for one in lint(flow)}
    return sorted(by_place.values())


def _absolute(filters: dict[str, Any]) -> dict[str, Any]:
    """Return the filters for `Client.recorded_runs`, with instants that mean the same in another process."""
    chosen = {key: value for key, value in filters.items() if value not in (None, ())}
    for key in ("since", "until"):
        if isinstance(chosen.get(key), int | float):
            chosen[key] = now() - timedelta(seconds=chosen[key])
    return chosen


# ─ replaying ─────────────────────────────────────────────────────────────────


def _replay_all(settings: Settings, asked: Asked, workflows: Sequence[AnyWorkflow]) -> list[Verdict]:
    if _is_file(asked.against):
        return [_judge(run, workflows) for run in _from_file(Path(asked.against))]
    return run_async(_replay_database(settings, asked, workflows))


def _is_file(against: str) -> bool:
    return against.endswith(FILES) and Path(against).is_file()


def _from_file(path: Path) -> Iterator[RecordedRun | UnreadableRun]:
    """Yield the one run of a .json file, or those of a .jsonl file, one a line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Problem(f"cannot read {quoted(str(path))}: {error}") from error
    for number, one in enumerate(data.splitlines() if path.suffix == ".jsonl" else [data], 1):
        try:
            yield RecordedRun.from_json(one)
        except UndecodableError as error:
            yield UnreadableRun(run_id=f"{path.name}:{number}", workflow="", reason=str(error))


async def _replay_database(
    settings: Settings, asked: Asked, workflows: Sequence[AnyWorkflow]
) -> list[Verdict]:
    client = connect(asked.against, create=False, codec=codec_of(settings))
    schema = await client.schema()
    if schema.version < schema.newest:  # opening it would bring it up to date
        raise Problem(
            f"{client.url} has schema {schema.version}, this code reads {schema.newest}",
            code=DATABASE,
            hint="check a migrated copy: durable backup, then durable migrate",
        )
    async with client:
        runs = client.recorded_runs(**asked.filters, limit=asked.limit)
        return [_judge(run, workflows) async for run in runs]


def _judge(run: RecordedRun | UnreadableRun, workflows: Sequence[AnyWorkflow]) -> Verdict:
    if isinstance(run, UnreadableRun):
        return Verdict(run_id=run.run_id, workflow=run.workflow, status="", verdict="breaks", text=run.reason)
    about: dict[str, Any] = {
        "run_id": run.run_id,
        "workflow": run.workflow,
        "status": run.status,
        "events": len(run.events),
    }
    versions = sorted({flow.version for flow in workflows if flow.name == run.workflow})
    if run.is_local or not versions or (run.version not in versions and RunStatus(run.status).is_closed):
        return Verdict(**about, verdict="unknown")
    try:
        replayed = replay(run, *workflows)
    except DurableError as error:
        return Verdict(**about, verdict="breaks", text=str(error), event=getattr(error, "event", None))
    return Verdict(**about, verdict="fits", warnings=replayed.warnings)


def _under_seed(settings: Settings, target: str, asked: Asked, *, seed: int) -> list[Verdict]:
    """Return what another process finds, in which sets of text have another order."""
    words = [
        sys.executable,
        "-m",
        "durable_cli",
        "check",
        target,
        "--against",
        asked.against,
        "--hash-seeds",
        "0",
        "-o",
        "json",
    ]
    words += ["--limit", str(asked.limit)] if asked.limit is not None else []
    for key, value in asked.filters.items():
        option = "--id" if key == "run_id" else f"--{key.replace('_', '-')}"
        for one in value if isinstance(value, tuple) else [value]:
            words += [option, one.isoformat() if hasattr(one, "isoformat") else str(one)]
    words += ["--codec", settings.codec] if settings.codec else []
    words += ["--key-file", settings.key_file] if settings.key_file else []
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    try:
        told = msgspec.json.decode(done.stdout, type=_Told)
    except msgspec.DecodeError:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise Problem(
            f"the check under PYTHONHASHSEED={seed} ended with {done.returncode}: {reason[0]}",
            hint="--hash-seeds 0",
        ) from None
    return told.runs


class _Told(msgspec.Struct):
    """What of another process's answer counts here."""

    runs: list[Verdict]


def _merged(here: list[Verdict], there: list[Verdict], seed: str) -> list[Verdict]:
    """Add what breaks, or differs, only under another hash seed."""
    others = {one.run_id: one for one in there if one.verdict == "breaks" or one.warnings}
    return [
        msgspec.structs.replace(others[one.run_id], hash_seed=seed)
        if one.verdict == "fits" and not one.warnings and one.run_id in others
        else one
        for one in here
    ]


# ─ telling ───────────────────────────────────────────────────────────────────


def _tell(
    output: Output, found: Found, faults: list[Fault], verdicts: list[Verdict], *, was_asked: bool
) -> None:
    if not output.is_text:
        output.json(
            {
                "target": found.name,
                "workflows": sorted({flow.name for flow in found.workflows}),
                "faults": [{**fault._asdict(), "path": _shown_path(fault.path)} for fault in faults],
                "counts": Counter(one.verdict for one in verdicts),
                "runs": verdicts,
            }
        )
        return
    for fault in faults:
        place = f"{_shown_path(fault.path)}:{fault.line}:{fault.column}"
        output.line(f"{place}: {fault.rule}: {escaped(fault.text)}")
    for one in verdicts:
        seed = f", under PYTHONHASHSEED={one.hash_seed}" if one.hash_seed else ""
        if one.verdict == "breaks":
            output.line(
                f"✗ {one.run_id} ({one.workflow or '?'}, {one.status or 'unreadable'}) would break{seed}"
            )
            output.line(f"  {escaped(one.text, keep_lines=True)}".replace("\n", "\n  "))
        for warning in one.warnings:
            output.line(f"! {one.run_id} ({one.workflow}, {one.status}) differs{seed}: {escaped(warning)}")
    names = {flow.name for flow in found.workflows}
    output.note(
        f"{count(len(names), 'workflow')} read: {count(len(faults), 'fault') if faults else 'no fault'}"
    )
    if was_asked:
        output.note(_summary(verdicts, found.name))


def _summary(verdicts: list[Verdict], target: str) -> str:
    counts = Counter(one.verdict for one in verdicts)
    replayed = counts["fits"] + counts["breaks"]
    told = f"{count(replayed, 'run')} replayed: {counts['breaks'] or 'none'} would break"
    differing = sum(bool(one.warnings) for one in verdicts)
    told += f", {differing} differ without breaking" if differing else ""
    return told + (f"; {counts['unknown']} not of {target}" if counts["unknown"] else "")


def _shown_path(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _lint_cases(workflows: Sequence[AnyWorkflow], faults: list[Fault]) -> list[Case]:
    return [
        Case(
            suite="workflows",
            name=name,
            failure="\n".join(
                f"{_shown_path(one.path)}:{one.line}:{one.column}: {one.rule}: {one.text}"
                for one in faults
                if one.workflow == name
            ),
        )
        for name in sorted({flow.name for flow in workflows})
    ]


def _run_case(verdict: Verdict) -> Case:
    return Case(
        suite=f"runs of {verdict.workflow}",
        name=verdict.run_id,
        failure=verdict.text if verdict.verdict == "breaks" else "",
        is_skipped=verdict.verdict == "unknown",
    )
