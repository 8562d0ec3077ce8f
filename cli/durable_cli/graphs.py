"""Drawing graphs: `durable graph TARGET [RUN]`. Finds the graph in users' code and the run in the database; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import click

from durable import GraphView, NodeView, Run, RunNotFoundError, WorkflowEngine, WorkflowGraph
from durable_cli.completing import complete_run_id
from durable_cli.durations import duration_text
from durable_cli.finding import database, find_run, run_async
from durable_cli.options import Settings, app_option, common_options
from durable_cli.output import COLOURS, Output, builtins, columns, cut, escaped, glyph, now
from durable_cli.problems import NOT_FOUND, OK, Problem, did_you_mean, quoted
from durable_cli.targets import looks_like_a_target, named_in


@click.command("graph")
@click.argument("target", metavar="TARGET")
@click.argument("run_id", metavar="[RUN]", required=False, shell_complete=complete_run_id)
@click.option(
    "--format",
    "language",
    type=click.Choice(["text", "mermaid", "dot", "svg"]),
    default="text",
    show_default=True,
    help="A table, or a picture: for mermaid, for Graphviz, or for a browser.",
)
@app_option
@common_options
@click.pass_obj
def graph_command(settings: Settings, target: str, run_id: str | None, language: str) -> int:
    """Draw a graph; with RUN, what that run has done of it.

    TARGET is module:attr, a file, or a graph's name within the app; there a run's id alone will do.
    """
    return run_async(_graph(settings, Output(settings), target, run_id, language))


async def _graph(settings: Settings, output: Output, target: str, run_id: str | None, language: str) -> int:
    engine, run = await _find(settings, target, run_id)
    view = engine.view(run)
    if not output.is_text:
        output.json(builtins(view))
    elif language == "mermaid":
        output.line(view.mermaid().rstrip("\n"))
    elif language == "dot":
        output.line(view.dot().rstrip("\n"))
    elif language == "svg":
        output.line(view.svg().rstrip("\n"))
    elif output.is_rich:
        for line in _picture(view, output, now()):
            output.line(line)
    else:
        for row in _rows(view, now()):
            output.row(row)
    return OK


# ─ finding ──


async def _find(settings: Settings, target: str, run_id: str | None) -> tuple[WorkflowEngine, Run | None]:
    """Return the graph that is meant, and the run, if one is."""
    if looks_like_a_target(target):
        return _one_of(_engines(target, settings), target), await _run(settings, run_id)
    if settings.app is None:
        raise Problem(
            f"do not know where graph {quoted(target)} is",
            hint=f"give module:{target}, or --app module (or DURABLE_APP, or app in [tool.durable] of pyproject.toml)",
        )
    engines = _engines(settings.app, settings)
    named = [engine for engine in engines if engine.name == target]
    if named or run_id is not None:
        return _named(engines, target, settings.app), await _run(settings, run_id)
    try:
        run = await _run(settings, target)
    except (Problem, RunNotFoundError):
        return _named(engines, target, settings.app), None
    assert run is not None
    return _named(engines, run.workflow, settings.app), run


async def _run(settings: Settings, run_id: str | None) -> Run | None:
    if run_id is None:
        return None
    async with database(settings) as client:
        return await find_run(client, run_id)


def _engines(target: str, settings: Settings) -> list[WorkflowEngine]:
    """Return the engines that a target names, and one for each graph that has none among them."""
    values = named_in(target, settings)
    engines = {id(one.graph): one for one in values if isinstance(one, WorkflowEngine)}
    for value in values:
        if isinstance(value, WorkflowGraph) and id(value) not in engines:
            engines[id(value)] = WorkflowEngine(value)
    return list(engines.values())


def _one_of(engines: Sequence[WorkflowEngine], target: str) -> WorkflowEngine:
    if not engines:
        raise Problem(f"{target} has no graph", hint="make one with WorkflowBuilder().build()")
    if len(engines) > 1:
        names = ", ".join(engine.name for engine in engines)
        raise Problem(f"{target} has {len(engines)} graphs: {names}", hint=f"say which: {target}:VARIABLE")
    return engines[0]


def _named(engines: Sequence[WorkflowEngine], name: str, app: str) -> WorkflowEngine:
    found = [engine for engine in engines if engine.name == name]
    if not found:
        known = sorted({engine.name for engine in engines})
        raise Problem(
            f"no graph {quoted(name)} in {app}, and no run of this id",
            code=NOT_FOUND,
            hint=did_you_mean(name, known, otherwise=f"known: {', '.join(known) or 'none'}"),
        )
    return max(found, key=lambda engine: engine.version)


# ─ as text ──


def _rows(view: GraphView, at: datetime) -> Iterator[Sequence[str]]:
    """Yield `node` rows: status, path, kind, runs, took, what follows, and what is asked or went wrong."""
    yield "graph", escaped(view.name), f"version {view.version}", view.run_id, view.status
    for node in view.nodes:
        yield (
            "node",
            node.status,
            escaped(node.path),
            node.kind,
            str(node.runs or ""),
            _took(node, at),
            _followers(view, node.path),
            _remark(node),
        )


def _picture(view: GraphView, output: Output, at: datetime) -> Iterator[str]:
    terminal = output.out
    about = f"version {view.version}"
    if view.run_id:
        about += f"   run {view.run_id}  {glyph(view.status)} {view.status}"
    yield f"{terminal.paint(escaped(view.name), bold=True)}   {about}"
    yield ""
    rows = [["NODE", "KIND", "TOOK", "THEN", ""]]
    for node in view.nodes:
        depth = node.path.count("/")
        sign = glyph(node.status) if node.status else " "
        times = f" ×{node.runs}" if node.runs > 1 else ""
        name = f"{'  ' * depth}{sign} {escaped(node.path.rpartition('/')[2])}{times}"
        rows.append([name, node.kind, _took(node, at), _followers(view, node.path), _remark(node)])
    for number, cells in enumerate(columns(rows, gap=3)):
        if number == 0:
            yield terminal.paint("".join(cells).rstrip(), dim=True)
            continue
        left = sum(len(cell) for cell in cells[:-1])
        last = cut(cells[-1], max(10, terminal.width - left) if terminal.width else 0)
        cells[0] = terminal.paint(cells[0], COLOURS.get(view.nodes[number - 1].status))
        yield ("".join(cells[:-1]) + last).rstrip()


def _followers(view: GraphView, path: str) -> str:
    """Return `→ ship?, → cancel? ✓`: a question mark where it is a choice, a tick where it was taken."""
    parts = [
        f"→ {escaped(edge.target.rpartition('/')[2])}{'?' if edge.is_conditional else ''}{' ✓' if edge.is_taken else ''}"
        for edge in view.edges
        if edge.source == path and not edge.is_inner
    ]
    return ", ".join(parts)


def _took(node: NodeView, at: datetime) -> str:
    if node.started_at is None:
        return ""
    return duration_text(((node.finished_at or at) - node.started_at).total_seconds())


def _remark(node: NodeView) -> str:
    if node.error is not None:
        tried = f"  ({node.attempts} attempts)" if node.attempts > 1 else ""
        return f"{escaped(node.error)}{tried}"
    return escaped(node.prompt) if node.status == "waiting" else ""
