"""Completion of words for shells: click's own scripts, and the run ids and workflows that a database holds.

A completion must be quick and quiet: it changes nothing, and whatever goes wrong completes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import click
from click.shell_completion import get_completion_class

from durable import Client, connect
from durable_cli.options import Settings, common_options
from durable_cli.output import Output
from durable_cli.problems import OK

SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_DURABLE_COMPLETE"  # click derives it from the program's name
IDS_MAX: Final = 50


@click.command("completion")
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
@common_options
@click.pass_context
def completion_command(context: click.Context, shell: str) -> int:
    """Print the script that completes commands, options, run ids and workflows in bash, zsh or fish.

    \b
    bash:  eval "$(durable completion bash)"            in ~/.bashrc
    zsh:   eval "$(durable completion zsh)"             in ~/.zshrc
    fish:  durable completion fish > ~/.config/fish/completions/durable.fish
    """
    output = Output(context.ensure_object(Settings))
    kind = get_completion_class(shell)
    assert kind is not None, "click completes the shells that it names"
    script = kind(context.find_root().command, {}, "durable", VARIABLE).source()
    if output.is_text:
        output.line(script.rstrip("\n"))
    else:
        output.json({"shell": shell, "script": script})
    return OK


def complete_run_id(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the newest run ids that begin with what was typed."""

    async def ids(client: Client) -> list[str]:
        return [
            one for one in await client.complete_run_id(incomplete, IDS_MAX) if one.startswith(incomplete)
        ]

    return _from_database(context, ids)


def complete_workflow(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the workflows of recent runs and of living workers."""

    async def names(client: Client) -> list[str]:
        return [one for one in await client.workflow_names() if one.startswith(incomplete)]

    return _from_database(context, names)


def _from_database(context: click.Context, look: Callable[[Client], Awaitable[list[str]]]) -> list[str]:
    settings = context.find_object(Settings) or Settings()

    async def answer() -> list[str]:
        client = connect(settings.db, create=False)
        schema = await client.schema()
        if schema.version != schema.newest:
            return []  # opening would migrate the database; a key press must not
        async with client:
            return await look(client)

    try:
        return [one for one in asyncio.run(answer()) if one.isprintable()]
    except Exception:  # no database, a wrong option: whatever it is, the command itself will say so
        return []
