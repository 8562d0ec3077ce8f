"""Exceptions <-> recorded failures; the cause chain is kept.

A failure is rebuilt without calling user code: the class is looked up among imported modules only, must be an
`Exception` subclass, and is made by the built-in `__new__` and `__init__` it derives from, with the journaled JSON
arguments; its fields are put back past any `__setattr__`. Otherwise `ActivityError` stands for it. Recording does call
the error's own `__str__`, and survives whatever that does.

Knows nothing of type hints, activities or stores. Borrowed: Temporal's rule that a failure is data (type, message,
stack text, cause), and that a receiver without the class still gets all of it.
"""

from __future__ import annotations

import base64
import collections
import itertools
import linecache
import sys
import traceback
from collections.abc import Sequence
from types import MemberDescriptorType, ModuleType, TracebackType
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from durable.errors import ActivityError, NonRetryableError
from durable.held_values import Path, as_json_array, encode, is_same, kept_fields, tuple_paths, with_tuples
from durable.limits import FAILURE_BYTES_MAX
from durable.scripts import modules_known_as, public_name

E = TypeVar("E", bound=BaseException)

DEPTH_MAX: Final = 10
GROUP_MAX: Final = 100
FAILURES_MAX: Final = 500  # in one record: groups of groups would otherwise multiply
FRAMES_MAX: Final = 20
TRACEBACK_CHARS_MAX: Final = 8 * 1024
TEXT_CHARS_MAX: Final = 32 * 1024

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, not by C


class Failure(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An exception as the journal keeps it. `type` is `module:qualname`; `args` JSON values, or None.

    `tuples` says where in `args` and `fields` there were tuples (`held_values.py`).
    `fields` are the instance's attributes that JSON can hold. `verbatim`: `args` holds the text of the one argument's
    repr, because the argument itself cannot be stored (`KeyError` shows the repr of its key). `errors` are the attributes that
    hold errors themselves, one or a list. `script` is the public name of the class's module, where that is another (`scripts.py`).
    """

    type: str
    message: str
    script: str | None = None
    args: list[Any] | None = None
    fields: dict[str, Any] | None = None
    tuples: list[Path] | None = None
    verbatim: bool = False
    traceback: str = ""
    cause: Failure | None = None
    context: Failure | None = None
    group: list[Failure] | None = None
    errors: dict[str, Failure | list[Failure]] | None = None
    non_retryable: bool = False
    activity: str | None = None
    run_id: str | None = None
    attempts: int = 0


def record(
    error: BaseException, *, activity: str | None = None, run_id: str | None = None, attempts: int = 0
) -> Failure:
    """Return the error as data. Never raises; what of it cannot be stored is left out.

    `activity`, `run_id` and `attempts` (from 1) say whose error it is: the rebuilt one carries them as a note.
    """
    failure = _fitting(_record(error, 0, set()))
    return msgspec.structs.replace(failure, activity=activity, run_id=run_id, attempts=attempts)


def rebuild(failure: Failure) -> BaseException:
    """Return the recorded error as an instance of its own class, or `ActivityError` where that is impossible."""
    error = _rebuild_alone(failure)
    if failure.errors is not None:
        _restore_errors(error, failure.errors)
    cause = None if failure.cause is None else rebuild(failure.cause)
    context = None if failure.context is None else rebuild(failure.context)
    if cause is not None:
        _set(error, "__cause__", cause)
    if context is not None:
        _set(error, "__context__", context)
    if failure.activity is not None:
        _add_note(error, _origin(failure))
    return error


def describe(failure: Failure) -> str:
    """Return one line for people, e.g. `RuntimeError: no stock`."""
    name = failure.type.rpartition(":")[2].rpartition(".")[2]
    message = " ".join(failure.message.split())
    return f"{name}: {message}" if message else name


# ─ recording ─────────────────────────────────────────────────────────────────


def _fitting(failure: Failure) -> Failure:
    """Return the failure with less of it, until it is no larger than `FAILURE_BYTES_MAX`: what is least missed goes first."""
    for shorten in (_unchanged, _without_values, _without_others):
        shorter = shorten(failure)
        if len(encode(shorter)) <= FAILURE_BYTES_MAX:
            return shorter
    return shorter


def _unchanged(failure: Failure) -> Failure:
    return failure


def _without_values(failure: Failure) -> Failure:
    """Leave out what errors held besides their text; their classes are then rebuilt from that."""
    return msgspec.structs.replace(
        failure,
        args=None,
        fields=None,
        tuples=None,
        verbatim=False,
        cause=None if failure.cause is None else _without_values(failure.cause),
        context=None if failure.context is None else _without_values(failure.context),
        group=None if failure.group is None else [_without_values(member) for member in failure.group],
        errors=None,
    )


def _without_others(failure: Failure) -> Failure:
    """Leave out causes and members."""
    note = "\n(causes and members of this error were too large to record)"
    return msgspec.structs.replace(
        _without_values(failure),
        message=failure.message + note,
        cause=None,
        context=None,
        group=None if failure.group is None else [],
    )


def _record(error: BaseException, depth: int, seen: set[int]) -> Failure:
    seen.add(id(error))
    cls = type(error)  # asked instead of the error: isinstance() would consult a hostile __class__
    message = _text(error)
    attributes = _attributes(error)
    fields = kept_fields(attributes)
    tuples = tuple_paths({name: attributes[name] for name in fields}) or []
    arguments = _arguments(error, message, with_tuples(fields, tuples))
    tuples += arguments.tuples or ()
    return Failure(
        type=_type_name(cls),
        message=message,
        script=_script(cls),
        args=arguments.args,
        fields=fields or None,
        tuples=tuples or None,
        verbatim=arguments.verbatim,
        traceback=_traceback_text(_get(error, "__traceback__")),
        cause=_related(_get(error, "__cause__"), depth, seen),
        context=None
        if _get(error, "__suppress_context__")
        else _related(_get(error, "__context__"), depth, seen),
        group=_members(_group(error), depth, seen) if issubclass(cls, BaseExceptionGroup) else None,
        errors=_held(error, fields, depth, seen),
        non_retryable=issubclass(cls, NonRetryableError),
    )


def _related(error: BaseException | None, depth: int, seen: set[int]) -> Failure | None:
    if error is None or id(error) in seen or depth + 1 >= DEPTH_MAX or len(seen) >= FAILURES_MAX:
        return None
    return _record(error, depth + 1, seen)


def _group(error: BaseException) -> Sequence[BaseException]:
    members: tuple[BaseException, ...] = BaseExceptionGroup.__dict__["exceptions"].__get__(error)
    return members


def _held(
    error: BaseException, fields: dict[str, Any] | None, depth: int, seen: set[int]
) -> dict[str, Failure | list[Failure]] | None:
    """Record the errors that an error holds in its attributes, beside its cause."""
    held: dict[str, Failure | list[Failure]] = {}
    for name, value in _attributes(error).items():
        if fields is not None and name in fields:
            continue
        if _is_error(value):
            one = _related(value, depth, seen)
            if one is not None:
                held[name] = one
        elif type(value) in (list, tuple) and value and all(map(_is_error, value)):
            held[name] = _members(value, depth, seen)
    return held or None


def _is_error(value: object) -> bool:
    return issubclass(type(value), BaseException)


def _members(members: Sequence[BaseException], depth: int, seen: set[int]) -> list[Failure]:
    recorded = [_related(member, depth, seen) for member in members[:GROUP_MAX]]
    failures = [failure for failure in recorded if failure is not None]
    if len(failures) < len(members):
        left_out = f"{len(members) - len(failures)} more errors of this group were not recorded"
        failures.append(Failure(type=f"{__name__}:NotRecorded", message=left_out))
    return failures


def _text(error: BaseException) -> str:
    try:
        text = str(error)
        text = text[:TEXT_CHARS_MAX] if len(text) > TEXT_CHARS_MAX else text
        return _storable(str.__str__(text))
    except KeyboardInterrupt:
        raise
    except BaseException as fault:  # a hostile __str__ may raise anything
        return f"<its text is lost: __str__ raised {_name(type(fault), '__qualname__')}>"


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _type_name(cls: type) -> str:
    return f"{_name(cls, '__module__')}:{_name(cls, '__qualname__')}"


def _script(cls: type) -> str | None:
    module = _name(cls, "__module__")
    name = _storable(public_name(module))
    return None if name == module else name


def _name(cls: type, attribute: str) -> str:
    value = type.__getattribute__(cls, attribute)
    return _storable(value) if isinstance(value, str) else "?"


class _Arguments(NamedTuple):
    """The arguments of an error as they are recorded; `verbatim`: as the text of the repr of one."""

    args: list[Any] | None
    verbatim: bool = False
    tuples: list[Path] | None = None


def _arguments(error: BaseException, message: str, fields: dict[str, Any] | None) -> _Arguments:
    """Return the arguments as JSON values.

    Not every argument survives JSON as it was. Of the forms at hand we take the first whose rebuilt error reads as the
    original did; failing that, what JSON makes of the arguments.
    """
    given = _given(error)
    if issubclass(type(error), BaseExceptionGroup):
        return _Arguments(as_json_array(given[:1]))  # the members are recorded as failures of their own
    args = as_json_array(given)
    tuples = None if args is None else tuple_paths(given)
    plain = _Arguments(args, tuples=tuples)
    cls = type(error)
    if find_class(_type_name(cls)) is not cls or (tuples is not None and is_same(args, given)):
        return plain
    for one in (plain, _Arguments([message]), _Arguments([message], verbatim=True)):
        if one.args is not None and _reads_as(cls, one, fields, message):
            return one
    return plain


def _given(error: BaseException) -> list[Any]:
    if issubclass(type(error), OSError):  # keeps the file names elsewhere; its own reduce puts them back
        try:
            return list(OSError.__reduce__(error)[1])
        except Exception:
            return list(_get(error, "args"))
    return list(_get(error, "args"))


def _reads_as(
    cls: type[BaseException], arguments: _Arguments, fields: dict[str, Any] | None, message: str
) -> bool:
    try:
        args = with_tuples(arguments.args or [], arguments.tuples)
        return _text(_instance(cls, args, arguments.verbatim, fields)) == message
    except Exception:
        return False


def _attributes(error: BaseException) -> dict[str, Any]:
    try:
        fields = dict(object.__getattribute__(error, "__dict__"))
    except Exception:
        fields = {}
    for name, slot in _slots(type(error)).items():
        try:
            fields[name] = slot.__get__(error)
        except AttributeError:
            continue  # an unset slot
    # An unprintable name could hold a lone surrogate, which would spoil the whole record.
    return {name: value for name, value in fields.items() if type(name) is str and name.isprintable()}


def _slots(cls: type) -> dict[str, MemberDescriptorType]:
    return {
        name: member
        for base in reversed(cls.__mro__)
        if _is_heap_type(base)
        for name, member in base.__dict__.items()
        if isinstance(member, MemberDescriptorType)
    }


def _traceback_text(tb: TracebackType | None) -> str:
    if tb is None:
        return ""
    try:
        innermost = collections.deque(traceback.walk_tb(tb), maxlen=FRAMES_MAX)
        frames = [
            traceback.FrameSummary(
                _short_path(frame.f_code.co_filename),
                line,
                frame.f_code.co_qualname,
                line=linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip(),
            )
            for frame, line in innermost
        ]
        lines = list(itertools.chain.from_iterable(f.splitlines() for f in traceback.format_list(frames)))
        return _last_lines(_storable("\n".join(lines)))
    except Exception:
        return ""


def _last_lines(text: str) -> str:
    if len(text) <= TRACEBACK_CHARS_MAX:
        return text
    return "  ...\n" + text[-TRACEBACK_CHARS_MAX + 6 :].partition("\n")[2]


def _short_path(path: str) -> str:
    parts = path.replace("\\", "/").split("/")
    is_absolute = path.startswith(("/", "\\")) or path[1:3] in (":\\", ":/")
    return "/".join(part for part in parts[-3:] if part) if is_absolute else path


# ─ rebuilding ────────────────────────────────────────────────────────────────


class _Verbatim(str):
    """Stands for an argument that could not be stored: reads as that argument's repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str.__str__(self)


def find_class(type_name: str, script: str | None = None) -> type[Exception] | None:
    """Return the exception class `module:qualname` if its module is imported already. Imports nothing.

    `script`: the public name of that module, which may be called otherwise here.
    """
    module_name, _, qualname = type_name.partition(":")
    if script is None or public_name(module_name) == script:
        found = _class_in(sys.modules.get(module_name), qualname)
        if found is not None:
            return found
    others = (_class_in(module, qualname) for module in modules_known_as(script or module_name))
    return next((cls for cls in others if cls is not None), None)


def _class_in(module: ModuleType | None, qualname: str) -> type[Exception] | None:
    found: Any = module
    for part in qualname.split("."):
        # Through the raw namespace: a module's or a metaclass's __getattr__ would be user code.
        if isinstance(found, ModuleType):
            found = object.__getattribute__(found, "__dict__").get(part)
        elif isinstance(found, type):
            found = type.__dict__["__dict__"].__get__(found).get(part)
        else:
            return None
    if isinstance(found, type) and Exception in type.__dict__["__mro__"].__get__(found):
        return found
    return None


def _rebuild_alone(failure: Failure) -> BaseException:
    try:
        if failure.group is not None:
            return _rebuild_group(failure, [rebuild(member) for member in failure.group])
        cls = find_class(failure.type, failure.script)
        if cls is not None and not issubclass(cls, BaseExceptionGroup):
            args = [failure.message] if failure.args is None else failure.args
            fields = with_tuples(failure.fields, failure.tuples)
            return _instance(cls, with_tuples(args, failure.tuples), failure.verbatim, fields)
    except Exception:
        pass  # the class has changed, or is stranger than we can tell: the stand-in says the same
    return _stand_in(failure)


def _rebuild_group(failure: Failure, members: list[BaseException]) -> BaseException:
    cls = find_class(failure.type, failure.script)
    inner = [
        m if isinstance(m, Exception) else _stand_in(f)
        for m, f in zip(members, failure.group or (), strict=True)
    ]
    title = failure.args[0] if failure.args and isinstance(failure.args[0], str) else failure.message
    if cls is not None and issubclass(cls, ExceptionGroup):
        try:
            group = BaseExceptionGroup.__new__(cls, title, inner)
            _restore(group, with_tuples(failure.fields, failure.tuples))
            return group
        except Exception:
            pass  # a plain group holds the same errors
    return ExceptionGroup(title, inner)


def _stand_in(failure: Failure) -> ActivityError:
    module, _, qualname = failure.type.partition(":")
    return ActivityError(
        failure.message,
        activity=failure.activity or "",
        type=qualname if module == "builtins" else f"{module}.{qualname}",
        attempts=failure.attempts,
        run_id=failure.run_id,
    )


def _instance(cls: type[E], args: list[Any], verbatim: bool, fields: dict[str, Any] | None) -> E:
    """Return an instance made by the built-in class underneath, so that no code of `cls` runs."""
    base: Any = cls
    while _is_heap_type(base):
        base = type.__dict__["__base__"].__get__(base)
    given: list[Any] = [_Verbatim(arg) for arg in args] if verbatim else list(args)
    if base is UnicodeDecodeError:  # the one built-in that insists on bytes, which JSON holds as base64
        given[1] = base64.b64decode(given[1])
    error: E = base.__new__(cls, *given)
    base.__init__(error, *given)
    _restore(error, fields)
    return error


def _restore(error: BaseException, fields: dict[str, Any] | None) -> None:
    if fields is None:
        return
    slots = _slots(type(error))
    for name, value in fields.items():
        if name in slots:
            slots[name].__set__(error, value)
        else:
            object.__getattribute__(error, "__dict__")[name] = value


def _restore_errors(error: BaseException, errors: dict[str, Failure | list[Failure]]) -> None:
    try:
        rebuilt = {
            name: [rebuild(one) for one in held] if isinstance(held, list) else rebuild(held)
            for name, held in errors.items()
        }
        _restore(error, rebuilt)
    except Exception:
        pass  # a slot that takes no such value: the rest of the error says enough


def _origin(failure: Failure) -> str:
    run = f" of run {failure.run_id!r}" if failure.run_id is not None else ""
    return f"activity {failure.activity!r}{run}, attempt {failure.attempts}"


def _add_note(error: BaseException, note: str) -> None:
    attributes = object.__getattribute__(error, "__dict__")
    notes = attributes.get("__notes__")
    notes = list(notes) if isinstance(notes, (list, tuple)) else []
    if note not in notes:
        attributes["__notes__"] = [*notes, note]


# ─ past the class's own attribute access ─────────────────────────────────────


def _get(error: BaseException, name: str) -> Any:
    return BaseException.__dict__[name].__get__(error)


def _set(error: BaseException, name: str, value: BaseException) -> None:
    BaseException.__dict__[name].__set__(error, value)


def _is_heap_type(cls: type) -> bool:
    return bool(type.__dict__["__flags__"].__get__(cls) & _HEAP_TYPE)
