"""From `module:attr` or `path/file.py[:attr]` to the workflows it names. Imports users' code; runs none of it.

A file is imported under the name its package gives it, so that it is the same module to whoever else imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from durable import Activity, Workflow
from durable_cli.options import Settings
from durable_cli.problems import NOT_FOUND, Problem, did_you_mean, quoted

AnyWorkflow = Workflow[Any, Any]
AnyActivity = Activity[..., Any]
SERVES: Final = "__durable_workflows__"  # what patterns have: it says what they run as


class Target(NamedTuple):
    """A target taken apart: a dotted module or a path, and what of it (None: everything)."""

    module: str
    attr: str | None

    @property
    def is_file(self) -> bool:
        return self.module.endswith(".py") or "/" in self.module or os.sep in self.module


class Found(NamedTuple):
    """What a target holds."""

    name: str
    workflows: list[AnyWorkflow]
    functions: tuple[AnyActivity, ...] = ()

    @property
    def activities(self) -> int:
        """How many activities it holds."""
        return len(self.functions)


def parse_target(text: str) -> Target:
    """Return the target's parts; raise a usage error for what cannot be one."""
    module, colon, attr = text.rpartition(":")
    if not colon:
        module, attr = text, ""
    if not module or (colon and not attr) or not text.isprintable():
        raise Problem(
            f"{quoted(text)} is no target",
            hint="write module, module:workflow, path/file.py or path/file.py:workflow",
        )
    return Target(module, attr or None)


def looks_like_a_target(text: str) -> bool:
    """Whether a word names code by itself, rather than a workflow within the app."""
    return ":" in text or text.endswith(".py") or "/" in text


def load_target(text: str, settings: Settings) -> Found:
    """Import a target and return its workflows; with `attr` (or a workflow's name) those alone."""
    target = parse_target(text)
    module = _import(target, settings)
    everything = _workflows_of(vars(module).values())
    if target.attr is None:
        functions = {id(one): one for one in vars(module).values() if isinstance(one, Activity)}
        return Found(target.module, everything, tuple(functions.values()))
    return Found(text, _pick(module, target, everything))


def load_served(text: str, settings: Settings) -> Found:
    """Import a target of a worker, which may also name one activity."""
    if parse_target(text).attr is not None:
        (value,) = named_in(text, settings)
        if isinstance(value, Activity):
            return Found(text, [], (value,))
    return load_target(text, settings)


def one_workflow(text: str, settings: Settings) -> AnyWorkflow:
    """Return the one workflow a target names; raise if it names none or several."""
    found = load_target(text, settings)
    names = sorted({one.name for one in found.workflows})
    if not names:
        raise Problem(f"{found.name} has no workflow", hint="decorate an async function with @workflow")
    if len(names) > 1:
        raise Problem(
            f"{found.name} has {len(names)} workflows: {', '.join(names)}",
            hint=f"say which: {text}:{names[0]}",
        )
    return _newest(found.workflows)


def workflow_named(name: str, settings: Settings) -> AnyWorkflow:
    """Return the workflow of that name within the app, or the one a target names."""
    if looks_like_a_target(name):
        return one_workflow(name, settings)
    app = settings.app
    if app is None:
        raise Problem(
            f"do not know where workflow {quoted(name)} is",
            hint=f"give --app module (or DURABLE_APP, or app in [tool.durable] of pyproject.toml), or module:{name}",
        )
    found = load_target(app, settings)
    of_that_name = [one for one in found.workflows if one.name == name]
    if not of_that_name:
        known = sorted({one.name for one in found.workflows})
        raise Problem(
            f"no workflow {quoted(name)} in {app}",
            code=NOT_FOUND,
            hint=did_you_mean(name, known, otherwise=f"known: {', '.join(known) or 'none'}"),
        )
    return _newest(of_that_name)


def objects_of(text: str, settings: Settings) -> list[Any]:
    """Return everything a target's module holds: signals, too, which are not registered anywhere."""
    return list(vars(_import(parse_target(text), settings)).values())


def attribute_of(text: str, settings: Settings) -> Any:
    """Return what `module:attr` or `file.py:attr` names."""
    if parse_target(text).attr is None:
        raise Problem(f"{quoted(text)} names a module, not something in it", hint=f"{text}:NAME")
    (value,) = named_in(text, settings)
    return value


def named_in(text: str, settings: Settings) -> list[Any]:
    """Return what a target names: one object, or all that its module holds."""
    target = parse_target(text)
    module = _import(target, settings)
    if target.attr is None:
        return list(vars(module).values())
    value: Any = module
    for part in target.attr.split("."):
        value = getattr(value, part, None)
    if value is None:
        raise Problem(
            f"no {quoted(target.attr)} in {target.module}",
            code=NOT_FOUND,
            hint=did_you_mean(target.attr, list(vars(module))),
        )
    return [value]


def _newest(workflows: Sequence[AnyWorkflow]) -> AnyWorkflow:
    return max(workflows, key=lambda one: one.version)


def _workflows_of(values: Iterable[Any]) -> list[AnyWorkflow]:
    found = [one for value in values for one in workflows_in(value)]
    return list({id(one.definition): one for one in found}.values())


def workflows_in(value: Any) -> list[AnyWorkflow]:
    """Return the workflow that a value is, or those that a pattern stands for."""
    if isinstance(value, Workflow):
        return [value]
    # Asked of the type: a variable of a user's module may be a proxy that answers to any name.
    is_pattern = isinstance(value, type) or hasattr(type(value), SERVES)
    method = getattr(value, SERVES, None) if is_pattern else None
    # Not the plain function that it is on the pattern's own class.
    return list(method()) if inspect.ismethod(method) else []


def _pick(module: ModuleType, target: Target, everything: list[AnyWorkflow]) -> list[AnyWorkflow]:
    assert target.attr is not None
    value: Any = module
    for part in target.attr.split("."):
        value = getattr(value, part, None)
    if isinstance(value, ModuleType):
        return _workflows_of(vars(value).values())
    inside = _workflows_of(value if isinstance(value, (list, tuple)) else [value])
    if inside:
        return inside
    by_name = [one for one in everything if one.name == target.attr]
    if by_name:
        return by_name
    if value is not None:
        raise Problem(
            f"{target.attr} in {target.module} is no workflow but {type(value).__name__}",
            hint="decorate it with @workflow"
            if callable(value) and not isinstance(value, Activity)
            else None,
        )
    known = sorted({one.name for one in everything})
    raise Problem(
        f"no workflow {quoted(target.attr)} in {target.module}",
        code=NOT_FOUND,
        hint=did_you_mean(target.attr, known, otherwise=f"known: {', '.join(known) or 'none'}"),
    )


# ─ importing ─────────────────────────────────────────────────────────────────


def _import(target: Target, settings: Settings) -> ModuleType:
    for directory in (settings.project_directory, Path.cwd()):
        _put_on_path(directory)
    if target.is_file:
        path = Path(target.module)
        if not path.is_file() and not path.is_absolute():
            path = settings.project_directory / path  # a default from pyproject.toml, seen from below it
        if not path.is_file():
            here = sorted(str(one) for one in Path().glob("*.py"))
            raise Problem(f"no file {quoted(target.module)}", hint=did_you_mean(target.module, here))
        return _import_file(path.resolve())
    if not all(part.isidentifier() for part in target.module.split(".")):
        raise Problem(f"{quoted(target.module)} is no module name", hint="a file is named with its .py")
    return _guarded(target.module, lambda: importlib.import_module(target.module))


def _import_file(path: Path) -> ModuleType:
    parts = [path.stem]
    root = path.parent
    while (root / "__init__.py").is_file() and root.name.isidentifier():
        parts.insert(0, root.name)
        root = root.parent
    _put_on_path(root)
    name = ".".join(parts)
    if all(part.isidentifier() for part in parts) and _is_this_file(name, path):
        return _guarded(str(path), lambda: importlib.import_module(name))
    alias = f"durable_target_{''.join(c if c.isalnum() else '_' for c in path.stem)}"
    return _guarded(str(path), lambda: _load_as(alias, path))


def _is_this_file(name: str, path: Path) -> bool:
    """Whether importing `name` gives this file, and not a module of the same name from elsewhere."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except Exception:  # a parent package that cannot be imported says so when it is
            return "." in name
        origin = None if spec is None else spec.origin
    return origin is not None and Path(origin).resolve() == path


def _load_as(name: str, path: Path) -> ModuleType:
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _guarded(what: str, load: Any) -> ModuleType:
    try:
        module: ModuleType = load()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # users' modules may do anything, sys.exit() included
        raise Problem(
            f"cannot import {what}: {type(error).__name__}: {error}", hint=_where(error, what)
        ) from error
    return module


def _where(error: BaseException, what: str) -> str | None:
    """Return `file:line` of the innermost frame that is users' code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None and what.split(".")[0] == error.name:
        here = sorted(one.stem for one in Path().glob("*.py"))
        return did_you_mean(what, here, otherwise="modules are looked for in the current directory, too")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _put_on_path(directory: Path) -> None:
    text = str(directory)
    if text not in sys.path and not (directory == Path.cwd() and "" in sys.path):
        sys.path.insert(0, text)
