"""The rooms of the house: who may import whom. Reads syntax trees; imports nothing of what it checks.

A module imports from lower floors, or sideways within its own package; never upward, never in a cycle. Imports under
`TYPE_CHECKING` and inside functions count too, except the ones named in `EXCEPTIONS`.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[2]
LIBRARY: Final = ROOT / "durable"
CLI: Final = ROOT / "cli" / "durable_cli"

# Module or package, without the leading `durable.`, to its floor. A package stands for everything in it.
FLOORS: Final = {
    "errors": 0,
    "limits": 0,
    "seams": 0,
    "unwinding": 0,
    "retry": 0,
    "result": 0,
    "scripts": 0,
    "failures": 0,
    "held_values": 0,
    "payloads": 0,
    "telemetry": 0,
    "definitions": 1,
    "tokens": 1,
    "journal": 1,
    "engine": 2,
    "store": 2,
    "scheduler": 3,
    "outside": 3,
    "messages": 3,
    "workflows": 3,
    "workflow_classes": 3,
    "activities": 3,
    "in_activity": 3,
    "interrupts": 3,
    "in_workflow": 3,
    "sagas": 3,
    "outcomes": 4,
    "declared": 4,
    "querying": 4,
    "holding": 4,
    "connection": 4,
    "reading": 4,
    "starting": 4,
    "finding": 4,
    "describing": 4,
    "reasons": 4,
    "operating": 4,
    "talking": 4,
    "recorded": 4,
    "redelivery": 4,
    "updating": 4,
    "replaying": 4,
    "stacks": 4,
    "run_handle": 4,
    "client": 4,
    "worker": 5,
    "default": 6,
    "": 7,  # durable/__init__.py
    "__main__": 7,
    "testing": 7,
    "pytest_plugin": 8,
    "patterns": 8,  # above the package itself: they use its public names only
}

# (importer, imported) -> why this one may break the rule.
EXCEPTIONS: Final = {
    (
        "outside",
        "default",
    ): "calling a workflow in a plain script must reach the engine; imported at that call",
    ("outside", "run_handle"): "type only: what a start returns",
    ("workflows", "run_handle"): "type only: what a start returns",
    ("run_handle", "client"): "type only: a handle is made by a client and keeps it",
    ("__main__", "durable_cli"): "`python -m durable` is the command line; the one permitted import of it",
}


class Import(NamedTuple):
    """One import statement's target: both names without the leading `durable.`."""

    importer: str
    imported: str
    where: str


def module_name(path: Path) -> str:
    """Return `journal.events` for durable/journal/events.py, `journal` for its `__init__`, "" for the root's."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(LIBRARY.rglob("*.py"))}


def package(module: str) -> str:
    """Return the sub-package a module lies in; "" for the modules directly under durable/."""
    return module.split(".")[0] if (LIBRARY / module.split(".")[0]).is_dir() and module else ""


def floor(module: str) -> int | None:
    return FLOORS.get(module, FLOORS.get(module.split(".")[0]))


def targets(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """Yield what an import statement names, `durable` itself as "", `durable_cli` by its name."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            names.append(full if full.removeprefix("durable.") in known else node.module)
    for name in names:
        if name == "durable":
            yield ""
        elif name.startswith("durable."):
            yield name.removeprefix("durable.")
        elif name.split(".")[0] == "durable_cli":
            yield "durable_cli"


def lazy_targets(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the modules that a lazily importing `__init__` names as text, e.g. "durable.client"."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith("durable.")
            and node.value.replace(".", "").replace("_", "").isalnum()
        ):
            yield node.value.removeprefix("durable."), node.lineno


def library_imports() -> list[Import]:
    known = modules()
    found: list[Import] = []
    for module, path in known.items():
        where = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.ImportFrom) and node.level:
                found.append(Import(module, "<relative>", f"{where}:{node.lineno}"))
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found += [Import(module, target, f"{where}:{node.lineno}") for target in targets(node, known)]
    return found


def complaint(one: Import) -> str | None:
    """Say why an import breaks the rule, or None."""
    importer, imported = one.importer, one.imported
    if (importer, imported) in EXCEPTIONS:
        return None
    arrow = f"{one.where}: {importer or '__init__'} imports {imported or 'durable itself'}"
    if importer == "" and package(imported) == "patterns":
        return None  # type only: at run time its names are resolved at first use
    if package(importer) == "patterns" and imported != "" and package(imported) != "patterns":
        return f"{arrow}: patterns use public names of durable only"
    if imported == "<relative>":
        return f"{one.where}: imports are absolute"
    if imported == "durable_cli":
        return f"{arrow}: only durable/__main__.py may"
    below, above = floor(imported), floor(importer)
    if below is None or above is None:
        return f"{arrow}: not in the table of floors"
    if below > above:
        return f"{arrow}: upward, from floor {above} to floor {below}"
    if below == above and package(imported) not in ("", package(importer)):
        return f"{arrow}: both are on floor {above}, but not in the same package"
    return None


def test_every_module_has_a_floor() -> None:
    """A new room is added to the table on purpose."""
    missing = [str(path.relative_to(ROOT)) for module, path in modules().items() if floor(module) is None]

    assert not missing, "no floor in FLOORS for:\n" + "\n".join(missing)


def test_imports_go_down_or_sideways_within_a_package() -> None:
    """Never upward; `engine` and `store` are on one floor and do not know each other."""
    offenders = [text for one in library_imports() if (text := complaint(one)) is not None]

    assert not offenders, "\n" + "\n".join(offenders)


def test_no_imports_in_a_cycle() -> None:
    """Modules can be read in one order, type-only imports included."""
    graph: dict[str, dict[str, str]] = {}
    for one in library_imports():
        is_lazy = one.importer == "" and package(one.imported) == "patterns"
        if not is_lazy and (one.importer, one.imported) not in EXCEPTIONS and one.importer != one.imported:
            graph.setdefault(one.importer, {})[one.imported] = one.where

    cycles: list[str] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            loop = [*trail[trail.index(module) :], module]
            steps = [f"{graph[a][b]}: {a} -> {b}" for a, b in itertools.pairwise(loop)]
            cycles.append("\n".join(steps))
            return
        if module in done:
            return
        for imported in graph.get(module, ()):
            visit(imported, [*trail, module])
        done.add(module)

    for module in sorted(graph):
        visit(module, [])
    assert not cycles, "\n" + "\n\n".join(cycles)


@pytest.mark.parametrize(("importer", "imported"), EXCEPTIONS)
def test_every_exception_is_still_needed(importer: str, imported: str) -> None:
    """An exception that nothing uses any more is a hole: remove it from the list."""
    assert any((one.importer, one.imported) == (importer, imported) for one in library_imports())


def test_lazy_names_of_the_package_exist() -> None:
    """What `durable/__init__` imports on demand by name are modules of this library."""
    init = LIBRARY / "__init__.py"
    known = modules()
    offenders = [
        f"durable/__init__.py:{line}: {name!r} is no module of durable"
        for name, line in lazy_targets(ast.parse(init.read_text()))
        if name not in known
    ]

    assert not offenders, "\n" + "\n".join(offenders)


def exported_names() -> set[str]:
    """Return what `durable/__init__` binds from its own modules, and `__version__`, read from the syntax tree."""
    names = {"__version__"}
    for node in ast.walk(ast.parse((LIBRARY / "__init__.py").read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module is not None
            and node.module.startswith("durable.")
        ):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def names_of_testing() -> set[str]:
    """Return the public names of `durable.testing`, read from the syntax tree."""
    for node in ast.walk(ast.parse((LIBRARY / "testing" / "__init__.py").read_text())):
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return set(ast.literal_eval(value))
    return set()


def test_the_command_line_uses_public_names_only() -> None:
    """The command line is the first user of the public API, which proves that it suffices."""
    public = exported_names()
    offenders: list[str] = []
    for path in sorted(CLI.rglob("*.py")):
        where = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.Import):
                offenders += [
                    f"{where}:{line}: import {alias.name}"
                    for alias in node.names
                    if alias.name.startswith("durable.")
                ]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                if node.module == "durable.testing":
                    offenders += [
                        f"{where}:{line}: durable.testing.{alias.name} is not exported"
                        for alias in node.names
                        if alias.name not in names_of_testing()
                    ]
                elif node.module.startswith("durable."):
                    offenders.append(f"{where}:{line}: from {node.module} import …")
                elif node.module == "durable":
                    offenders += [
                        f"{where}:{line}: durable.{alias.name} is not exported"
                        for alias in node.names
                        if alias.name not in public
                    ]
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "durable"
                and node.attr not in public
                and not node.attr.startswith("__")
            ):
                offenders.append(f"{where}:{line}: durable.{node.attr} is not exported")

    assert not offenders, "\n" + "\n".join(offenders)
