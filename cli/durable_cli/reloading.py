"""`--reload`, for development: notice that a source file changed, by looking at the times of files again and again."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

LOOK_SECONDS: Final = 0.4
FILES_MAX: Final = 5000  # of a tree that is looked through; what is imported is watched in any case
_PASSED_OVER: Final = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages", "venv"})

Stamp = tuple[int, int]  # when written, how large


class Sources:
    """The Python files below some directories, and those that are imported from there, as they were at first."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self._roots = tuple({root.resolve() for root in roots})
        self._known = dict(self._stamps())

    def changed(self) -> list[Path]:
        """Return the files that were changed, made or removed since the last look."""
        now = dict(self._stamps())
        before, self._known = self._known, now
        return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))

    async def wait(self) -> Path:
        """Return the first file that changes."""
        while True:
            if found := self.changed():
                return found[0]
            await asyncio.sleep(LOOK_SECONDS)

    def _stamps(self) -> Iterator[tuple[Path, Stamp]]:
        for path in {*self._imported(), *self._below()}:
            try:
                status = path.stat()
            except OSError:
                continue  # removed between the two looks
            yield path, (status.st_mtime_ns, status.st_size)

    def _imported(self) -> Iterator[Path]:
        for module in list(sys.modules.values()):
            name = getattr(module, "__file__", None)
            if isinstance(name, str) and any(
                Path(name).is_relative_to(root) and not _PASSED_OVER & {*Path(name).parts}
                for root in self._roots
            ):
                yield Path(name)

    def _below(self) -> Iterator[Path]:
        left = FILES_MAX
        for root in self._roots:
            for directory, names, files in os.walk(root):
                names[:] = [one for one in names if one not in _PASSED_OVER and not one.startswith(".")]
                for name in files:
                    left -= 1
                    if left < 0:
                        return
                    if name.endswith(".py"):
                        yield Path(directory, name)
