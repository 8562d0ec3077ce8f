"""`durable show --stack`: where the coroutines of a run stand, what each awaits, and since when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from durable import Client, PlatformFault, Run, Stack, Standpoint, Workflow, WorkflowVersionMismatchError
from durable_cli.durations import ago_text, duration_text
from durable_cli.finding import database, find_run
from durable_cli.options import Settings
from durable_cli.output import Output, builtins, cut, escaped, glyph, iso, now
from durable_cli.problems import Problem
from durable_cli.targets import AnyWorkflow, load_target


async def show_stack(
    settings: Settings, output: Output, text: str, target: str | None, *, with_values: bool
) -> None:
    """Print the stack: rebuilt with the target's code, else as the journal recorded it, with a note that says why."""
    async with database(settings) as client:
        run = await find_run(client, text)
        stack, why = await _stack(client, run, _workflow_of(run, target, settings, output), with_values)
    if not output.is_text:
        output.json({**builtins(stack), "status": str(run.status)})
        return
    if output.is_rich:
        for line in picture(stack, run, output, now()):
            output.line(line)
    else:
        for cells in rows(stack):
            output.row(cells)
    if why:
        output.note(f"note: as the journal recorded it, without the code: {escaped(why)}")
    if not stack.standpoints:
        ended = run.status.is_closed
        output.note(
            f"{run.run_id} is {run.status}: {'it stands nowhere any more' if ended else 'it has not begun'}"
        )


def _workflow_of(run: Run, target: str | None, settings: Settings, output: Output) -> AnyWorkflow | None:
    """Return the workflow of the run within the target, in the run's version if it is there."""
    if target is None or run.status.is_closed:
        return None
    try:
        found = [one for one in load_target(target, settings).workflows if one.name == run.workflow]
    except Problem as problem:
        output.note(f"note: {problem.message}")
        return None
    fitting = [one for one in found if one.version == run.version]
    return next(iter(fitting or found), None)


async def _stack(
    client: Client, run: Run, workflow: AnyWorkflow | None, with_values: bool
) -> tuple[Stack, str]:
    """Return the stack and, if it could not be rebuilt, why."""
    address = f"{run.run_id}@{run.generation}"
    why = "" if run.status.is_closed else "name it: --stack app.py, or --app"
    if isinstance(workflow, Workflow):
        try:
            return await client.stack(address, workflow, values=with_values), ""
        except (PlatformFault, WorkflowVersionMismatchError) as fault:
            why = str(fault)
    return await client.stack(address), why


def rows(stack: Stack) -> Iterator[Sequence[str]]:
    """Yield the stack as cells: a `task` line for each coroutine, then its `frame` lines, outermost first, each with its `value` lines."""
    for one in stack.standpoints:
        yield "task", escaped(one.task), escaped(one.awaits), iso(one.since), iso(one.due)
        for frame in one.frames:
            yield "frame", frame.source, escaped(frame.function), escaped(frame.text)
            for name, value in frame.values.items():
                yield "value", escaped(name), escaped(value)


def picture(stack: Stack, run: Run, output: Output, at: datetime) -> Iterator[str]:
    """Yield the lines of a stack on a terminal."""
    terminal = output.out
    yield terminal.paint(f"{glyph(run.status)} {stack.workflow} {stack.run_id} {run.status}", bold=True)
    for one in stack.standpoints:
        yield ""
        yield terminal.paint(escaped(one.task) or "open", bold=True)
        for frame in one.frames:
            where = f"  {frame.source}  {escaped(frame.function)}".rstrip()
            yield cut(f"{where}   {escaped(frame.text)}".rstrip(), terminal.width)
            for name, value in frame.values.items():
                yield cut(f"      {escaped(name)} = {escaped(value)}", terminal.width)
        yield f"  awaits {escaped(one.awaits)}{_times(one, at)}"


def _times(one: Standpoint, at: datetime) -> str:
    since = (
        ""
        if one.since is None
        else f", since {iso(one.since)} ({ago_text((at - one.since).total_seconds())})"
    )
    if one.due is None:
        return since
    left = (one.due - at).total_seconds()
    return f"{since}, {f'due in {duration_text(left)}' if left > 0 else 'due now'}"
