"""Questions to people: what runs ask, and the answering. `answer` changes a run: it takes an exact run id."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import click

from durable import Ask
from durable_cli.arguments import parse_value
from durable_cli.completing import complete_run_id, complete_workflow
from durable_cli.durations import ago_text
from durable_cli.finding import database, exact_run_id, run_async
from durable_cli.options import Settings, common_options
from durable_cli.output import Output, builtins, columns, count, cut, escaped, iso, now
from durable_cli.problems import OK, shell_word


@click.command("answer")
@click.argument("run_id", metavar="ID", shell_complete=complete_run_id)
@click.argument("words", metavar="[VALUE]", nargs=-1)
@click.option("--json", "whole", metavar="JSON", help="The value as JSON; - reads it from standard input.")
@click.option("--name", metavar="NAME", help="Which question, if the run asks several: its node.")
@common_options
@click.pass_obj
def answer_command(
    settings: Settings, run_id: str, words: tuple[str, ...], whole: str | None, name: str | None
) -> int:
    """Answer what a run asks a person. Returned means stored; each question takes one answer.

    VALUE: nothing (null), text, JSON (true, 3, '{"by": "ann"}'), or named parts (by=ann ok:=true), which make an object.
    Exit code 6 if nothing is asked, or somebody was quicker.
    """
    value = parse_value(words, whole, read_stdin=sys.stdin.read)
    return run_async(_answer(settings, Output(settings), run_id, value, name))


async def _answer(settings: Settings, output: Output, run_id: str, value: Any, name: str | None) -> int:
    async with database(settings) as client:
        await exact_run_id(client, run_id, "answer")
        await client.answer(run_id, value, name=name)
    if output.is_text:
        output.note(f"answered {run_id}")
    else:
        output.json({"run_id": run_id, "answered": True})
    return OK


@click.command("inbox")
@click.option(
    "--workflow",
    metavar="NAME",
    help="Only of this workflow; * stands for anything.",
    shell_complete=complete_workflow,
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Look at so many open runs, the newest.",
)
@common_options
@click.pass_obj
def inbox_command(settings: Settings, workflow: str | None, limit: int) -> int:
    """List what runs ask people: the run, the question, since when, and when it may expire."""
    return run_async(_inbox(settings, Output(settings), workflow, limit))


async def _inbox(settings: Settings, output: Output, workflow: str | None, limit: int) -> int:
    async with database(settings) as client:
        asks = await client.asks(workflow=workflow, limit=limit)
    if output.format == "json":
        output.json({"asks": builtins(asks)})
    elif output.format == "jsonl":
        for ask in asks:
            output.json(builtins(ask))
    elif output.is_rich:
        for line in _picture(asks, output, now()):
            output.line(line)
    else:
        for ask in asks:
            output.row(
                [
                    ask.run_id,
                    ask.workflow,
                    escaped(ask.name),
                    escaped(ask.prompt),
                    iso(ask.since),
                    iso(ask.due_at),
                ]
            )
    if not asks and output.is_text:
        output.note("nobody is asked anything")
    return OK


def _picture(asks: Sequence[Ask], output: Output, at: datetime) -> Iterator[str]:
    if not asks:
        return
    rows = [["RUN", "QUESTION", "SINCE", "EXPIRES", "PROMPT"]]
    rows += [
        [
            ask.run_id,
            escaped(ask.name),
            "" if ask.since is None else ago_text((at - ask.since).total_seconds()),
            iso(ask.due_at),
            escaped(ask.prompt),
        ]
        for ask in asks
    ]
    terminal = output.out
    for number, cells in enumerate(columns(rows)):
        left = sum(len(cell) for cell in cells[:-1])
        line = "".join(cells[:-1]) + cut(cells[-1], max(10, terminal.width - left) if terminal.width else 0)
        yield terminal.paint(line.rstrip(), dim=number == 0)
    several = len({ask.run_id for ask in asks}) < len(asks)
    name = f" --name {shell_word(asks[0].name)}" if several else ""
    yield terminal.paint(
        f"{count(len(asks), 'question')} · next: durable answer {shell_word(asks[0].run_id)} VALUE{name}",
        dim=True,
    )
