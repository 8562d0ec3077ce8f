"""A small fuzzer guided by coverage: it changes inputs, keeps those that reached something new, and changes these again.

New is a line of the library (seen by `sys.monitoring`, before Python 3.12 by a trace function), or another wording of a
refusal: much of the decoding is C, where no line is seen, but what it refuses it names. One seed gives one sequence of inputs.

Nothing may be executed by what is decoded: an audit hook notes imports, files, processes, sockets and compiled code.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

LIBRARY: Final = str(Path(__file__).parents[2] / "durable")
BYTES_MAX: Final = 20_000
KEPT_MAX: Final = 400
# What data must never bring about.
FORBIDDEN: Final = (
    "exec",
    "compile",
    "open",
    "import",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "pickle.",
)
TOKENS: Final = (
    b"null", b"true", b"0", b"-1", b"1e308", b"1" * 40, b'""', b"[]", b"{}", b'"\\ud800"', b'"\\u0000"', b"\xff", b"\x00",
    b"NaN", b'"$type"', b'{"__reduce__":["os.system","id"]}', b'"builtins:SystemExit"', b'"builtins:KeyboardInterrupt"',
    b'"subprocess:Popen"', b'"os:_exit"', b'"builtins:eval"', b'"builtins:BaseException"', b'"asyncio.exceptions:CancelledError"',
    b'"e"', b'"v"', b'"op"', b'"completed"', b'"continued_as_new"', b"\xd5\x9b\x01", b"\xd5\x9b\x02999999999999999999", b"[" * 3000,
    b"!!python/object/apply:os.system", b"\x80\x04\x95", b"durable-sealed:AAAA",
)  # fmt: skip
VALUES: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 2**31, 2**63, -(2**63), 2**64, 1.5, 1e308, "", "x", "\u0000", "\u202e", "a" * 5000, [], {}, [[]], {"": None},
    {"$type": "Card"}, "builtins:SystemExit", "builtins:eval", "subprocess:Popen", "os:_exit", "builtins:ExceptionGroup", "2026-99-99T",
)  # fmt: skip

_seen: set[Any] = set()
_executed: list[str] = []
_is_watching = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _is_watching and event.startswith(FORBIDDEN) and event != "os.putenv":
        _executed.append(f"{event} {str(args)[:200]}")


def _trace(frame: FrameType, event: str, arg: object) -> Any:
    if not frame.f_code.co_filename.startswith(LIBRARY):
        return None
    _seen.add((frame.f_code.co_filename, frame.f_lineno))
    return _trace


def _line(code: CodeType, number: int) -> Any:
    if code.co_filename.startswith(LIBRARY):
        _seen.add((code.co_filename, number))
    return sys.monitoring.DISABLE  # type: ignore[attr-defined]  # once is enough


@contextmanager
def watched() -> Iterator[list[str]]:
    """Note the library's lines that run, and what is executed though nothing should be."""
    global _is_watching
    _executed.clear()
    if not getattr(sys, "durable_fuzz_audit", False):
        sys.addaudithook(_audit)
        sys.durable_fuzz_audit = True  # type: ignore[attr-defined]  # hooks stay for ever: one suffices
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is not None:
        monitoring.use_tool_id(4, "durable-fuzz")
        monitoring.register_callback(4, monitoring.events.LINE, _line)
        monitoring.set_events(4, monitoring.events.LINE)
    before = sys.gettrace()
    _is_watching = True
    if monitoring is None:
        sys.settrace(_trace)
    try:
        yield _executed
    finally:
        _is_watching = False
        if monitoring is None:
            sys.settrace(before)
        else:
            monitoring.set_events(4, 0)
            monitoring.free_tool_id(4)


class Fuzzer:
    """Inputs from `seeds`, each a change of one that was worth keeping."""

    def __init__(self, seeds: Sequence[bytes], *, seed: int) -> None:
        self.random = random.Random(seed)
        self.kept = [*seeds]
        self.known: set[Any] = set()

    def next(self) -> bytes:
        data = self.random.choice(self.kept)
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 8))):
            data = self._changed(data)
        return data[:BYTES_MAX]

    def learn(self, data: bytes, refusal: str) -> None:
        """Keep an input after which something new has been seen."""
        _seen.add(re.sub(r"[\d'\"`$].*", "", refusal)[:60])
        if not _seen <= self.known:
            self.known |= _seen
            self.kept.append(data)
            del self.kept[KEPT_MAX:]
        _seen.clear()

    def _changed(self, data: bytes) -> bytes:
        chance = self.random
        if chance.random() < 0.5:
            try:
                return json.dumps(self._other_value(json.loads(data)), separators=(",", ":")).encode()
            except (ValueError, RecursionError):
                pass  # no JSON any more: bytes then
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 1, 2, 8, 64)))
        match chance.randrange(6):
            case 0:
                return data[:at] + bytes((chance.randrange(256),)) + data[end:]
            case 1:
                return data[:at] + chance.choice(TOKENS) + data[at:]
            case 2:
                return data[:at] + chance.choice(TOKENS) + data[end:]
            case 3:
                return data[:at] + data[end:]
            case 4:
                return data[:at] + data[at:end] * chance.choice((2, 3, 40)) + data[end:]
            case _:
                other = chance.choice(self.kept)
                return data[:at] + other[chance.randrange(len(other) + 1) :]

    def _other_value(self, tree: Any) -> Any:
        """Change one place of a JSON tree."""
        chance = self.random
        if isinstance(tree, dict) and tree and chance.random() < 0.9:
            key = chance.choice([*tree])
            match chance.randrange(8):
                case 0:
                    return {name: value for name, value in tree.items() if name != key}
                case 1:
                    return {**tree, chance.choice([*tree, "zz", ""]): chance.choice([*VALUES, tree[key]])}
                case _:
                    return {**tree, key: self._other_value(tree[key])}
        if isinstance(tree, list) and tree and chance.random() < 0.9:
            at = chance.randrange(len(tree))
            match chance.randrange(8):
                case 0:
                    return tree[:at] + tree[at + 1 :]
                case 1:
                    return [*tree[:at], tree[at], *tree[at:]]
                case _:
                    return [*tree[:at], self._other_value(tree[at]), *tree[at + 1 :]]
        return chance.choice(VALUES)


def fuzz(
    decode: Callable[[bytes], object],
    seeds: Sequence[bytes],
    *,
    allowed: tuple[type[Exception], ...],
    times: int,
    seed: int,
) -> int:
    """Decode `times` changed inputs; raise AssertionError, with the input, for any other error than those `allowed`.

    Returns how many inputs were worth keeping.
    """
    fuzzer = Fuzzer(seeds, seed=seed)
    for data in seeds:
        with suppress(*allowed):
            decode(data)  # whatever is resolved at the first use, now
    for _ in range(times):
        data = fuzzer.next()
        refusal = ""
        with watched() as executed:
            try:
                decode(data)
            except allowed as error:
                refusal = f"{type(error).__name__}: {error}"
            except BaseException as error:
                raise AssertionError(f"{type(error).__name__}: {error}\nfor {data!r}") from error
        assert not executed, f"{executed}\nfor {data!r}"
        fuzzer.learn(data, refusal)
    return len(fuzzer.kept) - len(seeds)
