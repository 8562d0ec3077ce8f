"""What the module of a script is called: `__main__` where it runs, and by its file where it is imported.

A class that a script defines is known in every process by the latter, its public name: a worker that serves the script's file finds the
classes of errors that the script recorded, and the script those of a worker. Imports nothing, and knows nothing of errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Final

MAIN: Final = "__main__"
_ALIAS: Final = (
    "durable_target_"  # begins what the command line calls a file that no import statement can name
)


def public_name(module_name: str) -> str:
    """Return by what name other processes may have the module: that of its file, for the one that runs and for one under an alias.

    What has no file (`python -c`, standard input) keeps its name.
    """
    if module_name != MAIN and not module_name.startswith(_ALIAS):
        return module_name
    module = sys.modules.get(module_name)
    spec = getattr(module, "__spec__", None)
    if module_name == MAIN and spec is not None:  # python -m name
        return str(spec.name)
    file = getattr(module, "__file__", None)
    return _dotted(file) if isinstance(file, str) else module_name


def modules_known_as(name: str) -> Iterator[ModuleType]:
    """Yield the modules of this process that have this public name: an imported one first, then the script that runs."""
    for candidate in (name, MAIN, *_aliases()):
        module = sys.modules.get(candidate)
        if module is not None and public_name(candidate) == name:
            yield module


def _aliases() -> list[str]:
    return [name for name in tuple(sys.modules) if name.startswith(_ALIAS)]


def _dotted(file: str) -> str:
    """Return the name by which a file is imported: its packages' and its own."""
    directory, base = os.path.split(file)
    parts = [os.path.splitext(base)[0]]
    while os.path.isfile(os.path.join(directory, "__init__.py")):
        directory, package = os.path.split(directory)
        parts.insert(0, package)
    return ".".join(parts)
