"""The prover proven: bugs planted in copies of the tree are found. All of them: `python -m tests.planted`."""

from __future__ import annotations

import pytest

from tests.planted.bugs import BUGS
from tests.planted.harness import Bug, planted_text, seek

SAMPLE = (
    "close-without-count",
    "unproven-fence",
    "hasty-takeover",
    "acknowledge-before-commit",
    "work-goes-with-the-instance",
    "more-than-slots",
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_still_has_its_place(bug: Bug) -> None:
    """Each search stands once in its file, and what replaces it is Python where that was."""
    for edit in bug.edits:
        assert planted_text(edit) != ""


def test_no_bug_is_planted_twice() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_planted_bug_is_found(name: str) -> None:
    (bug,) = (bug for bug in BUGS if bug.name == name)

    finding = seek(bug, seeds=30, start=0, limit_seconds=240)

    assert finding.found, finding
