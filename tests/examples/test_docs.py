"""Programs in the documentation: each runs as it stands there, and prints what the page says it does.

A python snippet with `if __name__ == "__main__":` that imports `durable` is a whole program; a `text` block behind it, before the
next program, is its output. Programs of other libraries, shown beside ours, are left alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMPORTS: Final = re.compile(r"^(import durable|from durable import)\b", re.MULTILINE)
LONG: Final = frozenset({"README.md", "docs/quickstart.md"})  # they sleep, so that people can kill them
SECONDS_MAX: Final = 60


class Program(NamedTuple):
    """A program, and what it prints, if the page says so."""

    page: str
    source: str
    output: str | None


def programs(page: Path) -> list[Program]:
    found: list[Program] = []
    name = str(page.relative_to(ROOT))
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python" and "__main__" in text and IMPORTS.search(text):
            found.append(Program(name, text, None))
        elif language == "text" and found and found[-1].output is None:
            found[-1] = found[-1]._replace(output=text)
    return found


def cases() -> list[Any]:
    return [
        pytest.param(
            program,
            id=f"{program.page}-{number}",
            marks=[pytest.mark.slow] if program.page in LONG else [],
        )
        for page in PAGES
        for number, program in enumerate(programs(page), 1)
    ]


@pytest.mark.parametrize("program", cases())
def test_a_program_on_a_page_runs(program: Program, tmp_path: Path) -> None:
    """In an empty directory, with nothing set."""
    (tmp_path / "app.py").write_text(program.source)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DURABLE_")}

    ran = subprocess.run(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert program.output in (None, ran.stdout), ran.stdout


@pytest.mark.parametrize("library", ["lexigram-workflow", "temporal", "dbos", "langgraph", "celery"])
def test_each_library_people_come_from_has_its_page_with_a_program(library: str) -> None:
    """Side by side with its own, and with what ours prints."""
    (program,) = programs(ROOT / "docs" / "coming-from" / f"{library}.md")

    assert program.output is not None
