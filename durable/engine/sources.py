"""Where in the author's code something was asked for: `package/file.py:line`, found on the stack.

The label is what the journal keeps and what replay errors show. Frames of this package, asyncio, anyio and
contextlib are looked through; a walk ends at the engine's own loop, beyond which no author's code can be.
Knows nothing of runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import linecache
import os
from types import CodeType, FrameType
from typing import Any, Final

_OURS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_ASYNCIO: Final = os.path.dirname(asyncio.__file__) + os.sep
_CONTEXTLIB: Final = contextlib.__file__
_ANYIO: Final = f"{os.sep}anyio{os.sep}"

# What a code object is to a walk. Everything else (a dict) is the author's.
_SKIP: Final = "skip"
_BOUNDARY: Final = "boundary"
_AS_COMPLETED: Final = "as_completed"

_CODES_MAX: Final = 20_000


class _Site:
    """What is known of one code object. It is kept alive, so that its id stays its own."""

    __slots__ = ("code", "kind", "labels")

    def __init__(self, code: CodeType, kind: str | None) -> None:
        self.code = code
        self.kind = kind
        self.labels: dict[int, str] = {}  # by instruction: computing a line number costs more than the lookup


# A memo of pure facts about code objects, the same for every run and thread; bounded by `_CODES_MAX`.
_sites: Final[dict[int, _Site]] = {}
_places: Final[dict[str, tuple[str, int]]] = {}
# By file of a module: the labels of its lines, if every frame of it is the author's.
_files: Final[dict[str | None, dict[int, str]]] = {}
_SKIPPED: Final[dict[int, str]] = {}  # every frame of such a file is looked through
_UNSURE: Final[dict[int, str]] = {}  # the code itself must be looked at
_boundaries: Final[set[CodeType]] = set()
_transparent: Final[set[CodeType]] = set()


def look_through(function: Any) -> None:
    """Declare a function that asks in the name of its caller: the caller's line is the source."""
    _transparent.add(function.__code__)
    _files[function.__globals__.get("__file__")] = _UNSURE


def end_walks_at(function: Any) -> None:
    """Declare the function below which no author's frame can be."""
    _boundaries.add(function.__code__)
    _files[function.__globals__.get("__file__")] = _UNSURE


def find_source(frame: FrameType | None) -> str:
    """Return the label of the nearest author's frame, or "" if there is none."""
    while frame is not None:
        # By the file of its module first: the interpreter audits a look at the code itself, which costs ten times as much.
        file: str | None = frame.f_globals.get("__file__")
        labels = _files.get(file)
        if labels is None:
            labels = _labels_of(file)
            if labels is not _UNSURE:
                _files[file] = labels
        if labels is _SKIPPED:
            frame = frame.f_back
            continue
        if labels is not _UNSURE:
            line = frame.f_lineno
            label = labels.get(line)
            return label if label is not None else _note_label(labels, file, line)
        code = frame.f_code
        site = _sites.get(id(code)) or _classify(code)
        if site.kind is None:
            return site.labels.get(frame.f_lasti) or _label(site, frame)
        if site.kind is _BOUNDARY:
            break
        frame = frame.f_back
    return ""


def _labels_of(file: str | None) -> dict[int, str]:
    """Return what is known of the frames of a file that was not met before."""
    if len(_files) >= _CODES_MAX:
        return _UNSURE
    if file is None or file.startswith((_ASYNCIO, "<")):
        return _UNSURE
    if file.startswith(_OURS) or file == _CONTEXTLIB or _ANYIO in file:
        return _SKIPPED
    return {}


def _note_label(labels: dict[int, str], file: str | None, line: int) -> str:
    label = labels[line] = _place(file or "", line)
    return label


def is_within_as_completed(frame: FrameType) -> bool:
    """Whether a task is being created for a bare coroutine by `asyncio.as_completed`."""
    if not frame.f_code.co_name.endswith("ensure_future"):
        return False
    caller = frame.f_back
    while caller is not None:
        site = _sites.get(id(caller.f_code)) or _classify(caller.f_code)
        if site.kind != _SKIP:
            return site.kind == _AS_COMPLETED
        caller = caller.f_back
    return False


def source_text(label: str) -> str:
    """Return the stripped source line behind a label made in this process, or ""."""
    place = _places.get(label)
    return linecache.getline(*place).strip() if place else ""


def _classify(code: CodeType) -> _Site:
    if len(_sites) >= _CODES_MAX:
        _sites.clear()
    site = _sites[id(code)] = _Site(code, _kind(code))
    return site


def _kind(code: CodeType) -> str | None:
    name = code.co_filename
    if code in _boundaries:
        return _BOUNDARY
    if name.startswith(_ASYNCIO):
        is_as_completed = code.co_qualname in ("as_completed", "_AsCompletedIterator.__init__")
        return _AS_COMPLETED if is_as_completed else _SKIP
    if name.startswith((_OURS, "<frozen ")) or name == _CONTEXTLIB or _ANYIO in name or code in _transparent:
        return _SKIP
    return None


def _label(site: _Site, frame: FrameType) -> str:
    label = site.labels[frame.f_lasti] = _place(site.code.co_filename, frame.f_lineno)
    return label


def _place(name: str, line: int) -> str:
    label = f"{'/'.join(name.replace(os.sep, '/').split('/')[-2:])}:{line}"
    if len(_places) >= _CODES_MAX:
        _places.clear()
    _places[label] = (name, line)
    return label
