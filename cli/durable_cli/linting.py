"""What a workflow's source does that a replay answers differently, found by reading its syntax tree. Runs nothing of it.

Names are looked up in the imported module, so that `from time import time as t` is found and a `time` of the author's own is not.
Functions of the author's that a workflow calls are read, too; activities are not. What is reached through objects is not seen, nor
what libraries do: replay finds that (`durable check --against`).
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import linecache
import os
import random
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

import durable
from durable import Activity, Workflow
from durable_cli.lint_rules import METHODS, MUTATORS, SET_METHODS, found_in

IGNORE: Final = "durable: ignore"
_OURS: Final = os.path.dirname(os.path.abspath(durable.__file__)) + os.sep
_LIBRARIES: Final = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {_OURS}
)


class Fault(NamedTuple):
    """One place that is wrong."""

    path: str
    line: int
    column: int  # from 1
    rule: str
    text: str
    workflow: str


class _Known(NamedTuple):
    """What a name stands for: as text, and the object, if there is one at hand."""

    name: str
    value: Any


def lint(workflow: Workflow[Any, Any]) -> list[Fault]:
    """Return what is wrong with one workflow, in order of place."""
    found: dict[tuple[str, int, int, str], Fault] = {}
    seen: set[Any] = set()
    parts = workflow.definition.parts
    todo: list[tuple[Any, str]] = [(inspect.unwrap(part), "") for part in parts]
    while todo:
        fn, caller = todo.pop()
        code = getattr(fn, "__code__", None)
        if code is None or code in seen or code.co_filename.startswith(_LIBRARIES):
            continue
        seen.add(code)
        node = _tree_of(fn)
        if node is None:
            continue
        reader = _Reader(fn, node)
        for line, column, rule, text in reader.faults():
            place = f"in workflow {workflow.name!r}"
            if caller:
                place = f"in {fn.__qualname__}(), which workflow {workflow.name!r} calls"
            fault = Fault(code.co_filename, line, column, rule, text.replace("{place}", place), workflow.name)
            found.setdefault((fault.path, line, column, rule), fault)
        todo.extend((called, fn.__qualname__) for called in reader.called)
    return sorted(found.values())


@functools.lru_cache(maxsize=256)
def _module_tree(path: str) -> ast.Module | None:
    try:
        return ast.parse(Path(path).read_bytes(), path)
    except (OSError, SyntaxError, ValueError):
        return None


def _tree_of(fn: FunctionType) -> ast.AST | None:
    """Return the node of a function in its file; None: there is no source."""
    code = fn.__code__
    tree = _module_tree(code.co_filename)
    for node in ast.walk(tree) if tree is not None else ():
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == code.co_name:
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                if first == code.co_firstlineno:
                    return node
    return None


class _Reader:
    """One function's source. `called` are the author's functions that it calls."""

    def __init__(self, fn: FunctionType, node: ast.AST) -> None:
        self.called: list[FunctionType] = []
        self._path = fn.__code__.co_filename
        self._node = node
        self._names: Mapping[str, Any] = {
            **vars(builtins),
            **fn.__globals__,
            **{
                name: cell.cell_contents
                for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False)
                if _is_filled(cell)
            },
        }
        self._local = _assigned(node)
        self._imported = _imported(node)
        self._sets = _sets_in(node, self)
        self._guarded_off = _unguarded_lines(node, self)

    def faults(self) -> Iterator[tuple[int, int, str, str]]:
        for node in _walk(self._node):
            for rule, text in self._judge(node):
                place = node.iter if isinstance(node, ast.comprehension) else node
                line, column = getattr(place, "lineno", 1), getattr(place, "col_offset", 0) + 1
                source = linecache.getline(self._path, line)
                if line not in self._guarded_off and IGNORE not in source:
                    yield line, column, rule, text

    # ─ names ──

    def resolve(self, node: ast.AST) -> _Known | None:
        """Return what an expression of names and dots stands for, as far as modules and classes lead."""
        match node:
            case ast.Name():
                if node.id in self._imported:
                    return _Known(self._imported[node.id], None)
                if node.id in self._local or node.id not in self._names:
                    return None
                value = self._names[node.id]
                return _Known(_name_of(value), value)
            case ast.Attribute():
                base = self.resolve(node.value)
                if base is None or not base.name:
                    return None
                if isinstance(base.value, ModuleType | type):
                    value = inspect.getattr_static(base.value, node.attr, None)
                    value = getattr(value, "__func__", value)
                    own = _name_of(value) if isinstance(base.value, ModuleType) else ""
                    return _Known(own or f"{base.name}.{node.attr}", value)
                return _Known(f"{base.name}.{node.attr}", None) if base.value is None else None
        return None

    # ─ rules ──

    def _judge(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        match node:
            case ast.Call():
                yield from self._judge_call(node)
            case ast.For() | ast.AsyncFor() | ast.comprehension() if self.is_set(node.iter):
                yield (
                    "set-order",
                    "iterating over a set {place}: its order differs between processes; use sorted(...), a list or a dict",
                )
            case ast.Expr(value=ast.Call() as call) if self._is_coroutine(call):
                yield "not-awaited", f"{_text(call.func)}(...) {{place}} is not awaited: nothing happens"
            case ast.ExceptHandler() if self._swallows_all(node):
                caught = "except:" if node.type is None else f"except {_text(node.type)}:"
                yield (
                    "swallowed",
                    f"`{caught}` {{place}} swallows cancellation, too; catch Exception, or raise again",
                )
            case ast.Global():
                names = ", ".join(node.names)
                yield (
                    "global-state",
                    f"`global {names}` {{place}}: other runs, replays and processes see another value; keep it in local variables",
                )
            case ast.Assign() | ast.AugAssign() | ast.Delete():
                yield from self._judge_assignment(node)
            case ast.Attribute() | ast.Name() if (known := self.resolve(node)) is not None:
                if known.name == "os.environ":
                    yield (
                        "environment",
                        "os.environ {place}: it belongs to the process; read it in an @activity or pass it in",
                    )

    def _judge_call(self, node: ast.Call) -> Iterator[tuple[str, str]]:
        known = self.resolve(node.func)
        if known is not None:
            if (found := found_in(known.name, has_arguments=bool(node.args or node.keywords))) is not None:
                rule, instead = found
                yield rule, f"{_text(node.func)}() {{place}}: {instead}"
                return
            value = known.value
            if isinstance(value, FunctionType):
                self.called.append(inspect.unwrap(value))
            if known.name in (
                "builtins.list",
                "builtins.tuple",
                "builtins.enumerate",
                "builtins.iter",
            ) and any(map(self.is_set, node.args)):
                yield (
                    "set-order",
                    f"{_text(node.func)}() of a set {{place}}: its order differs between processes; use sorted(...)",
                )
            return
        if isinstance(node.func, ast.Attribute):
            attr = node.func.attr
            if attr in METHODS:
                rule, instead = METHODS[attr]
                yield rule, f".{attr}() {{place}}: {instead}"
            elif attr == "pop" and not node.args and self.is_set(node.func.value):
                yield (
                    "set-order",
                    "pop() of a set {place}: which one it takes differs between processes; use a list",
                )
            elif attr in MUTATORS and self._is_global_collection(node.func.value):
                yield self._changed_global(node.func.value)

    def _judge_assignment(self, node: ast.Assign | ast.AugAssign | ast.Delete) -> Iterator[tuple[str, str]]:
        targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
        for target in targets:
            if isinstance(target, ast.Subscript) and self._is_global_collection(target.value):
                yield self._changed_global(target.value)

    def _changed_global(self, node: ast.expr) -> tuple[str, str]:
        return (
            "global-state",
            f"{_text(node)} is changed {{place}}: other runs, replays and processes see another value; keep it in local variables",
        )

    def _is_global_collection(self, node: ast.expr) -> bool:
        known = self.resolve(node)
        return known is not None and isinstance(known.value, list | dict | set | bytearray)

    def is_set(self, node: ast.AST) -> bool:
        """Whether an expression is a set, as far as the source tells."""
        match node:
            case ast.Set() | ast.SetComp():
                return True
            case ast.Name():
                if node.id in self._local:
                    return node.id in self._sets
                return isinstance(self._names.get(node.id), set | frozenset)
            case ast.Call():
                known = self.resolve(node.func)
                if known is not None:
                    return known.name in ("builtins.set", "builtins.frozenset")
                is_method = isinstance(node.func, ast.Attribute) and node.func.attr in SET_METHODS
                return is_method and self.is_set(node.func.value)  # type: ignore[attr-defined]  # it is one
            case ast.BinOp(op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor()):
                return self.is_set(node.left) or self.is_set(node.right)
        return False

    def _is_coroutine(self, call: ast.Call) -> bool:
        known = self.resolve(call.func)
        if known is None:
            return False
        value = known.value
        return (
            isinstance(value, Activity | Workflow)
            or inspect.iscoroutinefunction(value)
            or known.name in ("asyncio.sleep", "asyncio.tasks.sleep")
        )

    def _swallows_all(self, node: ast.ExceptHandler) -> bool:
        caught = [node.type]
        if isinstance(node.type, ast.Tuple):
            caught = list(node.type.elts)
        known = [None if one is None else self.resolve(one) for one in caught]
        is_broad = node.type is None or any(
            one is not None and one.name == "builtins.BaseException" for one in known
        )
        return is_broad and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _walk(root: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function's body; of functions inside those that are not decorated, which are called by it."""
    todo: list[ast.AST] = list(getattr(root, "body", []))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.decorator_list:
            continue
        yield node
        if isinstance(node, ast.AnnAssign):
            todo.extend(one for one in (node.target, node.value) if one is not None)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo.extend(node.body)
        else:
            todo.extend(ast.iter_child_nodes(node))


def _assigned(root: ast.AST) -> set[str]:
    """Return the names that a function binds itself: they hide those of its module."""
    names: set[str] = set()
    outer: set[str] = set()
    for node in ast.walk(root):
        match node:
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.arg():
                names.add(node.arg)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if node is not root:
                names.add(node.name)
            case ast.ExceptHandler(name=str(name)):
                names.add(name)
            case ast.Global() | ast.Nonlocal():
                outer.update(node.names)
    return names - outer


def _imported(root: ast.AST) -> dict[str, str]:
    """Return what imports within the function bind."""
    names: dict[str, str] = {}
    for node in ast.walk(root):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.split(".")[0]
                names[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _sets_in(root: ast.AST, reader: _Reader) -> set[str]:
    """Return the local variables that only ever hold sets."""
    are: dict[str, bool] = {}
    reader._sets = set()
    for node in ast.walk(root):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                are[name] = are.get(name, True) and reader.is_set(value)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=hint):
                are[name] = _text(hint).split("[")[0].rpartition(".")[2].lower() in _SET_HINTS
            case ast.arg(arg=name, annotation=ast.expr() as hint):
                are[name] = _text(hint).split("[")[0].rpartition(".")[2].lower() in _SET_HINTS
        reader._sets = {one for one, is_set in are.items() if is_set}
    return reader._sets


_SET_HINTS: Final = ("set", "frozenset", "abstractset", "mutableset")


def _unguarded_lines(root: ast.AST, reader: _Reader) -> set[int]:
    """Return the lines within `with durable.unguarded():`."""
    lines: set[int] = set()
    for node in ast.walk(root):
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                known = reader.resolve(call.func) if isinstance(call, ast.Call) else None
                if known is not None and known.value is durable.unguarded:
                    lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def _name_of(value: Any) -> str:
    """Return a dotted name for a module, class or function; "" for anything else."""
    if isinstance(value, ModuleType):
        return value.__name__
    if value is os.environ:
        return "os.environ"
    owner = getattr(value, "__self__", None)
    if isinstance(value, MethodType | BuiltinFunctionType) and isinstance(owner, random.Random):
        return f"random.{value.__name__}"
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return f"{value.__module__ or 'builtins'}.{value.__qualname__}"
    if isinstance(value, Callable):  # type: ignore[arg-type]  # a protocol of one method
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if isinstance(module, str) and isinstance(name, str):
            return f"{module}.{name}"
    return ""


def _text(node: ast.AST) -> str:
    return ast.unparse(node)
