"""Each single-file example runs as a newcomer would run it: its own process, an empty directory, no set-up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = ROOT / "examples"
LINES_MAX: Final = 80


def run_example(name: str, cwd: Path, *args: str) -> str:
    """Return what the example printed; fail with its errors otherwise."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def environment() -> dict[str, str]:
    """Return this environment, with this checkout importable and no database chosen."""
    path = [str(ROOT), str(ROOT / "cli"), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    return {name: value for name, value in os.environ.items() if not name.startswith("DURABLE_")} | chosen


def test_every_small_example_is_run_here() -> None:
    """A new example brings its test."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))

    assert [path.name for path in EXAMPLES.glob("*.py") if f'run_example("{path.name}"' not in tests] == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_small_examples_are_small(path: Path) -> None:
    """One idea per file, on one screen."""
    assert len(path.read_text().splitlines()) <= LINES_MAX


def test_hello_does_its_effect_once(tmp_path: Path) -> None:
    """The second run of the script gets the recorded result."""
    first = run_example("hello.py", tmp_path, "Ada")
    second = run_example("hello.py", tmp_path, "Ada")

    assert first.splitlines() == ["(greeting Ada, for real)", "Hello, Ada!"]
    assert second.splitlines() == ["Hello, Ada!"]
    assert (tmp_path / "durable.db").exists()


def test_approval_is_given_or_falls_back_to_the_default(tmp_path: Path) -> None:
    """One request is answered, the other one times out."""
    lines = run_example("approval.py", tmp_path).splitlines()

    assert [line for line in lines if not line.startswith("to ")] == [
        "Ada: granted",
        "Bob: granted by silence",
    ]
    assert "to the boss: no answer about Bob: taken as a yes" in lines


def test_children_are_packed_side_by_side(tmp_path: Path) -> None:
    """One of them cannot be; a second run of the script packs nothing."""
    lines = run_example("children.py", tmp_path).splitlines()
    told = ["box of feathers", "no anvil: too heavy", "box of leafs"]

    assert sorted(lines[:-3]) == ["packed feather", "packed leaf"]
    assert lines[-3:] == told
    assert run_example("children.py", tmp_path).splitlines() == told


def test_a_class_is_signalled_and_asked(tmp_path: Path) -> None:
    """Run again, it asks a closed run; the command line asks it, too, without a worker."""
    told = ["1200 cents for anvil", "approved by ann and bob"]

    assert run_example("workflow_class.py", tmp_path).splitlines() == told
    assert run_example("workflow_class.py", tmp_path).splitlines() == told
    asked = subprocess.run(
        [sys.executable, "-m", "durable", "query", "checkout-1", "status", "--app", str(EXAMPLES / "workflow_class.py")],
        cwd=tmp_path, env=environment(), check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert asked.stdout == '"approved by ann and bob"\n'


def test_fan_out_counts_every_page_once(tmp_path: Path) -> None:
    """Twenty pages by asyncio, twenty by anyio, and at least one of three that race."""
    lines = run_example("fan_out.py", tmp_path).splitlines()

    for page in range(4, 21):
        assert lines.count(f"counted page-{page}") == 2
    assert "asyncio.TaskGroup: 13100 words" in lines
    assert "anyio, four at a time: 13100 words" in lines


def test_a_graph_asks_and_goes_on_where_it_asked(tmp_path: Path) -> None:
    """The answer comes from the command line, between two runs of the script."""
    assert run_example("graph_approval.py", tmp_path) == (
        "Ship lamp? The risk is 0.4.  durable answer order-7 true\n"
    )

    durable = [sys.executable, "-m", "durable"]
    subprocess.run([*durable, "answer", "order-7", "true"], cwd=tmp_path, env=environment(), check=True)

    assert run_example("graph_approval.py", tmp_path) == "shipped lamp in shelf 3\n"


def test_a_graph_goes_round_until_it_is_good(tmp_path: Path) -> None:
    """Three rounds of three nodes."""
    assert run_example("graph_writing.py", tmp_path) == (
        "3 drafts, 9 nodes ran, the last draft: ON DURABILITY\n"
    )


def test_fan_out_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    """What was recorded before the kill is not counted again; what was not recorded may be."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "fan_out.py")],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        before = []
        for line in output:
            before.append(line.strip())
            if line.startswith("asyncio.TaskGroup"):  # the first run is done, the second has just begun
                break
        process.send_signal(signal.SIGKILL)
        process.wait(60)

    after = run_example("fan_out.py", tmp_path).splitlines()

    assert before.count("counted page-20") == 1
    assert after.count("counted page-20") == 1  # by the second run only: the first one's result is recorded
    assert "asyncio.TaskGroup: 13100 words" in after
