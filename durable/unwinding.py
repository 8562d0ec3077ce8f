"""Whether an exception that Python raises in a thread, wherever that is, would leave through every `with` and `finally` around that place.

Python 3.12 and later cover the condition of a `while` that stands directly in such a block, but not the jump back to its body
(github.com/python/cpython/issues/130279): an exception from outside that comes just there skips the block's clean-up. Python looks whether there is one at
a *check*: where a function begins, a call has returned, or a loop jumps back. A thread that waits for the interpreter's lock does so at a check, or within a
call. 3.12 raises it there, 3.13 at the next check if it waits at one, else after the call. All are known to whoever holds the lock and reads the thread's bytecode from where it is.
The lock, too, is given away at checks only; so nothing moves between a look and the raising that follows it without one.

Whether a thread waits at the check after a call or within it, only its processor time tells: at a check it waits after it has computed for a while.
"""

from __future__ import annotations

import opcode
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Final

_FORGETS: Final = sys.version_info >= (3, 12)  # the jump back of a `while`
_NEXT_CHECK: Final = sys.version_info >= (
    3,
    13,
)  # is where it is raised, not the one at which the thread waits
_INSTRUCTIONS_MAX: Final = 500  # that are looked at
_UNIT: Final = 2  # bytes
_JUDGED_SECONDS: Final = (
    0.15  # so long a thread is watched before it counts as one that waits most of the time,
)
_IDLE_SHARE: Final = 0.05  # if it computes no more than this,
_IDLE_SECONDS: Final = 0.002  # and has not since the last look
_processor_clock: Final[Callable[[int], int] | None] = getattr(time, "pthread_getcpuclockid", None)


def _numbers(*prefixes: str) -> frozenset[int]:
    return frozenset(number for name, number in opcode.opmap.items() if name.startswith(prefixes))


_CACHE: Final = opcode.opmap["CACHE"]
_EXTENDED: Final = opcode.opmap["EXTENDED_ARG"]
_JUMP_BACK: Final = opcode.opmap["JUMP_BACKWARD"]
_BACKWARD: Final = _numbers("JUMP_BACKWARD")
_FORWARD: Final = _numbers("JUMP_FORWARD")
_CONDITIONS: Final = _numbers("POP_JUMP")
_BRANCHES: Final = _CONDITIONS | _numbers("FOR_ITER", "SEND")
_LEAVES: Final = _numbers("RETURN_VALUE", "RETURN_CONST", "YIELD_VALUE")
_RAISES: Final = _numbers("RAISE_VARARGS", "RERAISE")
_CALLS: Final = frozenset(
    opcode.opmap[name] for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX") if name in opcode.opmap
)
_CHECKS: Final = _CALLS | {opcode.opmap["RESUME"], _JUMP_BACK}
# What the interpreter makes of calls whose callee it knows so well that it does not look afterwards.
_UNCHECKED: Final = frozenset(
    number
    for name, number in getattr(opcode, "_specialized_opmap", {}).items()
    if name in ("CALL_LEN", "CALL_ISINSTANCE", "CALL_LIST_APPEND", "CALL_TYPE_1")
)


class Landing:
    """Finds the moment for raising an exception in a thread. To be asked again every few milliseconds until it has found one."""

    __slots__ = ("_computed", "_since", "_waits")

    def __init__(self) -> None:
        self._since: tuple[float, float] | None = (
            None  # when it was last judged, and what it had computed by then
        )
        self._computed = 0.0  # seconds, as of the last look
        self._waits = False

    def seize(self, thread: int, raise_there: Callable[[], object], now: float) -> bool:
        """Call what raises the exception, if that meets all that is around it; else return False: a little later it may.

        `now` is monotonic, in seconds. `raise_there` is C code. A loop that may go round without a call, directly in a block to be left in order, does not get better.
        """
        frame = sys._current_frames().get(thread)
        if frame is None or not _FORGETS:
            raise_there()
            return True
        offset = frame.f_lasti
        if not _would_unwind(frame, offset) and not self._is_in_call(
            thread, frame.f_code.co_code[offset], now
        ):
            return False
        # C code calls what looks, so no check follows, as it would a call of ours.
        look: defaultdict[int, dict[int, FrameType]] = defaultdict(sys._current_frames)
        if look[0][thread] is frame and frame.f_lasti == offset:
            raise_there()
            return True
        return False  # it has moved on meanwhile

    def _is_in_call(self, thread: int, here: int, now: float) -> bool:
        """Whether a thread that is at a call is within it: it hardly computes, so it has not been made to let go of the lock.

        Only who has held the lock for some milliseconds is made to.
        """
        if here not in _CALLS or _processor_clock is None:
            return False
        computed = time.clock_gettime(_processor_clock(thread))
        lately, self._computed = computed - self._computed, computed
        if self._since is None or now - self._since[0] >= _JUDGED_SECONDS:
            before, self._since = self._since, (now, computed)
            self._waits = before is not None and computed - before[1] < _IDLE_SHARE * (now - before[0])
        return self._waits and lately < _IDLE_SECONDS


def _would_unwind(frame: FrameType, offset: int) -> bool:
    here = frame.f_code.co_code[offset]
    if here in _CHECKS and not _NEXT_CHECK:
        return is_covered(frame.f_code, offset)
    return all(is_covered(code, after) for code, after in _next_checks(frame, offset))


def is_covered(code: CodeType, offset: int) -> bool:
    """Whether an instruction has the handler that its source has: all but some jumps back have."""
    instructions = code.co_code
    if instructions[offset] != _JUMP_BACK:
        return True
    before = offset - _UNIT
    while instructions[before] in (_CACHE, _EXTENDED):
        before -= _UNIT
    return instructions[before] not in _CONDITIONS or _handler(code, before) == _handler(code, offset)


def _next_checks(frame: FrameType, offset: int) -> Iterator[tuple[CodeType, int]]:
    """Yield the checks that may come first after the instruction a thread is at, whichever branches it takes."""
    todo = [(frame, after) for after in _successors(frame.f_code, offset)]
    seen: set[tuple[FrameType, int]] = set()
    while todo and len(seen) < _INSTRUCTIONS_MAX:
        place = frame, offset = todo.pop()
        if place in seen:
            continue
        seen.add(place)
        code = frame.f_code
        number = code.co_code[offset]
        if number in _CHECKS and not _is_unchecked(code, offset):
            yield code, offset
        elif number in _LEAVES:
            if (caller := frame.f_back) is not None:
                todo += [(caller, after) for after in _successors(caller.f_code, caller.f_lasti)]
        elif number not in _RAISES:
            todo += [(frame, after) for after in _successors(code, offset)]


def _is_unchecked(code: CodeType, offset: int) -> bool:
    adaptive: bytes = getattr(code, "_co_code_adaptive", code.co_code)
    return adaptive[offset] in _UNCHECKED


def _successors(code: CodeType, offset: int) -> list[int]:
    """Return where an instruction may lead, unless it raises, or leaves its function."""
    instructions = code.co_code
    number = instructions[offset]
    after = offset + _UNIT
    while after < len(instructions) and instructions[after] == _CACHE:
        after += _UNIT
    if number in _BACKWARD:
        return [after - _argument(instructions, offset) * _UNIT]
    target = after + _argument(instructions, offset) * _UNIT
    if number in _FORWARD:
        return [target]
    return [after, target] if number in _BRANCHES else [after]


def _argument(instructions: bytes, offset: int) -> int:
    value, shift = instructions[offset + 1], 8
    while offset >= _UNIT and instructions[offset - _UNIT] == _EXTENDED:
        offset -= _UNIT
        value |= instructions[offset + 1] << shift
        shift += 8
    return value


def _handler(code: CodeType, offset: int) -> int | None:
    return next((target for start, end, target in _regions(code) if start <= offset < end), None)


def _regions(code: CodeType) -> Iterator[tuple[int, int, int]]:
    """Yield the table of exception handlers: where a region begins, where it ends, where its handler is."""
    table = iter(code.co_exceptiontable)
    while (start := _number(table)) is not None:
        length, target, _ = _number(table) or 0, _number(table) or 0, _number(table)
        yield start * _UNIT, (start + length) * _UNIT, target * _UNIT


def _number(table: Iterator[int]) -> int | None:
    """Read a number, six bits a byte, the highest first; None at the end."""
    number, goes_on = 0, True
    while goes_on:
        byte = next(table, None)
        if byte is None:
            return None
        number = number << 6 | byte & 63
        goes_on = bool(byte & 64)
    return number
