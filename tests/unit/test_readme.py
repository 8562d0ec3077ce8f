"""The README's promises that a test can hold: its two set-up commands stand in it literally."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

README: Final = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize(
    "command", ["pip install . && durable demo crash", "pip install -e '.[test]' && pytest"]
)
def test_the_setup_commands_stand_on_lines_of_their_own(command: str) -> None:
    """They are copied by people and run by .ci/run as printed there."""
    lines = [line.strip().removeprefix("$ ") for line in README.read_text().splitlines()]

    assert command in lines


def test_links_point_to_files_that_exist() -> None:
    """A README with dead links sends newcomers away."""
    text = README.read_text()

    missing = [
        target
        for piece in text.split("](")[1:]
        if not (target := piece.split(")")[0].split("#")[0]).startswith(("http:", "https:"))
        and target
        and not (README.parent / target).exists()
    ]

    assert not missing
