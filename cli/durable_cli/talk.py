"""Talking to runs: signal, update, query, cancel, terminate. Those that change something take exact run ids."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click
import msgspec

from durable import (
    ArgumentsError,
    Client,
    DurableError,
    RunHandle,
    Signal,
    UpdateFailedError,
    UpdateRejectedError,
)
from durable_cli.arguments import Given, parse_arguments, parse_value
from durable_cli.completing import complete_run_id
from durable_cli.durations import duration_option
from durable_cli.finding import database, exact_run_id, find_run, run_async
from durable_cli.options import Settings, app_option, common_options
from durable_cli.output import Output, json_text
from durable_cli.problems import NOT_FOUND, OK, RUN_FAILED, TIMED_OUT, Problem, ask, quoted
from durable_cli.targets import load_target, objects_of, workflows_in

Declared = Signal[Any] | Callable[..., object]  # what tells the type of a signal's or an update's value


@click.command("signal")
@click.argument("run_id", metavar="ID", shell_complete=complete_run_id)
@click.argument("name", metavar="NAME")
@click.argument("words", metavar="[VALUE]", nargs=-1)
@click.option("--json", "whole", metavar="JSON", help="The value as JSON; - reads it from standard input.")
@click.option(
    "--message-id", metavar="ID", help="Makes the call repeatable: a second message with this id is dropped."
)
@app_option
@common_options
@click.pass_obj
def signal_command(
    settings: Settings,
    run_id: str,
    name: str,
    words: tuple[str, ...],
    whole: str | None,
    message_id: str | None,
) -> int:
    """Send a signal to an open run. Returned means stored: it is delivered once, in order.

    VALUE: nothing (null), text, JSON (true, 3, '{"by": "ann"}'), or named parts (by=ann ok:=true), which make an object.
    With --app the value is checked against the type of the Signal of that name, or of the method that takes it.
    """
    value = parse_value(words, whole, read_stdin=sys.stdin.read)
    text = words[0] if len(words) == 1 and whole is None else None
    return run_async(_signal(settings, Output(settings), run_id, name, value, text, message_id))


async def _signal(
    settings: Settings,
    output: Output,
    run_id: str,
    name: str,
    value: Any,
    text: str | None,
    message_id: str | None,
) -> int:
    declared = _declared_signal(settings, output, name)
    async with database(settings) as client:
        await exact_run_id(client, run_id, "signal")
        if declared is None:
            await client.signal(run_id, name, value, id=message_id)
        else:
            await _send_typed(client, run_id, declared, value, text, message_id)
        _done(output, {"run_id": run_id, "signal": name}, f"signal {name!r} sent to {run_id}")
    return OK


def _objects(settings: Settings, output: Output) -> Sequence[object]:
    """Return what the app holds, if there is one.

    Whoever must talk to a run now can do it without the code; only an app that was asked for by --app must be there.
    """
    if settings.app is None:
        return ()
    try:
        return objects_of(settings.app, settings)
    except Problem as problem:
        if settings.given_app:
            raise
        output.note(f"note: the value is not checked: {problem.message}")
        return ()


def _declared_signal(settings: Settings, output: Output, name: str) -> Declared | None:
    """Return the Signal of that name within the app, or the method of a class there that takes it, if there is one."""
    values = _objects(settings, output)
    signals: list[Declared] = [one for one in values if isinstance(one, Signal) and one.name == name]
    methods = [one.definition.signals.get(name) for value in values for one in workflows_in(value)]
    signals += [method.fn for method in methods if method is not None]
    return signals[0] if signals else None


async def _send_typed(
    client: Client, run_id: str, signal: Declared, value: Any, text: str | None, message_id: str | None
) -> None:
    """Send the value as JSON if that fits the signal's type, else as the text it was typed as (`note 123`)."""
    try:
        await client.signal(run_id, signal, value, id=message_id)
    except ArgumentsError:
        if text is None or text == value:
            raise
        await client.signal(run_id, signal, text, id=message_id)


@click.command("update")
@click.argument("run_id", metavar="ID", shell_complete=complete_run_id)
@click.argument("name", metavar="NAME")
@click.argument("words", metavar="[VALUE]", nargs=-1)
@click.option("--json", "whole", metavar="JSON", help="The value as JSON; - reads it from standard input.")
@click.option(
    "--message-id",
    metavar="ID",
    help="Makes the call repeatable: asked again with this id, the run gives the same answer and does nothing twice.",
)
@click.option("--timeout", type=duration_option, metavar="DURATION", help="Wait at most so long: 30s, 5m.")
@app_option
@common_options
@click.pass_obj
def update_command(
    settings: Settings,
    run_id: str,
    name: str,
    words: tuple[str, ...],
    whole: str | None,
    message_id: str | None,
    timeout: float | None,
) -> int:
    """Call into an open run, wait until it has answered, and print the answer as JSON.

    The run needs a worker. VALUE: as for `durable signal`. With --app the value is checked against the type of the method that takes it. Of a closed
    run the answer to an earlier call is told, by its --message-id.
    """
    value = parse_value(words, whole, read_stdin=sys.stdin.read)
    text = words[0] if len(words) == 1 and whole is None else None
    call = _update(
        settings, Output(settings), run_id, name, value, text, message_id=message_id, timeout=timeout
    )
    return run_async(call)


async def _update(
    settings: Settings,
    output: Output,
    run_id: str,
    name: str,
    value: Any,
    text: str | None,
    *,
    message_id: str | None,
    timeout: float | None,
) -> int:
    methods = [
        one.definition.updates.get(name)
        for found in _objects(settings, output)
        for one in workflows_in(found)
    ]
    declared: Any = next((method.fn for method in methods if method is not None), name)
    async with database(settings) as client:
        await exact_run_id(client, run_id, "update")
        ask_run = partial(client.update, run_id, declared, id=message_id, timeout=timeout)
        try:
            try:
                answer = await ask_run(value)
            except ArgumentsError:
                if text is None or text == value:
                    raise
                answer = await ask_run(text)
        except (UpdateRejectedError, UpdateFailedError) as error:
            raise Problem(str(error), code=RUN_FAILED) from error
        except TimeoutError:
            raise Problem(
                f"run {quoted(run_id)} has not answered update {quoted(name)} after {timeout:g} s; it stays sent",
                code=TIMED_OUT,
            ) from None
    answer = msgspec.to_builtins(answer, enc_hook=str)
    if output.is_text:
        output.line(json_text(answer))
    else:
        output.json({"run_id": run_id, "update": name, "answer": answer})
    return OK


@click.command("query")
@click.argument("run_id", metavar="ID", shell_complete=complete_run_id)
@click.argument("name", metavar="NAME")
@click.argument("words", metavar="[ARG]...", nargs=-1)
@click.option(
    "--json", "whole", metavar="JSON", help="The arguments as JSON, [..] or {..}; - reads standard input."
)
@app_option
@common_options
@click.pass_obj
def query_command(
    settings: Settings, run_id: str, name: str, words: tuple[str, ...], whole: str | None
) -> int:
    """Ask a run, open or closed, and print its answer as JSON.

    The run is rebuilt here, with the code of --app, by replaying its journal: no worker is needed, no activity runs, nothing is written. ID may be the beginning
    or the end of an id, id@2 for an earlier generation. ARG: as for `durable start`: text, JSON (:=2), or named (item=tea least:=2).
    """
    given = parse_arguments(words, whole, read_stdin=sys.stdin.read)
    return run_async(_query(settings, Output(settings), run_id, name, given))


async def _query(settings: Settings, output: Output, text: str, name: str, given: Given) -> int:
    if settings.app is None:
        raise Problem("a run is asked by its code", hint="say where that is: --app app.py (or DURABLE_APP)")
    workflows = load_target(settings.app, settings).workflows
    async with database(settings) as client:
        run = await find_run(client, text)
        code = [one for one in workflows if (one.name, one.version) == (run.workflow, run.version)]
        if not code:
            raise Problem(
                f"run {quoted(run.run_id)} is of {run.workflow} version {run.version}, which {settings.app} does not have",
                code=NOT_FOUND,
            )
        answer = await _answer(await client.get(f"{run.run_id}@{run.generation}", code[0]), name, given)
    if output.is_text:
        output.line(json_text(answer))
    else:
        output.json({"run_id": run.run_id, "generation": run.generation, "query": name, "answer": answer})
    return OK


async def _answer(run: RunHandle[Any], name: str, given: Given) -> Any:
    try:
        answer = await run.query(name, *given.positional, **given.named)
    except DurableError:
        raise
    except Exception as error:
        raise Problem(
            f"query {quoted(name)} raised {type(error).__name__}: {error}", code=RUN_FAILED
        ) from error
    return msgspec.to_builtins(answer, enc_hook=str)


@click.command("cancel")
@click.argument("run_id", metavar="ID", shell_complete=complete_run_id)
@click.option("--reason", metavar="TEXT", help="Recorded with the run.")
@common_options
@click.pass_obj
def cancel_command(settings: Settings, run_id: str, reason: str | None) -> int:
    """Ask an open run to cancel: CancelledError is raised in it where it waits, and it may clean up."""
    return run_async(_cancel(settings, Output(settings), run_id, reason))


async def _cancel(settings: Settings, output: Output, run_id: str, reason: str | None) -> int:
    async with database(settings) as client:
        await exact_run_id(client, run_id, "cancel")
        await client.cancel(run_id, reason)
        _done(output, {"run_id": run_id, "cancel": "requested"}, f"cancel requested for {run_id}")
    return OK


@click.command("terminate")
@click.argument("run_id", metavar="ID", shell_complete=complete_run_id)
@click.option("--reason", metavar="TEXT", required=True, help="Recorded with the run.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_obj
def terminate_command(settings: Settings, run_id: str, reason: str, yes: bool) -> int:
    """Close an open run at once. No code of it runs any more, so nothing is cleaned up: prefer cancel."""
    return run_async(_terminate(settings, Output(settings), run_id, reason, yes))


async def _terminate(settings: Settings, output: Output, run_id: str, reason: str, yes: bool) -> int:
    async with database(settings) as client:
        await exact_run_id(client, run_id, "terminate")
        if not yes:
            run = await client.describe(run_id)
            ask(
                f"terminate {run.workflow} run {run_id} ({run.status})? No code of it runs any more",
                "terminate",
            )
        await client.terminate(run_id, reason)
        _done(output, {"run_id": run_id, "status": "terminated"}, f"{run_id} terminated")
    return OK


def _done(output: Output, value: dict[str, Any], text: str) -> None:
    if output.is_text:
        output.note(text)
    else:
        output.json(value)
