"""`Ok`, `Err` and `Result`: failure as a value."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from durable.errors import DurableError
from durable.result import Err, Ok, Result, UnwrapError


def half(number: int) -> Result[int, str]:
    return Ok(number // 2) if number % 2 == 0 else Err(f"{number} is odd")


async def half_later(number: int) -> Result[int, str]:
    return half(number)


def test_a_result_says_which_it_is() -> None:
    """Exactly one of is_ok and is_err is true."""
    assert half(4).is_ok()
    assert not half(4).is_err()
    assert half(3).is_err()
    assert not half(3).is_ok()


def test_unwrap_gives_the_value_or_raises() -> None:
    """The error text shows the result."""
    assert half(4).unwrap() == 2
    assert half(3).unwrap_err() == "3 is odd"
    with pytest.raises(UnwrapError, match="3 is odd"):
        half(3).unwrap()
    with pytest.raises(UnwrapError, match=r"Ok\(2\)"):
        half(4).unwrap_err()
    assert issubclass(UnwrapError, DurableError)


def test_unwrap_chains_an_exception() -> None:
    """So the traceback shows what went wrong in the first place."""
    reason = RuntimeError("no stock")

    with pytest.raises(UnwrapError) as caught:
        Err(reason).unwrap()

    assert caught.value.__cause__ is reason


def test_unwrap_or_gives_the_default_for_an_error() -> None:
    """And the value otherwise."""
    assert half(4).unwrap_or(0) == 2
    assert half(3).unwrap_or(0) == 0


def test_map_and_and_then_leave_an_error_alone() -> None:
    """They go on with the value only."""
    assert half(8).map(str) == Ok("4")
    assert half(3).map(str) == Err("3 is odd")
    assert half(8).and_then(half) == Ok(2)
    assert half(6).and_then(half) == Err("3 is odd")
    assert half(5).and_then(half) == Err("5 is odd")


def test_or_else_recovers_an_error() -> None:
    """And leaves a value alone."""
    assert half(3).or_else(lambda error: Ok(len(error))) == Ok(8)
    assert half(4).or_else(lambda error: Ok(len(error))) == Ok(2)


def test_match_handles_both() -> None:
    """One function for each case; both are required."""
    said = [half(n).match(ok=lambda value: f"got {value}", err=lambda error: f"no: {error}") for n in (4, 3)]

    assert said == ["got 2", "no: 3 is odd"]


def test_results_take_part_in_match_statements() -> None:
    """`case Ok(value)` and `case Err(error)` bind what is inside."""
    match half(3):
        case Ok(value):
            pytest.fail(f"got {value}")
        case Err(error):
            assert error == "3 is odd"


async def test_the_async_variants_await_their_function() -> None:
    """amap, aand_then and aor_else do as their namesakes."""

    async def text(value: int) -> str:
        return str(value)

    async def recover(error: str) -> Result[int, str]:
        return Ok(len(error))

    assert await half(8).amap(text) == Ok("4")
    assert await half(3).amap(text) == Err("3 is odd")
    assert await half(8).aand_then(half_later) == Ok(2)
    assert await half(3).aand_then(half_later) == Err("3 is odd")
    assert await half(3).aor_else(recover) == Ok(8)
    assert await half(4).aor_else(recover) == Ok(2)


@pytest.mark.parametrize("result", [Ok(1), Ok(0), Err("x")])
def test_a_result_has_no_truth(result: Any) -> None:
    """`if result:` would be true for an error, so it raises."""
    with pytest.raises(TypeError, match="is_ok"):
        bool(result)


def test_equality_looks_at_kind_and_content() -> None:
    """And equal results hash alike."""
    assert Ok(1) == Ok(1)
    assert Ok(1) != Ok(2)
    assert Ok(1) != Err(1)
    assert Ok(1) != 1
    assert len({Ok(1), Ok(1), Err(1), Err(1)}) == 2


def test_a_result_cannot_be_changed() -> None:
    """It is a value."""
    with pytest.raises(AttributeError, match="immutable"):
        Ok(1).value = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del Err(1).error


def test_a_result_shows_its_content_and_can_be_copied() -> None:
    """`repr` reads as the call that makes it."""
    assert repr(Ok([1])) == "Ok([1])"
    assert repr(Err("no")) == "Err('no')"
    assert copy.deepcopy(Ok([1])) == Ok([1])
    assert pickle.loads(pickle.dumps(Err("no"))) == Err("no")  # noqa: S301 - our own bytes


def test_result_is_subscriptable_at_run_time() -> None:
    """So that hints can be read: Result[int, str] is Ok[int] | Err[str]."""
    assert Result[int, str] == (Ok[int] | Err[str])
