"""Exceptions to data and back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import types
from datetime import date
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable import failures, held_values
from durable.errors import (
    ActivityError,
    NonRetryableError,
    PayloadError,
    RunNotFoundError,
    RunTerminatedError,
)
from durable.failures import Failure, describe, rebuild, record
from durable.limits import FAILURE_BYTES_MAX


def through_the_journal(error: BaseException, **origin: Any) -> BaseException:
    data = msgspec.json.encode(record(error, **origin))
    return rebuild(msgspec.json.decode(data, type=Failure))


class OutOfStock(Exception):
    def __init__(self, item: str, *, left: int) -> None:
        calls.append("init")
        self.item = item
        self.left = left

    def __setattr__(self, name: str, value: object) -> None:
        calls.append("setattr")
        super().__setattr__(name, value)

    def __str__(self) -> str:
        return f"{self.item}: {self.left} left"


class Picky(Exception):
    def __new__(cls, first: int, second: int) -> Picky:
        calls.append("new")
        return super().__new__(cls, first)

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__("slotted")
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


@dataclasses.dataclass
class AsData(Exception):
    code: int
    detail: dict[str, int]


class MissingKey(KeyError, OSError):
    pass


class Outer:
    class Inner(Exception):
        pass


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit("from __str__")

    def __repr__(self) -> str:
        raise ValueError("from __repr__")

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("from __getattribute__")

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError("from __setattr__")


class Group(ExceptionGroup[Exception]):
    pass


calls: list[str] = []

try:
    json.loads("{x")
except ValueError as caught:
    json_error = caught
try:
    b"ab\xff".decode()
except ValueError as caught:
    decode_error = caught


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no stock"),
        ValueError(),
        ValueError("two", 2),
        ValueError((1, 2)),
        KeyError("name"),
        KeyError(7),
        KeyError((1, 2)),
        KeyError(date(2024, 2, 29)),
        KeyError(float("nan")),
        RuntimeError(object()),
        RuntimeError("lone \ud800"[:5]),
        FileNotFoundError(2, "No such file", "/tmp/x"),
        OSError("plain"),
        MissingKey("x"),
        ImportError("no module", name="x"),
        StopIteration(3),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        decode_error,
        json_error,
        Slotted(3),
        OutOfStock("apple", left=2),
        Picky(1, 2),
        AsData(1, {"a": 2}),
        Outer.Inner("nested class"),
        RunNotFoundError("order-7", suggestions=["order-8"]),
        RunTerminatedError("order-7", "asked to"),
        PayloadError("no", path="$.x"),
        ActivityError("m", activity="charge", type="x.Y", attempts=3),
        TimeoutError(),
    ],
    ids=lambda error: f"{type(error).__name__}-{len(error.args)}",
)
def test_an_error_comes_back_as_its_own_class_with_its_own_text(error: Exception) -> None:
    """So `except` works in replay as it did live, and what is printed does not change."""
    rebuilt = through_the_journal(error)

    assert type(rebuilt) is type(error)
    assert str(rebuilt) == str(error)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
        lambda s: st.lists(s) | st.tuples(s, s),
    )
)
def test_an_error_with_any_argument_keeps_its_text(argument: Any) -> None:
    """Whatever JSON makes of the argument."""
    for error in (ValueError(argument), KeyError(argument)):
        rebuilt = through_the_journal(error)

        assert type(rebuilt) is type(error)
        assert str(rebuilt) == str(error)


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
            lambda s: st.lists(s) | st.lists(s).map(tuple) | st.dictionaries(st.text(), s),
        )
    )
)
def test_what_json_holds_comes_back_as_what_it_was(values: list[Any]) -> None:
    """Tuples in tuples, lists and dicts too, as arguments and as fields: `error.args` is what the activity gave."""
    error = ValueError(*values)
    error.first = values[:1]  # type: ignore[attr-defined]
    error.rest = tuple(values[1:])  # type: ignore[attr-defined]

    rebuilt = through_the_journal(error)

    assert repr(rebuilt.args) == repr(error.args)
    assert repr(vars(rebuilt)) == repr(vars(error))


def test_an_error_with_too_many_tuples_keeps_its_text() -> None:
    """Where they were would be longer than what they held."""
    pairs = tuple((number, number) for number in range(2 * held_values.TUPLES_MAX))

    rebuilt = through_the_journal(ValueError(pairs, "x"))

    assert str(rebuilt) == str(ValueError(pairs, "x"))
    assert record(ValueError(pairs, "x")).tuples is None


@pytest.mark.parametrize("path", [[], [7], [0, "x", 1], ["no field"], [0, 0, 0]])
def test_a_path_that_leads_nowhere_harms_nothing(path: list[int | str]) -> None:
    """Of a damaged or forged record."""
    failure = msgspec.structs.replace(record(ValueError(["a"], 1)), tuples=[path])

    assert rebuild(failure).args == (["a"], 1)


def test_no_code_of_the_class_runs_when_it_is_rebuilt() -> None:
    """Neither `__init__` nor `__new__` nor `__setattr__`: data must not decide what is called."""
    recorded = [record(OutOfStock("apple", left=2)), record(Picky(1, 2))]
    calls.clear()

    rebuilt = [rebuild(failure) for failure in recorded]

    assert calls == []
    assert vars(rebuilt[0]) == {"item": "apple", "left": 2}


def test_fields_come_back() -> None:
    """Ours and the author's, as far as JSON holds them."""
    missing = through_the_journal(RunNotFoundError("order-7", suggestions=["order-8"]))
    data = through_the_journal(AsData(1, {"a": 2}))

    assert isinstance(missing, RunNotFoundError)
    assert missing.run_id == "order-7"
    assert isinstance(data, AsData)
    assert (data.code, data.detail) == (1, {"a": 2})


def test_the_cause_chain_is_kept() -> None:
    """`raise ... from` and what was being handled, both with their classes."""
    try:
        try:
            try:
                raise KeyError("a")
            except KeyError:
                raise OSError("b")  # noqa: B904 - the context is the point
        except OSError as error:
            raise RuntimeError("c") from error
    except RuntimeError as error:
        rebuilt = through_the_journal(error)

    assert isinstance(rebuilt.__cause__, OSError)
    assert rebuilt.__suppress_context__
    assert isinstance(rebuilt.__cause__.__context__, KeyError)


def test_a_suppressed_context_is_not_recorded() -> None:
    """`from None` means what it says."""
    try:
        try:
            raise KeyError("secret")
        except KeyError:
            raise RuntimeError("c") from None
    except RuntimeError as error:
        failure = record(error)

    assert failure.context is None
    assert failure.cause is None


def test_a_chain_that_bites_its_tail_ends() -> None:
    """An error may be its own ancestor; and there is a limit to depth."""
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    long = ValueError("0")
    for i in range(50):
        outer = ValueError(str(i))
        outer.__cause__ = long
        long = outer

    rebuilt, depth = through_the_journal(long), 0
    while rebuilt.__cause__ is not None:
        rebuilt, depth = rebuilt.__cause__, depth + 1

    assert record(first).cause is not None
    assert depth == failures.DEPTH_MAX - 1


def test_a_group_is_rebuilt_with_its_members() -> None:
    """So `except*` works; a subclass of ExceptionGroup too."""
    group = through_the_journal(Group("two", [ValueError("a"), ExceptionGroup("in", [KeyError("b")])]))

    assert type(group) is Group
    assert group.message == "two"
    assert isinstance(group.exceptions[0], ValueError)
    assert isinstance(group.exceptions[1], ExceptionGroup)
    assert isinstance(group.exceptions[1].exceptions[0], KeyError)


def test_a_group_with_a_cancellation_becomes_a_plain_group() -> None:
    """What is no Exception is never rebuilt, so an ActivityError stands for it."""
    group = through_the_journal(BaseExceptionGroup("g", [asyncio.CancelledError(), ValueError("a")]))

    assert type(group) is ExceptionGroup
    assert [type(member) for member in group.exceptions] == [ActivityError, ValueError]


def test_a_huge_group_says_what_was_left_out() -> None:
    """At most a hundred members are recorded."""
    group = through_the_journal(ExceptionGroup("g", [ValueError(i) for i in range(150)]))

    assert isinstance(group, ExceptionGroup)
    assert len(group.exceptions) == 101
    assert "50 more errors" in str(group.exceptions[-1])


def test_groups_of_groups_are_bounded() -> None:
    """A hundred to the tenth would not fit anywhere."""
    group = ExceptionGroup("g", [ValueError(i) for i in range(100)])
    for _ in range(3):
        group = ExceptionGroup("g", [ExceptionGroup("h", list(group.exceptions)) for _ in range(50)])

    assert len(msgspec.json.encode(record(group))) < 500_000


def test_a_note_names_activity_run_and_attempt() -> None:
    """Once, also when the error is recorded again on its way up."""
    once = through_the_journal(ValueError("x"), activity="charge", run_id="order-7", attempts=4)
    twice = through_the_journal(once, activity="charge", run_id="order-7", attempts=4)

    assert once.__notes__ == ["activity 'charge' of run 'order-7', attempt 4"]
    assert twice.__notes__ == once.__notes__


def test_notes_of_the_author_are_kept() -> None:
    """They are part of what the error says."""
    error = ValueError("x")
    error.add_note("while packing")

    assert through_the_journal(error).__notes__ == ["while packing"]


def test_the_traceback_is_short_and_private() -> None:
    """The innermost 20 frames, at most 8 KB, paths cut to three parts."""

    def dive(depth: int) -> None:
        if depth == 0:
            raise ValueError("deep")
        dive(depth - 1)

    try:
        dive(60)
    except ValueError as error:
        text = record(error).traceback

    assert text.count("File ") <= 20
    assert len(text) <= failures.TRACEBACK_CHARS_MAX
    assert 'raise ValueError("deep")' in text
    assert "tests/unit/test_failures.py" in text
    assert str(__file__) not in text


def test_a_class_that_cannot_be_found_is_stood_for_by_activity_error() -> None:
    """A local class, or one of a module that is not imported here."""

    class Local(Exception):
        pass

    rebuilt = through_the_journal(Local("gone"), activity="charge", run_id="order-7", attempts=2)

    assert isinstance(rebuilt, ActivityError)
    assert (rebuilt.activity, rebuilt.run_id, rebuilt.attempts) == ("charge", "order-7", 2)
    assert rebuilt.message == "gone"
    assert rebuilt.type.endswith("Local")


def test_what_stands_for_an_error_of_no_activity_names_none() -> None:
    """As of a workflow's own code, or of a cause: its text is the error's."""

    class Local(Exception):
        pass

    rebuilt = through_the_journal(Local("gone"))

    assert isinstance(rebuilt, ActivityError)
    assert rebuilt.activity == ""
    assert str(rebuilt) == f"{rebuilt.type}: gone"
    assert str(through_the_journal(SystemExit())) == "SystemExit"


def test_a_scripts_class_is_found_where_its_file_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """`__main__` there, another module here; of a `__main__` that is another script nothing is taken."""
    here, script = types.ModuleType("shop_of_test"), types.ModuleType("__main__")
    for module, file in ((here, "/srv/shop_of_test.py"), (script, "/srv/other_of_test.py")):
        module.__file__ = file
        vars(module)["Gone"] = type("Gone", (Exception,), {"__module__": module.__name__})
        monkeypatch.setitem(sys.modules, module.__name__, module)

    named = Failure(type="__main__:Gone", script="shop_of_test", message="m", args=["m"])
    assert type(rebuild(named)) is vars(here)["Gone"]

    monkeypatch.delitem(sys.modules, "shop_of_test")
    assert isinstance(rebuild(named), ActivityError)

    script.__file__ = "/srv/shop_of_test.py"
    for type_name in ("__main__:Gone", "shop_of_test:Gone"):
        assert (
            type(rebuild(Failure(type=type_name, script="shop_of_test", message="m"))) is vars(script)["Gone"]
        )
    assert record(vars(script)["Gone"]("m")).script == "shop_of_test"
    assert record(ValueError("m")).script is None


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:int",
        "builtins:KeyboardInterrupt",
        "builtins:SystemExit",
        "builtins:",
        "",
        ":",
        "antigravity:Error",
        "builtins:ValueError.__class__",
        "json:decoder.JSONDecodeError.__init__",
    ],
)
def test_only_imported_exception_classes_are_rebuilt(name: str) -> None:
    """A journal names a class; it never decides what is imported or called."""
    assert isinstance(rebuild(Failure(type=name, message="m", args=["x"])), ActivityError)
    assert "antigravity" not in sys.modules


def test_looking_up_a_class_calls_no_module_getattr() -> None:
    """A lazy module would run code of its own."""
    module = types.ModuleType("lazy_module_of_test")
    asked: list[str] = []
    module.__getattr__ = asked.append  # type: ignore[method-assign, assignment]
    sys.modules["lazy_module_of_test"] = module
    try:
        assert failures.find_class("lazy_module_of_test:Boom") is None
    finally:
        del sys.modules["lazy_module_of_test"]

    assert asked == []


def test_a_class_that_changed_shape_still_comes_back() -> None:
    """Recorded fields that the class no longer has do no harm."""
    failure = msgspec.structs.replace(record(Slotted(3)), fields={"code": 3, "renamed": 1}, args=[1, 2, 3])

    assert isinstance(rebuild(failure), Slotted)


def test_a_hostile_error_is_recorded_all_the_same() -> None:
    """Recording never raises, whatever __str__ and friends do."""
    failure = record(Hostile("x"))

    assert "SystemExit" in failure.message
    assert type(rebuild(failure)) is Hostile


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError("c"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        ValueError("\ud800"),
        ValueError("x" * 10**6),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_can_be_recorded(error: BaseException) -> None:
    """Those that are no Exception, too; they come back as ActivityError."""
    rebuilt = through_the_journal(error)

    assert isinstance(rebuilt, Exception)
    assert len(msgspec.json.encode(record(error))) < 200_000


def test_a_cyclic_argument_is_left_out() -> None:
    """The text remains."""
    cyclic: list[Any] = []
    cyclic.append(cyclic)

    rebuilt = through_the_journal(ValueError(cyclic))

    assert str(rebuilt) == "[[...]]"


def test_non_retryable_is_recorded() -> None:
    """Also for subclasses; a worker that lacks the class must know."""

    class Final(NonRetryableError):
        pass

    assert record(Final("x")).non_retryable
    assert not record(ValueError("x")).non_retryable


def test_a_failure_is_described_in_one_line() -> None:
    """Class name and message, without module."""
    assert describe(record(RuntimeError("no\n  stock"))) == "RuntimeError: no stock"
    assert describe(record(Outer.Inner())) == "Inner"


def test_a_failure_that_is_too_large_keeps_its_text() -> None:
    """What errors held besides goes first, then causes and members; classes and messages stay."""
    held = ValueError(*(f"{i}" + "x" * 60_000 for i in range(1)))
    group = ExceptionGroup("many", [ValueError(f"{i}: " + "x" * 30_000) for i in range(20)])
    held.__cause__ = group

    failure = record(held)
    assert len(msgspec.json.encode(failure)) <= FAILURE_BYTES_MAX
    assert failure.type == "builtins:ValueError"
    assert failure.cause is None
    assert "too large to record" in failure.message
    assert isinstance(rebuild(failure), ValueError)


def test_arguments_of_many_causes_are_left_out_before_the_causes() -> None:
    """Their text tells nearly as much."""
    error: BaseException = KeyError("first")
    for number in range(8):
        after = RuntimeError(f"number {number}", "x" * 40_000)
        after.__cause__ = error
        error = after

    failure = record(error)
    assert len(msgspec.json.encode(failure)) <= FAILURE_BYTES_MAX
    assert failure.args is None or failure.cause is None
    assert str(rebuild(failure)).startswith("('number 7', 'xx") or "number 7" in failure.message


def test_arguments_nested_too_deeply_are_left_out() -> None:
    """A journal row that held them could not be read."""
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    failure = record(ValueError(deep))

    assert failure.args is None or "[[[" in failure.args[0]
    msgspec.json.decode(msgspec.json.encode(failure), type=Failure)
