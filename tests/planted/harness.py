"""Plant one bug in a copy of the tree and see whether the simulation, or a test named with the bug, finds it.

A bug is a search and a replacement of exact source text: the search must be there once, so that a bug that no longer applies is
an error and never a pass. The checkout itself is not touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).parents[2]
COPIED: Final = ("durable", "cli", "tests", "pyproject.toml")
FOUND: Final = 1  # the status of a simulation with a violation, and of pytest with a failure
_SUMMARY: Final = re.compile(r"^(\d+) seeds in", re.MULTILINE)
_VIOLATION: Final = re.compile(r"^VIOLATION (.*)$", re.MULTILINE)
_FAILED: Final = re.compile(
    r"^(?:FAILED|ERROR) (\S+::.*)$", re.MULTILINE
)  # of a test: a file that cannot be read proves nothing


class Edit(msgspec.Struct, frozen=True):
    """`old` stands once in the file `path` (from the root of the tree) and becomes `new`."""

    path: str
    old: str
    new: str


class Bug(msgspec.Struct, frozen=True, kw_only=True):
    """A mistake somebody could make. `rule` says which promise it breaks; `tests` (pytest's arguments) find it where seeds cannot.

    `is_narrow`: it takes certain few kinds of steps, which narrow seeds bring together.
    """

    name: str
    rule: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...] = ()
    is_narrow: bool = False


def bug(
    name: str,
    rule: str,
    *edits: tuple[str, str, str],
    tests: tuple[str, ...] = (),
    is_narrow: bool = False,
) -> Bug:
    """Return the bug of these edits: path, what stands there, what is put in its place."""
    return Bug(
        name=name, rule=rule, edits=tuple(Edit(*edit) for edit in edits), tests=tests, is_narrow=is_narrow
    )


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one bug. `seeds`: how many it took, the one that found it included; 0: a test found it."""

    bug: str
    found: bool
    seeds: int
    seconds: float
    told: str


class NotPlanted(Exception):
    """The bug does not apply to this tree, or the tree with it does not run: nothing was proven."""


def planted_text(edit: Edit, root: Path = ROOT) -> str:
    """Return the file's text with the bug in it."""
    text = (root / edit.path).read_text()
    count = text.count(edit.old)
    if count != 1:
        raise NotPlanted(f"{edit.path} has {count} times, not once: {edit.old!r}")
    text = text.replace(edit.old, edit.new)
    if edit.path.endswith(".py"):
        compile(text, edit.path, "exec")
    return text


def plant(bug: Bug, root: Path) -> None:
    """Put the bug into the tree at `root`."""
    for edit in bug.edits:
        (root / edit.path).write_text(planted_text(edit, root))


def seek(bug: Bug, *, seeds: int, start: int, limit_seconds: float) -> Finding:
    """Look for the bug in a copy of the tree; `NotPlanted` if that was not possible."""
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix=f"durable-planted-{bug.name}-"))
    try:
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name)  # compiled files too: all but the changed ones hold
            else:
                shutil.copy2(source, root / name)
        plant(bug, root)
        command = [*bug.tests] or ["--seeds", str(seeds), "--start", str(start), "--tail", "0", "--no-shrink"]
        if bug.is_narrow:
            command.append("--narrow")
        module = (
            ["pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"] if bug.tests else ["tests.simulation"]
        )
        try:
            done = subprocess.run(
                [sys.executable, "-m", *module, *command],
                cwd=root,
                env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'cli'}"},
                capture_output=True,
                text=True,
                timeout=limit_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Finding(
                bug=bug.name,
                found=False,
                seeds=seeds,
                seconds=limit_seconds,
                told=f"nothing within {limit_seconds:g} s",
            )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return _judged(bug, done, seeds, time.monotonic() - began)


def _judged(bug: Bug, done: subprocess.CompletedProcess[str], seeds: int, seconds: float) -> Finding:
    found = _FAILED.search(done.stdout) if bug.tests else _VIOLATION.search(done.stdout)
    if done.returncode not in (0, FOUND) or (done.returncode == FOUND and found is None):
        raise NotPlanted(f"{bug.name}: the copy does not run: {(done.stdout + done.stderr)[-2000:]}")
    if not bug.tests and (summary := _SUMMARY.search(done.stdout)) is not None:
        seeds = int(summary[1])
    return Finding(
        bug=bug.name,
        found=done.returncode == FOUND,
        seeds=0 if bug.tests else seeds,
        seconds=seconds,
        told="" if found is None else found[1],
    )
