"""One run told for people: on a terminal a table with bars, piped the same facts tab-separated. Draws; reads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from durable import Blocker, Entry, Run
from durable_cli.batches import collapsed, is_slice, slice_name
from durable_cli.durations import ago_text, duration_text
from durable_cli.output import COLOURS, Terminal, columns, count, cut, escaped, glyph, iso, value_text
from durable_cli.problems import shell_word

BAR_WIDTH: Final = 24
NAME_WIDTH_MAX: Final = 40
DASH: Final = "–"


# ─ words about a run, shared by list and show ────────────────────────────────


def took(run: Run, now: datetime) -> str:
    """Return how long the run took, or has taken."""
    begin = run.started_at or run.created_at
    return duration_text(((run.closed_at or now) - begin).total_seconds())


def outcome(run: Run) -> str:
    """Return what an open run waits for, or how a closed one ended, on one line."""
    if not run.status.is_closed:
        return "; ".join(escaped(one.text) for one in run.waiting_on)
    if run.status == "completed":
        return value_text(run.result)
    if run.error is not None:
        return failure_text(run)
    return escaped(run.reason or "")


def failure_text(run: Run) -> str:
    """Return `ship: RuntimeError: no stock  (5 attempts)`."""
    culprit, failure = failed_entry(run), run.failure
    name, tries = "", 0
    if culprit is not None:
        name, tries = culprit.name, culprit.attempts
    elif failure is not None and failure.activity is not None:  # a list has no journals
        name, tries = failure.activity, failure.attempts
    where = f"{name}: " if name else ""
    attempts = f"  ({tries} attempts)" if tries > 1 else ""
    return escaped(f"{where}{run.error}") + attempts


def failed_entry(run: Run) -> Entry | None:
    """Return the failed activity whose error became the run's, if there is one."""
    failed = [one for one in run.journal if one.status == "failed" and one.error == run.error]
    return failed[-1] if failed else None


def needs_a_worker(run: Run) -> bool:
    """Whether nobody drives an open run that could go on."""
    return (
        any(one.kind == "nothing" and one.name == "worker" for one in run.waiting_on) and run.worker is None
    )


def next_steps(run: Run) -> list[str]:
    """Return the commands a person is likely to want now."""
    run_id = shell_word(run.run_id)
    steps = [next_step(run.run_id, one) for one in run.waiting_on if one.kind == "signal"][:1]
    if run.status == "parked" or (run.paused_at is not None and not run.status.is_closed):
        steps.append(f"durable resume {run_id}")
    if needs_a_worker(run):
        steps.append("durable worker TARGET")
    if not run.status.is_closed and not steps:
        steps.append(f"durable show {run_id} -f")
    if run.status in ("failed", "timed_out"):
        steps.append(f"durable retry {run_id}")
    if run.status == "completed":
        steps.append(f"durable result {run_id}")
    return [*steps, f"durable show {run_id} --events"]


def next_step(run_id: str, waiting: Blocker) -> str:
    """Return the command that gives a run what it waits for."""
    run_id = shell_word(run_id)
    return (
        f"durable answer {run_id} VALUE"
        if waiting.ask
        else f"durable signal {run_id} {shell_word(waiting.name)} VALUE"
    )


# ─ words about an entry ──────────────────────────────────────────────────────


def step_name(entry: Entry, kind: str = "workflow") -> str:
    """Return `charge("bad")`, `sleep 2s`, `signal approved`, `ask approve`; in a run of kind graph `charge`: all get the state."""
    match entry.kind:
        case "timer":
            return f"sleep {entry.name}"
        case "signal" if entry.ask:
            return f"ask {escaped(entry.name)}"
        case "signal":
            return f"signal {escaped(entry.name)}"
        case "update":
            return f"update {escaped(entry.name)}({'' if entry.input is None else value_text(entry.input)})"
        case "condition":
            return escaped(entry.name) or (f"condition at {entry.source}" if entry.source else "condition")
        case "cancel":
            return "cancel requested"
        case "patch":
            return f"patch {escaped(entry.name)}"
        case "predicate":
            return f"{escaped(entry.name.removesuffix('/edges'))}?"
        case _ if entry.status == "skipped" or kind == "graph":
            return escaped(entry.name)
        case "compensation":
            return f"undo {escaped(entry.name.removesuffix('/compensation'))}"
        case "transition":
            machine, _, event = entry.name.rpartition("/")
            return f"{escaped(machine)}: {escaped(event)}"
        case "batch":
            return escaped(entry.name)
        case "bulk" if is_slice(entry):
            return escaped(slice_name(entry))
        case _:
            return f"{escaped(entry.name)}({_call(entry.input)})"


def _call(given: Any) -> str:
    """Return the arguments: a lone one as it is, several by name (they are stored in the order of their names)."""
    if isinstance(given, dict):
        if len(given) == 1:
            return value_text(*given.values())
        return ", ".join(f"{escaped(name)}={value_text(value)}" for name, value in given.items())
    return "" if given is None else value_text(given)


def attempts_text(entry: Entry) -> str:
    """Return `3 attempts`, or `1+` if there may have been more; one attempt is worth no words."""
    if not entry.is_counted:
        return f"{entry.attempts}+"
    return f"{entry.attempts} attempts" if entry.attempts > 1 else str(entry.attempts or "")


def entry_took(entry: Entry, now: datetime) -> str:
    """Return how long an entry took, or has taken."""
    if entry.started_at is None:
        return ""
    return duration_text(((entry.finished_at or now) - entry.started_at).total_seconds())


def entry_result(entry: Entry, now: datetime) -> str:
    """Return the result, the error, or what is awaited."""
    if entry.status == "retrying":
        left = 0.0 if entry.due_at is None else (entry.due_at - now).total_seconds()
        when = f"in {duration_text(left)}" if left > 0 else "now"
        return f"attempt {entry.attempts + 1} {when} after {escaped(entry.error or 'an error')}"
    if entry.error is not None:
        return escaped(entry.error)
    if entry.kind in ("cancel", "patch", "batch"):
        return escaped(str(entry.result or ""))
    if entry.kind == "transition" and isinstance(entry.result, dict) and "state" in entry.result:
        return f"→ {escaped(str(entry.result['state']))}"
    if entry.status == "waiting" and entry.due_at is not None:
        return f"until {iso(entry.due_at)}"
    if entry.status == "waiting" and entry.ask:
        return escaped(entry.prompt)
    if entry.kind in ("gate", "predicate") and entry.status == "completed" and isinstance(entry.result, list):
        return "→ " + (", ".join(escaped(str(one)) for one in entry.result) or "nothing")
    if entry.status == "received" or (
        entry.status == "completed" and (entry.is_activity or entry.kind == "update")
    ):
        return value_text(entry.result)
    return "" if entry.status in ("completed", "fired") else str(entry.status)


# ─ piped ─────────────────────────────────────────────────────────────────────


def facts(run: Run, now: datetime) -> Iterator[Sequence[str]]:
    """Yield the run as rows of cells: `key, value` lines, then `step` lines."""
    yield "run", run.run_id
    yield "workflow", run.workflow
    if run.kind != "workflow":
        yield "kind", run.kind
    if run.parent is not None:
        yield "parent", run.parent
    yield "status", str(run.status)
    yield "generation", str(run.generation)
    yield "version", str(run.version)
    yield "queue", escaped(run.task_queue)
    if run.worker:
        yield "worker", escaped(run.worker)
    yield "created", iso(run.created_at)
    if run.started_at is not None:
        yield "started", iso(run.started_at)
    if run.closed_at is not None:
        yield "closed", iso(run.closed_at)
    if run.retention is not None:
        yield "kept", kept_text(run)
    yield "took", took(run, now)
    yield "input", value_text(run.input)
    for number, entry in enumerate(collapsed(run).journal, 1):
        yield _step_row(number, entry, now, run.kind)
    for one in run.waiting_on if not run.status.is_closed else ():
        yield "waiting on", escaped(one.text), one.source
    if run.status == "completed":
        yield "result", value_text(run.result)
    elif run.status.is_closed and run.error is not None:
        yield "error", failure_text(run)
    elif run.failure is not None:
        for line in run.failure.traceback.rstrip().splitlines():
            yield "stack", escaped(line)
    if run.reason:
        yield "reason", escaped(run.reason)


def kept_text(run: Run) -> str:
    """Return how long a run with a retention of its own is kept; "" for others."""
    if run.retention is None:
        return ""
    if run.retention == "forever":
        return "for ever"
    if run.closed_at is not None:
        return f"until {iso(run.closed_at + run.retention)}"
    return f"{duration_text(run.retention.total_seconds())} after it is closed"


def _step_row(number: int, entry: Entry, now: datetime, kind: str) -> Sequence[str]:
    return (
        "step",
        str(number),
        str(entry.status),
        step_name(entry, kind),
        entry_took(entry, now),
        attempts_text(entry),
        entry_result(entry, now),
    )


def step_line(number: int, entry: Entry, now: datetime, kind: str = "workflow") -> str:
    """Return one line of progress: `✓ charge("bad")  0.21s  "ch_bad"`."""
    cells = (step_name(entry, kind), entry_took(entry, now), attempts_text(entry) if entry.attempts > 1 else "",
             entry_result(entry, now))  # fmt: skip
    return f"{glyph(entry.status)} {number:>2}  " + "  ".join(cell for cell in cells if cell)


# ─ on a terminal ─────────────────────────────────────────────────────────────


def picture(run: Run, terminal: Terminal, now: datetime) -> Iterator[str]:
    """Yield the lines of `durable show` on a terminal."""
    width = terminal.width
    status = terminal.paint(f"{glyph(run.status)} {run.status}", COLOURS.get(run.status), bold=True)
    about = f"generation {run.generation}  worker {escaped(run.worker or DASH)}  version {run.version}"
    kind = "" if run.kind == "workflow" else f"{run.kind} "
    yield f"{kind}{terminal.paint(run.workflow, bold=True)}  {terminal.paint(run.run_id, bold=True)}  {status}    {about}"
    begin = run.started_at or run.created_at
    verb = "started" if run.started_at else "created"
    ago = ago_text((now - begin).total_seconds())
    kept = "" if run.retention is None else f"   kept {kept_text(run)}"
    parent = "" if run.parent is None else f"   child of {escaped(run.parent)}"
    yield f"{verb} {iso(begin)} ({ago})   took {took(run, now)}   queue {escaped(run.task_queue)}{parent}{kept}"
    yield cut(f"input   {value_text(run.input)}", width)
    yield ""
    told = collapsed(run)
    if told.journal:
        yield from _table(told, terminal, now)
        yield ""
    yield from _ending(run, terminal)
    yield f"next: {' · '.join(next_steps(run))}"


def _table(run: Run, terminal: Terminal, now: datetime) -> Iterator[str]:
    begin = min(entry.started_at or now for entry in run.journal)
    end = run.closed_at or now
    rows = [["#", "STEP", _scale((end - begin).total_seconds()), "TOOK", "ATTEMPTS", "RESULT"]]
    rows += [
        [
            str(number),
            cut(f"{glyph(entry.status)} {step_name(entry, run.kind)}", NAME_WIDTH_MAX),
            _bar(entry, begin, end),
            entry_took(entry, now),
            attempts_text(entry),
            entry_result(entry, now),
        ]
        for number, entry in enumerate(run.journal, 1)
    ]
    for i, cells in enumerate(columns(rows)):
        left = " " + "".join(cells[:-1])
        last = cut(cells[-1], max(10, terminal.width - len(left)) if terminal.width else 0)
        if i == 0:
            yield terminal.paint((left + last).rstrip(), dim=True)
            continue
        colour = COLOURS.get(run.journal[i - 1].status)
        cells[1] = terminal.paint(cells[1], colour)
        cells[2] = terminal.paint(cells[2], colour)
        yield (" " + "".join(cells[:-1]) + last).rstrip()


def _scale(seconds: float) -> str:
    """Return `0s … 12.4s` spread over the width of the bars."""
    right = duration_text(seconds)
    return "0s" + right.rjust(BAR_WIDTH - 2)


def _bar(entry: Entry, begin: datetime, end: datetime) -> str:
    span = (end - begin).total_seconds()
    if entry.started_at is None or span <= 0:
        return ""
    left = int((entry.started_at - begin).total_seconds() / span * BAR_WIDTH)
    right = int(((entry.finished_at or end) - begin).total_seconds() / span * BAR_WIDTH)
    left = max(0, min(left, BAR_WIDTH - 1))
    length = max(1, min(right, BAR_WIDTH) - left)
    return " " * left + ("█" if entry.is_activity else "░") * length


def _ending(run: Run, terminal: Terminal) -> Iterator[str]:
    """Yield the result, the error with its traceback, or what the run waits for."""
    if not run.status.is_closed:
        yield terminal.paint("waiting on", bold=True)
        for row in columns([[f"  {escaped(one.text)}", one.source] for one in run.waiting_on]):
            yield "".join(row).rstrip()
        if run.failure is not None and run.failure.traceback:
            yield terminal.paint("stopped at", bold=True)
            yield from (f"  {escaped(line)}" for line in run.failure.traceback.rstrip().splitlines())
    elif run.status == "completed":
        yield cut(f"result  {value_text(run.result)}", terminal.width)
    elif run.error is not None:
        yield from _error(run, terminal)
    if run.reason and run.status != "parked":
        yield f"reason  {escaped(run.reason)}"
    yield ""


def _error(run: Run, terminal: Terminal) -> Iterator[str]:
    culprit = failed_entry(run)
    failure = run.failure if culprit is None else culprit.failure or run.failure
    title = "error"
    if culprit is not None:
        tried = f", after {count(culprit.attempts, 'attempt')}" if culprit.attempts > 1 else ""
        title = f"error in {escaped(culprit.name)}{tried}"
    yield terminal.paint(title, "red", bold=True)
    for line in failure.traceback.rstrip().splitlines() if failure is not None else ():
        yield f"  {escaped(line)}"
    yield terminal.paint(escaped(run.error or ""), "red")
    if culprit is not None and culprit.source:
        yield f"raised through workflow line  {culprit.source}"
    cause = None if failure is None else failure.cause
    if cause is not None:
        yield f"caused by {escaped(cause.type.rpartition(':')[2])}: {escaped(cause.message)}"
