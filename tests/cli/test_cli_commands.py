"""Every command on a real database, and how each ends: exit codes, data on stdout, messages on stderr."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.cli.cli_harness import Cli


@pytest.fixture
def app(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line with app.py as the app."""
    monkeypatch.setenv("DURABLE_APP", "app.py")
    return cli


# ─ run ──


def test_run_prints_the_result_and_tells_its_progress(cli: Cli) -> None:
    """The first-five-minutes command: result on stdout, everything else on stderr."""
    ended = cli("run", "app.py:hello", "WORLD", "times:=2", "--id", "h")

    assert (ended.code, ended.out) == (0, '"Hello, WORLD!Hello, WORLD!"\n')
    assert "hello h · db sqlite:///durable.db" in ended.err
    assert 'greet("WORLD")' in ended.err
    assert "2 attempts" in ended.err
    assert "✓ completed after" in ended.err


def test_run_with_the_same_id_does_nothing_twice(cli: Cli) -> None:
    """The recorded result comes back; other input is a conflict."""
    first = cli("run", "app.py:hello", "WORLD", "--id", "h")
    again = cli("run", "app.py:hello", "WORLD", "--id", "h")
    other = cli("run", "app.py:hello", "MOON", "--id", "h")

    assert first.out == again.out == '"Hello, WORLD!"\n'
    assert (other.code, other.out) == (6, "")
    assert "error: run 'h' was started with other input" in other.err


def test_run_of_a_failing_workflow_ends_with_1(cli: Cli) -> None:
    """The error is told with the command that shows more."""
    ended = cli("run", "app.py:fulfil", "bad", "--id", "f")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-2:] == [
        "error: run 'f' failed: RuntimeError: no stock for bad",
        "hint: durable show f",
    ]
    assert "Traceback" not in ended.err


def test_debug_shows_the_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """--debug or DURABLE_DEBUG=1; otherwise never."""
    assert "Traceback" in cli("--debug", "run", "app.py:fulfil", "bad").err
    monkeypatch.setenv("DURABLE_DEBUG", "1")
    assert "Traceback" in cli("show", "nothing").err


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (
            ["hello", "W", "three"],
            "`times`: expected int, got str",
            "hello(name: str, times: int); text is a string",
        ),
        (["hello", "W", "tims:=3"], "tims", 'did you mean "times"?'),
        (["hello"], "name", "hello(name: str, times: int)"),
        (["hello", "a", "b", "c"], "takes", "hello(name"),
        (["hello", "--json", "{"], "no JSON after --json", "hint"),
        (["helo", "W"], 'no workflow "helo"', 'did you mean "hello"?'),
    ],
)
def test_arguments_are_checked_before_anything_is_written(
    app: Cli, here: Path, words: list[str], error: str, hint: str
) -> None:
    """A usage error (an unknown workflow: not found), and no database."""
    for command in ("start", "run"):
        ended = app(command, *words)

        assert (ended.code, ended.out) == (3 if "helo" in words else 2, "")
        assert error in ended.err
        assert hint in ended.err
        assert not (here / "durable.db").exists()


# ─ start, list, show ──


def test_start_prints_the_id_and_the_policies_decide(app: Cli) -> None:
    """attach, fail and terminate for an open id; return, fail, new and new-if-failed for a closed one."""
    assert app("start", "noted", "--id", "n").out == "n\n"
    assert app("start", "noted", "--id", "n").code == 0
    assert app("start", "noted", "--id", "n", "--if-open", "fail").code == 6
    assert app("start", "noted", "--id", "n", "--if-open", "terminate").code == 0
    assert app("show", "n@1", "-o", "json").out.count('"status":"terminated"') == 1
    app("terminate", "n", "--reason", "enough", "--yes")
    assert app("start", "noted", "--id", "n", "--if-closed", "fail").code == 6
    assert app("start", "noted", "--id", "n", "--if-closed", "new").code == 0
    assert app("show", "n", "-o", "json").out.count('"generation":3') == 1
    assert app("start", "app.py:noted", "--id", "n", "--if-closed", "bogus").code == 2


def test_ids_in_commands_to_copy_are_quoted_for_the_shell(app: Cli) -> None:
    """Any printable text may be an id; what is said to do next is to be typed as it stands."""
    run_id = "o'neill & sons"
    word = shlex.quote(run_id)

    assert f"next: durable show {word}\n" in app("start", "noted", "--id", run_id).err
    assert f"hint: durable show {word}\n" in app("result", run_id, "--timeout", "0.01s").err
    assert app("terminate", run_id, "--reason", "enough", "--yes").code == 0
    assert ["next", f"durable show {word}"] in app("why", run_id).rows
    assert f"hint: durable show {word}\n" in app("signal", run_id, "approved", "true").err


def test_start_takes_a_queue_a_delay_and_json(app: Cli) -> None:
    """And says them in JSON."""
    ended = app(
        "start",
        "hello",
        "--json",
        '["W", 2]',
        "--task-queue",
        "slow",
        "--delay",
        "1h",
        "-o",
        "json",
        "--id",
        "d",
    )

    assert json.loads(ended.out) == {
        "v": 1, "run_id": "d", "generation": 1, "workflow": "hello", "status": "pending", "task_queue": "slow",
    }  # fmt: skip
    assert "start in 59m" in app("list", "--task-queue", "slow").out
    assert app("list", "--task-queue", "other").out == ""


def test_list_filters(app: Cli) -> None:
    """AND of all; status repeated is OR; * in names and ids."""
    app("run", "hello", "A", "--id", "order-1")
    app("run", "fulfil", "bad", "--id", "order-2")
    app("start", "noted", "--id", "note-1")

    def ids(*filters: str) -> list[str]:
        return [row[0] for row in app("list", *filters).rows]

    assert ids() == ["note-1", "order-2", "order-1"]
    assert ids("--status", "failed") == ["order-2"]
    assert ids("--status", "failed", "--status", "completed") == ["order-2", "order-1"]
    assert ids("--workflow", "h*") == ["order-1"]
    assert ids("--id", "order-*", "--status", "completed") == ["order-1"]
    assert ids("--since", "1h") == ["note-1", "order-2", "order-1"]
    assert ids("--until", "2020-01-01") == []
    assert ids("--limit", "1") == ["note-1"]
    assert app("list", "--status", "bogus").code == 2
    assert app("list", "--since", "soon").code == 2


def test_count_has_the_filters_of_list(app: Cli) -> None:
    """A number; with --by a line for each, the most first."""
    for name in ("h-1", "h-2"):
        app("start", "hello", "W", "--id", name)
    app("run", "app.py:hello", "W", "--id", "done")

    assert app("count").out == "3\n"
    assert app("count", "--id", "h-*", "--status", "pending").out == "2\n"
    assert app("count", "--by", "status").out == "pending\t2\ncompleted\t1\n"
    assert json.loads(app("count", "-o", "json").out) == {"v": 1, "count": 3}
    assert json.loads(app("count", "--by", "workflow", "-o", "json").out) == {
        "v": 1,
        "by": "workflow",
        "counts": {"hello": 3},
    }
    assert "told by its journal" in app("count", "--status", "compensating").err


def test_list_says_what_runs_wait_for(app: Cli) -> None:
    """In text and in JSON."""
    app("start", "noted", "--id", "n")

    assert app("list").rows[0][5] == 'a worker for noted version 1 on queue "default"'
    listed = json.loads(app("list", "-o", "json").out)
    assert listed["v"] == 1
    assert listed["runs"][0]["waiting_on"][0]["name"] == "worker"
    assert listed["runs"][0]["created_at"].endswith("Z")
    assert json.loads(app("list", "-o", "jsonl").out)["run_id"] == "n"


def test_piped_text_has_no_colour_boxes_or_cuts(app: Cli) -> None:
    """Tab-separated, whole."""
    app("run", "hello", "x" * 300, "--id", "long")

    for ended in (app("list"), app("show", "long"), app("show", "long", "--events")):
        assert "\x1b" not in ended.out
        assert "…" not in ended.out
        assert "█" not in ended.out
        assert "x" * 300 in ended.out


def test_show_tells_the_story(app: Cli) -> None:
    """Steps with their attempts, and the raw journal on demand."""
    app("run", "hello", "W", "--id", "h")

    shown = app("show", "h")
    assert [row[2:4] for row in shown.rows if row[0] == "step"] == [
        ["completed", 'greet("W")'],
        ["completed", "flaky()"],
    ]
    assert "2 attempts" in shown.out
    events = app("show", "h", "--events")
    assert [row[2] for row in events.rows] == [
        "started", "activity_scheduled", "activity_completed", "activity_scheduled", "activity_completed", "completed",
    ]  # fmt: skip
    whole = json.loads(app("show", "h", "-o", "json").out)
    assert (whole["v"], whole["run_id"], len(whole["journal"]), len(whole["events"])) == (1, "h", 2, 6)
    assert [event["number"] for event in whole["events"]] == [1, 2, 3, 4, 5, 6]
    assert len(app("show", "h", "--events", "-o", "jsonl").out.splitlines()) == 6


def test_a_closed_run_is_followed_to_its_end_at_once(app: Cli) -> None:
    """-f ends with the run."""
    app("run", "hello", "W", "--id", "h")

    ended = app("show", "h", "-f")

    assert ended.code == 0
    assert ended.rows[-1] == ["status", "completed", '"Hello, W!"']
    assert json.loads(app("show", "h", "-f", "-o", "jsonl").out)["status"] == "completed"


# ─ ids ──


def test_reading_commands_take_short_ids(app: Cli) -> None:
    """@last, @last-failed, a unique beginning or end, a generation; several candidates are named."""
    app("run", "fulfil", "bad", "--id", "order-abc")
    app("run", "hello", "A", "--id", "order-xyz")

    def shown(text: str) -> str:
        return app("show", text).rows[0][1]

    assert app("show").rows[0][1] == "order-xyz"
    assert [shown(text) for text in ("@last", "@last-failed", "order-a", "xyz", "order-xyz@1")] == [
        "order-xyz", "order-abc", "order-abc", "order-xyz", "order-xyz",
    ]  # fmt: skip
    ambiguous = app("show", "order-")
    assert ambiguous.code == 3
    assert "order-abc" in ambiguous.err
    assert "order-xyz" in ambiguous.err


def test_an_unknown_id_names_what_is_near(app: Cli) -> None:
    """error: no run "order-9", and a hint."""
    app("run", "hello", "A", "--id", "order-8")

    near, far = app("show", "ordr-8"), app("result", "zzz")

    assert (near.code, near.out, near.err) == (
        3,
        "",
        'error: no run "ordr-8"\nhint: did you mean "order-8"?\n',
    )
    assert (far.code, far.err) == (3, 'error: no run "zzz"\nhint: durable list --since 1h\n')
    assert app("show", "order-8@7").code == 3
    assert app("show", "@last-failed").code == 3


@pytest.mark.parametrize("text", ["order-", "der-1", "@last", "order-1@1"])
@pytest.mark.parametrize(
    "command",
    [["signal", "ID", "note", "x"], ["cancel", "ID"], ["terminate", "ID", "--reason", "x", "--yes"]],
)
def test_changing_commands_take_exact_ids(app: Cli, text: str, command: list[str]) -> None:
    """Nothing is sent to a run that was only guessed; the hint names it."""
    app("start", "noted", "--id", "order-1")

    ended = app(*(text if word == "ID" else word for word in command))

    assert ended.code in (2, 3)
    assert "order-1" in ended.err.splitlines()[1]
    assert app("list").rows[0][2] == "pending"
    assert app("show", "order-1", "--events").out == ""


# ─ result, wait ──


def test_result_and_wait(app: Cli) -> None:
    """0 completed, 1 failed or terminated, 5 still open when the time is up."""
    app("run", "hello", "A", "--id", "good")
    app("run", "fulfil", "bad", "--id", "bad")
    app("start", "noted", "--id", "open")

    assert app("result", "good").out == '"Hello, A!"\n'
    assert json.loads(app("result", "good", "-o", "json").out) == {
        "v": 1, "run_id": "good", "generation": 1, "status": "completed", "result": "Hello, A!",
    }  # fmt: skip
    assert (app("result", "bad").code, app("result", "bad").out) == (1, "")
    late = app("result", "open", "--timeout", "0")
    assert (late.code, late.out) == (5, "")
    assert "waiting on a worker for noted" in late.err

    waited = app("wait", "good", "bad")
    assert waited.code == 1
    assert sorted(row[:2] for row in waited.rows) == [["bad", "failed"], ["good", "completed"]]
    assert app("wait", "good").code == 0
    late = app("wait", "good", "open", "--timeout", "50ms")
    assert (late.code, [row[:2] for row in late.rows]) == (5, [["good", "completed"]])
    assert "1 run still open: open" in late.err
    assert app("wait").code == 2


# ─ talking ──

DESK = """
from durable import wait_condition, workflow

@workflow
class Desk:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: list[int] = []

    async def run(self) -> int:
        await wait_condition(lambda: len(self.seen) >= self.limit)
        return sum(self.seen)

    @workflow.signal
    def add(self, number: int) -> None:
        self.seen.append(number)

    @workflow.query
    def above(self, least: int, label: str = "") -> dict[str, list[int]]:
        if least < 0:
            raise ValueError("below zero")
        return {label: [number for number in self.seen if number > least]}
"""


def test_signals_are_typed_by_the_app(app: Cli) -> None:
    """`true` is a boolean for bool, `123` is text for str, `maybe` is refused before it is sent."""
    app("start", "approval", "o", "--id", "a")
    app("start", "noted", "--id", "n")

    assert app("signal", "a", "approved", "maybe").code == 2
    assert app("signal", "a", "approved", "true").code == 0
    assert app("signal", "n", "note", "123").code == 0
    app("worker", "--drain", "--task-queue", "default")

    assert app("result", "a").out == "true\n"
    assert app("result", "n").out == '"123"\n'


def test_signals_are_typed_by_the_methods_that_take_them(cli: Cli, tmp_path: Path) -> None:
    """As by a Signal; `durable worker` serves the class, and `show` tells its run as any other."""
    (tmp_path / "desk.py").write_text(DESK)
    cli("start", "Desk", "limit:=2", "--id", "d", "--app", "desk.py")

    assert cli("signal", "d", "add", "many", "--app", "desk.py").code == 2
    assert cli("signal", "d", "add", "1", "--app", "desk.py").code == 0
    assert cli("signal", "d", "add", "41").code == 0
    cli("worker", "desk.py", "--drain")

    assert cli("result", "d").out == "42\n"
    assert "Desk" in cli("show", "d").out


def test_a_run_is_asked_by_its_code(cli: Cli, tmp_path: Path) -> None:
    """While it waits and when it is closed, with no worker about; words are those of `durable start`."""
    (tmp_path / "desk.py").write_text(DESK)
    cli("start", "Desk", "limit:=3", "--id", "desk-1", "--app", "desk.py")
    early = cli("query", "desk-1", "above", ":=0", "--app", "desk.py")
    for number in ("5", "6"):
        cli("signal", "desk-1", "add", number)
    cli("worker", "desk.py", "--drain")

    assert (early.code, "has not begun" in early.err) == (6, True)
    assert cli("query", "desk-1", "above", ":=5", "7", "--app", "desk.py").out == '{"7":[6]}\n'
    assert cli("query", "desk", "above", "least:=0", "label=all", "--app", "desk.py").out == '{"all":[5,6]}\n'
    asked = cli("query", "desk-1", "above", ":=5", "--app", "desk.py", "-o", "json")
    assert json.loads(asked.out) == {
        "v": 1,
        "run_id": "desk-1",
        "generation": 1,
        "query": "above",
        "answer": {"": [6]},
    }
    unknown = cli("query", "desk-1", "below", "--app", "desk.py")
    assert (unknown.code, "it answers: above" in unknown.err) == (2, True)
    raised = cli("query", "desk-1", "above", "least:=-1", "--app", "desk.py")
    assert (raised.code, "raised ValueError: below zero" in raised.err) == (1, True)
    assert "--app" in cli("query", "desk-1", "above").err
    cli("signal", "desk-1", "add", "7")
    cli("worker", "desk.py", "--drain")
    assert cli("query", "desk-1", "above", ":=0", "--app", "desk.py").out == '{"":[5,6,7]}\n'


def test_a_signal_needs_no_code_unless_it_is_asked_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken DURABLE_APP keeps nobody from signalling; --app says to check."""
    cli("start", "app.py:noted", "--id", "n")
    monkeypatch.setenv("DURABLE_APP", "gone.py")

    assert cli("signal", "n", "note", "x", "--app", "gone.py").code == 2
    sent = cli("signal", "n", "note", "x")

    assert sent.code == 0
    assert 'note: the value is not checked: no file "gone.py"' in sent.err


def test_arguments_that_begin_with_a_dash_follow_after_two(cli: Cli) -> None:
    """A misspelt option never becomes an argument."""
    refused = cli("run", "app.py:hello", "-5")

    assert refused.code == 2
    assert "arguments that begin with - follow after --" in refused.err
    assert cli("run", "app.py:hello", "--", "-5").out == '"Hello, -5!"\n'


def test_signals_without_the_code_are_json_if_they_look_like_it(cli: Cli) -> None:
    """As `durable signal order-7 approved true` must work from anywhere."""
    cli("start", "app.py:approval", "o", "--id", "a")

    sent = cli("signal", "a", "approved", "true", "-o", "json")
    cli("worker", "app.py", "--drain")

    assert json.loads(sent.out) == {"v": 1, "run_id": "a", "signal": "approved"}
    assert cli("result", "a").out == "true\n"


def test_a_repeated_message_id_is_sent_once(cli: Cli) -> None:
    """--message-id makes a script's signal repeatable."""
    cli("start", "app.py:noted", "--id", "n")

    for _ in range(2):
        assert cli("signal", "n", "note", "hello", "--message-id", "m1").code == 0
    cli("worker", "app.py", "--drain")

    assert cli("show", "n", "--events").out.count("signal_received") == 1


def test_closed_runs_take_nothing_more(app: Cli) -> None:
    """Conflict, whatever one tries."""
    app("run", "hello", "A", "--id", "h")

    for command in (
        ["signal", "h", "note", "x"],
        ["cancel", "h"],
        ["terminate", "h", "--reason", "x", "--yes"],
    ):
        ended = app(*command)
        assert ended.code == 6
        assert "hint: durable show h" in ended.err


def test_cancel_and_terminate(app: Cli) -> None:
    """The reason is kept; terminate asks, and without a terminal wants --yes."""
    app("start", "noted", "--id", "c")
    app("start", "noted", "--id", "t")

    assert app("cancel", "c", "--reason", "no longer needed").code == 0
    app("worker", "--drain", "--task-queue", "default")
    assert app("terminate", "t").code == 2
    refused = app("terminate", "t", "--reason", "stuck")
    assert (refused.code, refused.err.splitlines()[-1]) == (2, "hint: --yes")
    assert app("terminate", "t", "--reason", "stuck", "--yes").code == 0

    assert [row[2::3] for row in app("list").rows] == [
        ["terminated", "stuck"],
        ["cancelled", "no longer needed"],
    ]
    for run_id in ("c", "t"):
        assert app("result", run_id).code == 1


# ─ the rest ──


def test_a_mistyped_command_names_the_near_one(cli: Cli) -> None:
    """error and hint, exit code 2, no usage text in between."""
    assert cli("lst") == (2, "", 'error: no command "lst"\nhint: did you mean "list"?\n')
    assert cli("frobnicate").err.splitlines()[1] == "hint: durable --help lists the commands"
    assert cli("show", "--evnts").code == 2
    assert cli("demo", "crsh").code == 2


def test_a_database_that_is_not_there_is_not_made_by_looking(cli: Cli, here: Path) -> None:
    """Exit code 4; only run, start and worker create it."""
    for command in (["list"], ["show"], ["signal", "x", "y"], ["recover"], ["wait", "x"]):
        ended = cli(*command)
        assert (ended.code, ended.out) == (4, "")
        assert "error: " in ended.err
    assert not (here / "durable.db").exists()


def test_a_file_that_is_no_database_is_left_alone(cli: Cli, here: Path) -> None:
    """Exit code 4, and its content stays."""
    (here / "notes.db").write_text("not a database " * 100)

    for command in (["list"], ["run", "app.py:hello", "W"], ["worker", "app.py", "--drain"]):
        assert cli(*command, "--db", "notes.db").code == 4
    assert (here / "notes.db").read_text() == "not a database " * 100


def test_version(cli: Cli) -> None:
    """Text and JSON."""
    assert cli("version").out == cli("--version").out == "durable 0.1.0\n"
    assert json.loads(cli("version", "-o", "json").out)["durable"] == "0.1.0"


def test_large_payloads_are_shown_by_their_size(cli: Cli) -> None:
    """`show`, its events and `list` are for people; `result` and JSON output have all of it."""
    cli("run", "app.py:hello", "W", "times:=9000", "--id", "big")

    for words in (("show", "big"), ("show", "big", "--events"), ("list",)):
        told = cli(*words).out
        assert len(told) < 3000, words
        assert "KiB" in told, words
    assert len(cli("result", "big").out) > 80_000
    assert len(cli("show", "big", "-o", "json").out) > 80_000
    assert len(cli("list", "-o", "json").out) > 80_000
