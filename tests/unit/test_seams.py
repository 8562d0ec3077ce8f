"""Time, chance, threads, tasks, databases: behind their doors. Reads syntax trees; imports nothing of what it checks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
LIBRARY: Final = ROOT / "durable"
CLI: Final = ROOT / "cli" / "durable_cli"

SEAMS: Final = "durable/seams.py"
VIRTUAL_LOOP: Final = "durable/testing/virtual.py"  # an event loop: it has that method

# What only seams.py may name. A name stands for everything below it: `random` for `random.choice` too.
BEHIND_SEAMS: Final = (
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "time.perf_counter",
    "time.perf_counter_ns",
    "time.sleep",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
    "uuid.uuid1",
    "uuid.uuid4",
    "random",
    "secrets",
    "os.urandom",
    "threading",
    "_thread",
    "concurrent.futures",
    "asyncio.create_task",
    "asyncio.ensure_future",
    "asyncio.to_thread",
)

DATABASES: Final = ("sqlite3", "asyncpg")
NEVER: Final = ("pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "eval", "exec")

# (file, name) -> why it may be named there.
ALLOWED: Final = {
    (
        "durable/engine/runtime.py",
        "random.Random",
    ): "the type of a run's own source, which seams.seeded makes",
    (
        "durable/engine/course.py",
        "random.Random",
    ): "the type of a run's own source, which seams.seeded makes",
    (
        "durable/engine/asking.py",
        "random.Random",
    ): "the type of a run's own source, which seams.seeded makes",
    (
        "durable/engine/awaiting.py",
        "asyncio.ensure_future",
    ): "starts tasks on the run's own deterministic loop",
    (
        "durable/store/sqlite/write_lock.py",
        "threading.Event",
    ): "what a waiting writer pauses on; starts no thread",
    (
        "durable/interrupts.py",
        "threading.RLock",
    ): "guards what two threads share; starts no thread",
    (
        "durable/worker/watchdog.py",
        "threading.Lock",
    ): "guards what two threads share; starts no thread",
    (
        "durable/store/sqlite/checkpointer.py",
        "threading.Event",
    ): "how its thread, from the seams, is told to end",
    (
        "durable/store/sqlite/checkpointer.py",
        "threading.Thread",
    ): "the type of what seams.start_thread returns",
    (
        "durable/store/sqlite/heartbeat.py",
        "threading.Lock",
    ): "guards what two threads share; starts no thread",
    (
        "durable/store/postgres/heartbeat.py",
        "threading.Lock",
    ): "guards the making of its thread, which the seams start",
    (
        "durable/store/postgres/heartbeat.py",
        "threading.Thread",
    ): "the type of what seams.start_thread returns",
    ("durable/store/migrations.py", "sqlite3.complete_statement"): "used as a tokenizer; opens no database",
}

# Files that import inside functions -> why.
LATE_IMPORTS: Final = {
    "durable/store/opening.py": "a database package is imported only when its URL is opened",
    "durable/outside.py": "the one upward door: the default engine, at the call of a workflow in a plain script",
    "durable/__main__.py": "the command line, which the library does not need",
    "durable/payloads/encryption.py": "cryptography, an extra: needed by whoever encrypts",
    "durable/engine/anyio_scopes.py": "anyio's asyncio backend, which `import durable` must not import",
    "durable/seams.py": "ctypes, which only code that is stuck needs",
    "durable/pytest_plugin.py": "durable.testing, in a session of tests that uses it",
    "durable/engine/awaiting.py": "anyio, which `import durable` must not import",
}

# (file, beginning of the statement) -> why it is put together.
PUT_TOGETHER: Final = {
    (
        "durable/store/sqlite/schema.py",
        "PRAGMA application_id = ",
    ): "a pragma takes no parameters; our own integer",
}


def sources(*roots: Path) -> Iterator[tuple[str, ast.Module]]:
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(), str(path))


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Map each local name that an import binds to what it stands for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def uses(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield (dotted name, line) for all that is imported, and for all that is reached through an import."""
    known = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if "." in alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Attribute | ast.Name) and (name := dotted(node, known)):
            yield name, node.lineno


def dotted(node: ast.expr, known: dict[str, str]) -> str | None:
    """Return `time.monotonic` for whatever spelling of it, None for what did not come from an import."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id if node.id in NEVER else None)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, known)
        return None if base is None else f"{base}.{node.attr}"
    return None


def is_within(name: str, forbidden: str) -> bool:
    return name == forbidden or name.startswith(forbidden + ".")


def offenders(trees: Iterator[tuple[str, ast.Module]], forbidden: tuple[str, ...]) -> list[str]:
    found = {
        (where, line, name)
        for where, tree in trees
        for name, line in uses(tree)
        if any(is_within(name, one) for one in forbidden) and not is_allowed(where, name)
    }
    return [f"{where}:{line}: {name}" for where, line, name in sorted(found)]


def is_allowed(where: str, name: str) -> bool:
    """Whether `name`, or the module on the way to an allowed name, may stand in that file."""
    return any(
        where == file and (is_within(name, allowed) or name == allowed.rpartition(".")[0])
        for file, allowed in ALLOWED
    )


def test_time_chance_threads_and_tasks_come_through_the_seams() -> None:
    """So that a whole cluster can run in one thread under one seed, and tests own the clock."""
    trees = ((where, tree) for where, tree in sources(LIBRARY) if where != SEAMS)
    found = offenders(trees, BEHIND_SEAMS)

    assert not found, "use durable.seams instead:\n" + "\n".join(found)


def test_tasks_are_started_by_the_seams_and_the_engine_only() -> None:
    """Elsewhere a task group or `seams.spawn` owns every task."""
    found = [
        f"{where}:{node.lineno}: .{node.func.attr}()"
        for where, tree in sources(LIBRARY)
        if where not in (SEAMS, VIRTUAL_LOOP) and not where.startswith("durable/engine/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            node.func.attr in ("run_in_executor", "ensure_future")
            or (node.func.attr == "create_task" and not is_task_group(node.func.value))
        )
    ]

    assert not found, "use durable.seams.spawn or a task group instead:\n" + "\n".join(found)


def is_task_group(owner: ast.expr) -> bool:
    """Whether `owner.create_task` goes to something called a group."""
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return name.strip("_").endswith(("group", "tasks"))


def test_databases_are_opened_by_the_stores_only() -> None:
    """Nobody above the store's contract sees SQL, connections or drivers."""
    trees = (
        (where, tree)
        for where, tree in sources(LIBRARY, CLI)
        if not where.startswith(("durable/store/sqlite/", "durable/store/postgres/"))
    )
    found = offenders(trees, DATABASES)

    assert not found, "only durable/store/<database>/ may:\n" + "\n".join(found)


def test_nothing_stored_is_ever_executed() -> None:
    """No pickle, no eval: whoever can write to the database must not thereby run code."""
    found = offenders(sources(LIBRARY, CLI), NEVER)

    assert not found, "\n" + "\n".join(found)


def test_statements_are_never_put_together_from_values() -> None:
    """What is handed to execute() is a named statement or a literal: no f-string, no `%`, no `+`, no format()."""
    found = [
        f"{where}:{node.lineno}: {ast.unparse(node)[:80]}"
        for where, tree in sources(LIBRARY / "store")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.startswith("execute")
        and node.args
        and is_put_together(node.args[0])
        and not any(
            where == file and ast.unparse(node.args[0])[2:].startswith(beginning)
            for file, beginning in PUT_TOGETHER
        )
    ]

    assert not found, "\n" + "\n".join(found)


def is_put_together(sql: ast.expr) -> bool:
    if isinstance(sql, ast.JoinedStr):
        return True
    if isinstance(sql, ast.BinOp):
        return isinstance(sql.op, ast.Add | ast.Mod)
    return (
        isinstance(sql, ast.Call)
        and isinstance(sql.func, ast.Attribute)
        and sql.func.attr in ("format", "join")
    )


def late_imports(where: str, tree: ast.Module) -> list[str]:
    return sorted(
        {
            f"{where}:{inner.lineno}: {ast.unparse(inner)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(node)
            if isinstance(inner, ast.Import | ast.ImportFrom)
        }
    )


def test_imports_stand_at_the_top() -> None:
    """None inside functions, except where the named reason says so."""
    found = [
        line
        for where, tree in sources(LIBRARY)
        if where not in LATE_IMPORTS
        for line in late_imports(where, tree)
    ]

    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("where", LATE_IMPORTS)
def test_every_late_importer_still_is_one(where: str) -> None:
    """An exception that nothing uses any more is a hole: remove it from the list."""
    assert late_imports(where, ast.parse((ROOT / where).read_text()))


@pytest.mark.parametrize(("where", "name"), ALLOWED)
def test_every_allowed_name_is_still_used(where: str, name: str) -> None:
    """The same for the names that are allowed in one file."""
    tree = ast.parse((ROOT / where).read_text())

    assert any(is_within(used, name) for used, _ in uses(tree))


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import time\ntime.time()", "time.time"),
        ("import time as t\nt.sleep(1)", "time.sleep"),
        ("from time import monotonic", "time.monotonic"),
        ("from datetime import datetime\ndatetime.now()", "datetime.datetime.now"),
        ("import datetime\ndatetime.datetime.utcnow()", "datetime.datetime.utcnow"),
        ("import random\nrandom.random()", "random.random"),
        ("import concurrent.futures", "concurrent.futures"),
        ("from concurrent.futures import ThreadPoolExecutor", "concurrent.futures.ThreadPoolExecutor"),
        ("import asyncio\nasyncio.create_task(f())", "asyncio.create_task"),
        ("eval('1')", "eval"),
    ],
)
def test_the_check_itself_sees_every_spelling(code: str, name: str) -> None:
    """A rule test that finds nothing must not be blind."""
    forbidden = BEHIND_SEAMS + NEVER

    found = [one for one, _ in uses(ast.parse(code)) if any(is_within(one, bad) for bad in forbidden)]

    assert name in found


def test_the_check_itself_leaves_the_seams_names_alone() -> None:
    """`seams.uuid4` is the door; a local function called `random` is no module."""
    code = "from durable import seams\nseams.uuid4()\ndef random(): ...\nrandom()\nself.time.sleep()"

    found = [one for one, _ in uses(ast.parse(code)) if any(is_within(one, bad) for bad in BEHIND_SEAMS)]

    assert found == []
