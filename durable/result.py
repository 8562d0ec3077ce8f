"""A value that says whether it worked: `Ok`, `Err` and their union `Result`.

For authors who would rather return an expected failure than raise it. Knows nothing of storage: how a result is
written down is the business of `payloads`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, Literal, Never, NoReturn, TypeAlias, TypeVar

from durable.errors import DurableError

T = TypeVar("T")
E = TypeVar("E")
T_co = TypeVar("T_co", covariant=True)
E_co = TypeVar("E_co", covariant=True)
U = TypeVar("U")
R = TypeVar("R")


class UnwrapError(DurableError):
    """`unwrap` met an `Err`, or `unwrap_err` an `Ok`. An exception held by the `Err` is `__cause__`."""

    __durable_wraps__: Final = (
        True  # a workflow that unwraps an activity's failure has failed by that activity
    )


class _Frozen:
    """Two slots' worth of immutability: not a dataclass, which the codec would store without its name."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"the truth of {type(self).__name__} is ambiguous: ask is_ok() or is_err(), or unwrap the value"
        )


class Ok(_Frozen, Generic[T_co]):
    """It worked; `value` is what came out."""

    __match_args__ = ("value",)
    __slots__ = ("value",)
    value: T_co

    def __init__(self, value: T_co) -> None:
        object.__setattr__(self, "value", value)

    def is_ok(self) -> Literal[True]:
        return True

    def is_err(self) -> Literal[False]:
        return False

    def unwrap(self) -> T_co:
        """Return the value; on an `Err`, raise `UnwrapError`."""
        return self.value

    def unwrap_err(self) -> NoReturn:
        """Return the error; on an `Ok`, raise `UnwrapError`."""
        raise UnwrapError(f"unwrap_err() on {self!r}")

    def unwrap_or(self, default: object) -> T_co:
        """Return the value, or `default` on an `Err`."""
        return self.value

    def map(self, fn: Callable[[T_co], U]) -> Ok[U]:
        """Apply `fn` to the value; an `Err` stays as it is."""
        return Ok(fn(self.value))

    def and_then(self, fn: Callable[[T_co], R]) -> R:
        """Go on with `fn`, which returns a result itself; an `Err` stays as it is."""
        return fn(self.value)

    def or_else(self, fn: Callable[[Never], object]) -> Ok[T_co]:
        """Recover an `Err` with `fn`, which returns a result itself; an `Ok` stays as it is."""
        return self

    def match(self, *, ok: Callable[[T_co], R], err: Callable[[Never], object]) -> R:
        """Return `ok(value)` or `err(error)`."""
        return ok(self.value)

    async def amap(self, fn: Callable[[T_co], Awaitable[U]]) -> Ok[U]:
        """`map` with a coroutine function."""
        return Ok(await fn(self.value))

    async def aand_then(self, fn: Callable[[T_co], Awaitable[R]]) -> R:
        """`and_then` with a coroutine function."""
        return await fn(self.value)

    async def aor_else(self, fn: Callable[[Never], Awaitable[object]]) -> Ok[T_co]:
        """`or_else` with a coroutine function."""
        return self

    def __eq__(self, other: object) -> bool:
        return self.value == other.value if isinstance(other, Ok) else NotImplemented

    def __hash__(self) -> int:
        return hash((Ok, self.value))

    def __repr__(self) -> str:
        return f"Ok({self.value!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Ok, (self.value,)


class Err(_Frozen, Generic[E_co]):
    """It did not work; `error` says why: any value, or an exception."""

    __match_args__ = ("error",)
    __slots__ = ("error",)
    error: E_co

    def __init__(self, error: E_co) -> None:
        object.__setattr__(self, "error", error)

    def is_ok(self) -> Literal[False]:
        return False

    def is_err(self) -> Literal[True]:
        return True

    def unwrap(self) -> NoReturn:
        """Return the value; on an `Err`, raise `UnwrapError`."""
        cause = self.error if isinstance(self.error, BaseException) else None
        raise UnwrapError(f"unwrap() on {self!r}") from cause

    def unwrap_err(self) -> E_co:
        """Return the error; on an `Ok`, raise `UnwrapError`."""
        return self.error

    def unwrap_or(self, default: U) -> U:
        """Return the value, or `default` on an `Err`."""
        return default

    def map(self, fn: Callable[[Never], object]) -> Err[E_co]:
        """Apply `fn` to the value; an `Err` stays as it is."""
        return self

    def and_then(self, fn: Callable[[Never], object]) -> Err[E_co]:
        """Go on with `fn`, which returns a result itself; an `Err` stays as it is."""
        return self

    def or_else(self, fn: Callable[[E_co], R]) -> R:
        """Recover an `Err` with `fn`, which returns a result itself; an `Ok` stays as it is."""
        return fn(self.error)

    def match(self, *, ok: Callable[[Never], object], err: Callable[[E_co], R]) -> R:
        """Return `ok(value)` or `err(error)`."""
        return err(self.error)

    async def amap(self, fn: Callable[[Never], Awaitable[object]]) -> Err[E_co]:
        """`map` with a coroutine function."""
        return self

    async def aand_then(self, fn: Callable[[Never], Awaitable[object]]) -> Err[E_co]:
        """`and_then` with a coroutine function."""
        return self

    async def aor_else(self, fn: Callable[[E_co], Awaitable[R]]) -> R:
        """`or_else` with a coroutine function."""
        return await fn(self.error)

    def __eq__(self, other: object) -> bool:
        return self.error == other.error if isinstance(other, Err) else NotImplemented

    def __hash__(self) -> int:
        return hash((Err, self.error))

    def __repr__(self) -> str:
        return f"Err({self.error!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Err, (self.error,)


Result: TypeAlias = Ok[T] | Err[E]
