"""The filters that list and the bulk commands share. Knows no command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from durable import RunStatus
from durable_cli.completing import complete_workflow
from durable_cli.durations import instant_option

F = TypeVar("F", bound=Callable[..., Any])

_FILTERS = (
    click.option(
        "--status",
        multiple=True,
        type=click.Choice([str(one) for one in RunStatus]),
        help="Repeat it for any of several.",
    ),
    click.option(
        "--workflow",
        metavar="NAME",
        help="The workflow's name; * stands for anything.",
        shell_complete=complete_workflow,
    ),
    click.option("--task-queue", metavar="QUEUE", help="Where the runs wait for workers."),
    click.option("--id", "run_id", metavar="ID", help="The run id; * stands for anything."),
    click.option(
        "--since", type=instant_option, metavar="TIME", help="Created since: 2h (ago), or 2026-11-22 (UTC)."
    ),
    click.option("--until", type=instant_option, metavar="TIME", help="Created until."),
)


def filter_options(command: F) -> F:
    """Add the filters; they arrive as the keyword arguments of `Client.list`, `status` as a tuple."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command
