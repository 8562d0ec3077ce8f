"""The entry point: which commands there are, and how any of them ends. Imports click only; a command's module when it is called."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import click

from durable_cli.options import Settings, common_options
from durable_cli.problems import INTERRUPTED, OK, RUN_FAILED, USAGE, Problem, did_you_mean, is_text, quoted

if TYPE_CHECKING:
    from durable_cli.output import Output


class Listed(NamedTuple):
    """A command as `durable --help` lists it, without importing it."""

    module: str
    section: str
    help: str


COMMANDS: Final = MappingProxyType(
    {
        "run": Listed("operate", "Run", "Run a workflow here, with progress, and print its result."),
        "worker": Listed("serving", "Run", "Serve workflows: claim runs and drive them."),
        "start": Listed("operate", "Run", "Store a run for a worker to drive."),
        "list": Listed("see", "See", "List runs, and what they wait for."),
        "count": Listed("see", "See", "Count runs."),
        "show": Listed("see", "See", "Tell the story of one run."),
        "result": Listed("see", "See", "Wait for a run and print its result."),
        "wait": Listed("see", "See", "Wait until runs are closed."),
        "graph": Listed("graphs", "See", "Draw a graph, with the state of a run in it."),
        "why": Listed("health", "See", "Say why a run is not moving."),
        "workers": Listed("health", "See", "List the living workers."),
        "signal": Listed("talk", "Talk", "Send a signal to a run."),
        "update": Listed("talk", "Talk", "Call into a run, and print its answer."),
        "query": Listed("talk", "Talk", "Ask a run, and print its answer."),
        "answer": Listed("people", "Talk", "Answer what a run asks a person."),
        "inbox": Listed("people", "Talk", "List what runs ask people."),
        "cancel": Listed("talk", "Fix", "Ask a run to cancel."),
        "terminate": Listed("talk", "Fix", "Close a run at once."),
        "retry": Listed("retrying", "Fix", "Try a closed run again, or what waits for a retry."),
        "pause": Listed("holding", "Fix", "Hold a run, a task queue or a worker back."),
        "resume": Listed("holding", "Fix", "Let what is paused, or a parked run, go on."),
        "bulk": Listed("bulk", "Fix", "One of these for all runs that fit some filters."),
        "check": Listed("check", "Code", "Look for what a replay would answer differently."),
        "doctor": Listed("health", "Operate", "Look for what is wrong with a database and its workers."),
        "migrate": Listed("care", "Operate", "Bring a database's schema up to date."),
        "backup": Listed("care", "Operate", "Copy a database, under load, into a new file."),
        "prune": Listed("care", "Operate", "Delete runs that were closed long ago."),
        "recover": Listed("operate", "Operate", "Take the runs of dead workers back."),
        "demo": Listed("demo", "Operate", "See a crash survived: durable demo crash."),
        "completion": Listed("completing", "Operate", "Print a shell's completion script."),
        "version": Listed("operate", "Operate", "Print versions."),
    }
)


class Commands(click.Group):
    """The commands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        listed = COMMANDS.get(cmd_name)
        if listed is None:
            return None
        module = importlib.import_module(f"durable_cli.{listed.module}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise Problem(
                f"no command {quoted(args[0])}",
                hint=did_you_mean(args[0], COMMANDS, otherwise="durable --help lists the commands"),
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(listed.section for listed in COMMANDS.values()):
            rows = [(name, listed.help) for name, listed in COMMANDS.items() if listed.section == section]
            with formatter.section(section):
                formatter.write_dl(rows, col_max=12)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 the run failed, 2 usage, 3 not found, 4 database, 5 timed out waiting, "
    "6 conflict, 130 interrupted.",
)
@click.option("--version", is_flag=True, help="Print the version and exit.")
@common_options
@click.pass_context
def commands(context: click.Context, version: bool) -> None:
    """Business processes that survive crashes, deploys and weeks of waiting."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    words = sys.argv[1:] if args is None else args
    if next((word for word in words if word in COMMANDS), None) == "worker":
        _stop_in_order_from_here()
    leave(invoke(args))


def _stop_in_order_from_here() -> None:
    """A worker that is told to stop while it still imports has nothing to hand back: that is an orderly end, too.

    The signal may have been blocked, by the process that this one replaces.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(OK))
    atexit.register(_listen_no_more)  # the first one registered runs last
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _listen_no_more() -> None:
    """From here on the interpreter only clears up, with no handlers any more: a further signal would change how a process ended that has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def invoke(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are told on stderr."""
    words = list(sys.argv[1:] if args is None else args)
    if words == ["--version"]:
        words = ["version"]
    settings = Settings()
    try:
        _check_text(words)
        code = commands.main(words, prog_name="durable", standalone_mode=False, obj=settings)
        return code if isinstance(code, int) else OK
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else OK
    except (click.Abort, KeyboardInterrupt):
        _output(settings).note("interrupted")
        return INTERRUPTED
    except Exception as raised:
        error = _alone(raised)
        if isinstance(error, click.ClickException):
            return _tell(error, settings)
        if settings.shows_tracebacks:
            traceback.print_exc()
        explaining = importlib.import_module("durable_cli.explaining")
        problem: Problem = explaining.explain(error)
        _output(settings).error(problem.message, problem.hint)
        return problem.code


def _check_text(words: Sequence[str]) -> None:
    """Refuse what no database can hold, before anybody trips over it: bytes that are not UTF-8, which Python hands on as
    lone surrogates, and NUL."""
    for number, word in enumerate(words, 1):
        if "\0" in word or not is_text(word):
            raise Problem(f"argument {number}, {quoted(word[:80])}, is not text in UTF-8")


def _alone(error: Exception) -> Exception:
    """Return the one error of a task group; its group says nothing to people."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _tell(error: click.ClickException, settings: Settings) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return USAGE
    if settings.shows_tracebacks:
        traceback.print_exc()
    if isinstance(error, Problem):
        message, hint, code = error.message, error.hint, error.code
    else:
        message = error.format_message().rstrip(".")
        message = message[:1].lower() + message[1:]
        path = getattr(getattr(error, "ctx", None), "command_path", "durable")
        hint, code = f"{path} --help", error.exit_code
        if isinstance(error, click.exceptions.NoSuchOption) and "ARGS" in (
            error.ctx.command.get_usage(error.ctx) if error.ctx else ""
        ):
            hint += "; arguments that begin with - follow after --"
    _output(settings).error(message, hint)
    return code


def _output(settings: Settings) -> Output:
    output: Output = importlib.import_module("durable_cli.output").Output(settings)
    return output


def leave(code: int) -> NoReturn:
    """End the process, even if a thread of a sync activity never returns, or somebody insists meanwhile."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(code))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the reader is gone; the exit code still counts
            code = code or RUN_FAILED
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if any(one is not threading.main_thread() and not one.daemon for one in threading.enumerate()):
        os._exit(code)
    sys.exit(code)
