"""One word per idea: the words this project does not use for its ideas, rejected as parts of identifiers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]

# The word that is not used -> the word that is.
REJECTED: Final = {
    "job": "workflow, run or activity",
    "execution": "run",
    "history": "journal",
    "decision": "command",
    "tick": "turn or activation",
    "topic": "task queue",
    "ping": "heartbeat",
    "ack": "lease or commit",
    "alarm": "timer or schedule",
    "reap": "rescue",
}
FORMS: Final = {
    form: word
    for word in REJECTED
    for form in (
        word,
        word + "s",
        word + "ed",
        word + "er",
        word + "ing",
        word + word[-1] + "ed",
        word + word[-1] + "ing",
    )
} | {"histories": "history"}

# (file, identifier) -> why it may stand.
ALLOWED: Final[dict[tuple[str, str], str]] = {
    ("durable/__init__.py", "GraphExecutionError"): "the documented name",
    ("durable/__init__.py", "NodeExecutionError"): "the documented name",
    ("durable/patterns/graph/errors.py", "GraphExecutionError"): "the documented name",
    ("durable/patterns/graph/errors.py", "NodeExecutionError"): "the documented name",
    ("durable/patterns/state_machine.py", "history"): "StateMachine.history, the documented name",
}


def parts(identifier: str) -> list[str]:
    """Return the words of `snake_case` or `CamelCase`, in lower case."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", identifier)
    return [part for part in spaced.lower().split("_") if part]


def python_identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield what the file itself names: not what it merely uses of other libraries."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Name(ctx=ast.Store()):
                yield node.id, node.lineno
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr, node.lineno
            case ast.alias() if node.asname:
                yield node.asname, node.lineno


def sql_identifiers(text: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(text.splitlines(), 1):
        code = "" if line.lstrip().startswith("--") and "name:" not in line else line.split(" --")[0]
        yield from ((word, number) for word in re.findall(r"[A-Za-z_]\w*", code))


def identifiers() -> Iterator[tuple[str, str, int]]:
    for root in (ROOT / "durable", ROOT / "cli"):
        for path in sorted(root.rglob("*.py")):
            where = str(path.relative_to(ROOT))
            yield where, path.stem, 1
            for name, line in python_identifiers(ast.parse(path.read_text(), str(path))):
                yield where, name, line
        for path in sorted(root.rglob("*.sql")):
            for name, line in sql_identifiers(path.read_text()):
                yield str(path.relative_to(ROOT)), name, line


def test_identifiers_use_the_words_of_the_project() -> None:
    """Two words for one idea make readers look for a difference that is not there."""
    offenders = sorted(
        {
            f"{where}:{line}: {name}: say {REJECTED[FORMS[part]]}, not {FORMS[part]}"
            for where, name, line in identifiers()
            for part in parts(name)
            if part in FORMS and (where, name) not in ALLOWED
        }
    )

    assert not offenders, "\n" + "\n".join(offenders)


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("run_history", ["run", "history"]),
        ("JobQueue", ["job", "queue"]),
        ("HTTPPing", ["http", "ping"]),
        ("_ticks", ["ticks"]),
        ("packed", ["packed"]),
        ("mapping", ["mapping"]),
    ],
)
def test_identifiers_are_taken_apart_at_their_seams(identifier: str, words: list[str]) -> None:
    """`mapping` holds no ping, and `packed` was not acked."""
    assert parts(identifier) == words
