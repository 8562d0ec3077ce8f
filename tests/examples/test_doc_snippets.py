"""Every python block of the documentation, also those that are no whole program: it compiles, and the library has what it names.

Names are followed from where they come: `from durable import ...`, `durable.x`, and, in a block without imports, those that are public names
of durable; what pages call `client` or `handle` is one. Of what is called, the keyword arguments must exist. Nothing is executed.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final, NamedTuple

import pytest

import durable
from durable import Client, RunHandle
from tests.examples.test_docs import BLOCK, PAGES, ROOT

OURS: Final = ("durable", "durable_cli")
MISSING: Final = object()
CALLED: Final = {"client": Client, "handle": RunHandle, "run": RunHandle}  # what pages call objects of ours


class Block(NamedTuple):
    """A block, and the line of the page before its first."""

    page: str
    line: int
    source: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            if found[1] == "python":
                yield Block(str(page.relative_to(ROOT)), text.count("\n", 0, found.start()) + 1, found[2])


BLOCKS: Final = [pytest.param(block, id=f"{block.page}-{block.line}") for block in blocks()]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_compiles_and_names_what_is_there(block: Block) -> None:
    """What somebody copies from a page is python, and of this version of the library."""
    tree = parsed(block)
    assert wrong(tree) == []


def parsed(block: Block) -> ast.Module:
    """Return the syntax tree of a block, which may await at its top."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    compile(block.source, f"{block.page}, from line {block.line}", "exec", flags=flags, dont_inherit=True)
    return ast.parse(block.source)


def wrong(tree: ast.Module) -> list[str]:
    """Return what a block says of the library that is not so, each with its line."""
    known, complaints = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            complaints += [f"line {node.lineno}: {text}" for text in wrong_call(node, known)]
        elif isinstance(node, ast.Attribute) and found(node, known) is MISSING:
            complaints.append(f"line {node.lineno}: no {ast.unparse(node)}")
    return complaints


def imported(tree: ast.Module) -> tuple[dict[str, Any], list[str]]:
    """Return what the names of a block stand for, as far as they come from us, and the imports of ours that would fail."""
    bound = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    defined = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    bound |= defined
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    known: dict[str, Any] = {}
    if not statements:
        known = {name: getattr(durable, name) for name in durable.__all__ if not hasattr(builtins, name)}
        known["durable"] = durable
    complaints = []
    for statement in statements:
        for name, value in bindings(statement):
            if value is MISSING:
                complaints.append(f"line {statement.lineno}: nothing to import as {name}")
            else:
                known[name] = value
    is_ours = bool(known)
    known = {name: value for name, value in known.items() if name not in bound}
    if is_ours:
        known |= {name: value for name, value in CALLED.items() if name not in defined}
    return known, complaints


def bindings(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Any]]:
    """Yield what an import of ours binds."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if alias.name.partition(".")[0] in OURS:
                module = importlib.import_module(alias.name)
                yield (alias.asname, module) if alias.asname else ("durable", durable)
    elif statement.module is not None and statement.module.partition(".")[0] in OURS:
        module = importlib.import_module(statement.module)
        for alias in statement.names:
            yield alias.asname or alias.name, member(module, alias.name)


def member(module: ModuleType, name: str) -> Any:
    """Return what a module has, its submodules included."""
    if not hasattr(module, name) and importlib.util.find_spec(f"{module.__name__}.{name}") is not None:
        return importlib.import_module(f"{module.__name__}.{name}")
    return getattr(module, name, MISSING)


def found(node: ast.expr, known: dict[str, Any]) -> Any:
    """Return what an expression stands for: None if that cannot be told, `MISSING` if we do not have it."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = found(node.value, known)
    if owner is None or owner is MISSING:
        return None  # it was complained of where it was met
    if not (inspect.ismodule(owner) or inspect.isclass(owner)):
        return getattr(owner, node.attr, None)
    return getattr(owner, node.attr, MISSING)


def wrong_call(call: ast.Call, known: dict[str, Any]) -> Iterator[str]:
    target = found(call.func, known)
    if target is None or target is MISSING:
        return
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return
    for keyword in call.keywords:
        if keyword.arg is not None and keyword.arg not in parameters:
            yield f"{ast.unparse(call.func)} takes no {keyword.arg}="


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("from durable import workflwo", "nothing to import as workflwo"),
        ("import durable\ndurable.nothing_of_the_kind()", "no durable.nothing_of_the_kind"),
        ("@activity(timeot=3)\nasync def f(): ...", "activity takes no timeot="),
        ("await client.starts(order)", "no client.starts"),
        ("from durable import Retry\nRetry(attempts=3)", "Retry takes no attempts="),
    ],
)
def test_what_is_not_there_is_complained_of(source: str, complaint: str) -> None:
    """The check is worth something."""
    assert [text.partition(": ")[2] for text in wrong(ast.parse(source))] == [complaint]
