"""Real time, chance, threads, files, sockets and processes inside a workflow raise `WorkflowGuardError`.

Theory. Such a call answers differently when it is replayed. Two layers see it; neither swaps or imports anything anew:

- one audit hook of the interpreter sees what touches the world: files, sockets, processes, thread starts. It can never be
  removed, so it does nothing but a dict lookup for all other events;
- on Python 3.12 and later, `sys.monitoring` shows the calls that the author's own code makes: clocks, chance, ids. A call
  site that is found harmless is not looked at again, which makes the layer nearly free. The price: a site that calls
  several things in turn (`read()` with `read = time.time` the second time) is judged by the first.

Nothing is armed and disarmed: a guard applies while *this thread's* running loop is a run's own loop, which is exactly
during an activation. Activities, other threads and the worker itself are therefore never affected (P27).

What no layer sees: calls made by C code or by installed libraries on the author's behalf, clocks and chance on 3.11, traffic on
connections that are open already. Replay finds the consequences. Knows nothing of journals or stores.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import sysconfig
from asyncio.events import _get_running_loop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, Final

from durable.engine.loop import DeterministicLoop
from durable.errors import WorkflowGuardError

TOOL_IDS: Final = (3, 4)  # of sys.monitoring: the ones nobody else has by convention
WATCHED_MAX: Final = 20_000

_CLOCK: Final = "use durable.now()"
_CHANCE: Final = "use durable.random()"
_IDS: Final = "use durable.uuid4()"
_SECRETS: Final = (
    "make secrets in an @activity; where any random value will do, use durable.random() or durable.uuid4()"
)
_SLEEP: Final = "use `await durable.sleep()`, a durable timer"
_FILES: Final = "use files in an @activity and return what they held"
_ENVIRONMENT: Final = "the environment belongs to the process, not to the run: change it outside of workflows"
_NETWORK: Final = "use the network in an @activity"
_PROCESSES: Final = "use processes in an @activity"
_THREADS: Final = "call a plain `def` @activity, which runs in a thread"
_DATABASE: Final = "use databases in an @activity"
_PERSON: Final = "wait for a signal: see durable.Signal"

# Events of the interpreter's audit -> what to do instead. https://docs.python.org/3/library/audit_events.html
_EVENTS: Final = {
    **dict.fromkeys(
        (
            "open",
            "mmap.__new__",
            "os.chdir",
            "os.chflags",
            "os.chmod",
            "os.chown",
            "os.link",
            "os.listdir",
            "os.lockf",
            "os.mkdir",
            "os.remove",
            "os.rename",
            "os.rmdir",
            "os.scandir",
            "os.symlink",
            "os.truncate",
            "os.utime",
            "shutil.rmtree",
            "tempfile.mkdtemp",
            "tempfile.mkstemp",
        ),
        _FILES,
    ),
    **dict.fromkeys(("os.putenv", "os.unsetenv"), _ENVIRONMENT),
    **dict.fromkeys(
        (
            "socket.__new__",
            "socket.bind",
            "socket.connect",
            "socket.getaddrinfo",
            "socket.gethostbyaddr",
            "socket.gethostbyname",
            "socket.gethostname",
            "socket.getnameinfo",
            "socket.sendmsg",
            "socket.sendto",
        ),
        _NETWORK,
    ),
    **dict.fromkeys(
        (
            "os.exec",
            "os.fork",
            "os.forkpty",
            "os.kill",
            "os.killpg",
            "os.posix_spawn",
            "os.spawn",
            "os.startfile",
            "os.system",
            "subprocess.Popen",
        ),
        _PROCESSES,
    ),
    **dict.fromkeys(("_thread.start_new_thread", "_thread.start_joinable_thread"), _THREADS),
    "sqlite3.connect": _DATABASE,
    "time.sleep": _SLEEP,
    "builtins.input": _PERSON,
}
_TITLES: Final = {
    "_thread.start_new_thread": "starting a thread",
    "_thread.start_joinable_thread": "starting a thread",
    "builtins.input": "input()",
    "mmap.__new__": "mmap()",
    "os.putenv": "setting an environment variable",
    "os.unsetenv": "removing an environment variable",
    "socket.__new__": "opening a socket",
}

# Functions by module and qualified name -> what to do instead. Named as text: nothing here calls them.
_CALLS: Final = {
    **{
        f"time.{name}{suffix}": _CLOCK
        for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")
        for suffix in ("", "_ns")
    },
    "time.sleep": _SLEEP,
    "posix.urandom": _SECRETS,
    "posix.getrandom": _SECRETS,
    "nt.urandom": _SECRETS,
    "uuid.uuid1": _IDS,
    "uuid.uuid4": _IDS,
    "uuid.uuid6": _IDS,
    "uuid.uuid7": _IDS,
    "uuid.uuid8": _IDS,
    **{
        f"secrets.{name}": _SECRETS
        for name in ("randbelow", "token_bytes", "token_hex", "token_urlsafe", "choice", "randbits")
    },
    "concurrent.futures.thread.ThreadPoolExecutor.submit": _THREADS,
    "concurrent.futures.process.ProcessPoolExecutor.submit": _PROCESSES,
}
_CLOCK_IF_BARE: Final = ("time.localtime", "time.gmtime", "time.ctime", "time.asctime")
_DATE_CLOCKS: Final = ("now", "utcnow", "today")

_STDLIB: Final = os.path.dirname(os.__file__) + os.sep
_OURS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES: Final = (
    "<frozen ",
    _OURS,
    *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)
# Frames that may open files on whoever's behalf: imports, tracebacks, logging, time zones, finalizers, debuggers.
_EXEMPT: Final = (
    "<frozen importlib",
    "<frozen zipimport",
    *(
        _STDLIB + name.replace("/", os.sep)
        for name in (
            "bdb.py",
            "importlib/",
            "linecache.py",
            "logging/",
            "pdb.py",
            "traceback.py",
            "warnings.py",
            "weakref.py",
            "zoneinfo/",
        )
    ),
)
_OURS_EXEMPT: Final = tuple(_OURS + name for name in (f"engine{os.sep}", f"payloads{os.sep}", "failures.py"))

_logger: Final = logging.getLogger("durable.engine")
_unguarded: Final[ContextVar[bool]] = ContextVar("durable_unguarded", default=False)

# Facts about this process, the same for every run and thread. Code objects are kept, so that an id stays theirs.
_watched: Final[dict[int, CodeType]] = {}
_modules: Final[set[str]] = set()
_packages: Final[set[str]] = set()
_tools: Final[list[int]] = []  # our id in sys.monitoring, once there is one
_installed: Final[list[bool]] = []


@contextmanager
def unguarded() -> Iterator[None]:
    """Let the code inside touch what guards refuse; for code that is known to give the same answers in every replay.

    Reading a file that never changes is such a case, a memo of a pure function another. It holds for the current task, across
    awaits, and for tasks that are created inside. Outside of workflows it does nothing.
    """
    token = _unguarded.set(True)
    try:
        yield
    finally:
        try:
            _unguarded.reset(token)
        except ValueError:
            pass  # the coroutine was not run to its end, but collected: its context is gone


def install() -> None:
    """Install the layers, once per process; cheap when it was done."""
    if _installed:
        return
    _installed.append(True)
    sys.addaudithook(_audit)
    sys.unraisablehook = free_to_show(sys.unraisablehook)
    if sys.version_info < (3, 12):
        _guard_thread_starts()
    else:
        _take_tool()


def free_to_show(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """Return the hook for errors that nobody can be told of, unguarded: the interpreter's own opens the source, and from C.

    Such an error is some finalizer's, and may be met in the middle of any run.
    """

    @functools.wraps(hook)
    def show(unraisable: Any) -> object:
        with unguarded():
            return hook(unraisable)

    return show


def watch(fn: Callable[..., Any]) -> None:
    """Watch the calls that a workflow makes, and its module's other functions. Cheap when it was done."""
    code = getattr(fn, "__code__", None)
    if not _tools or code is None or id(code) in _watched:
        return
    _packages.add((fn.__module__ or "").partition(".")[0])
    _watch_function(fn)


def _refuse(loop: DeterministicLoop, call: str, instead: str, frame: FrameType) -> None:
    identity = loop.runtime.identity
    source = loop.source(_calling(frame))
    place = f" ({source})" if source else ""
    fault = WorkflowGuardError(
        f"{call} in workflow {identity.workflow!r}{place}: {instead}",
        run_id=identity.run_id,
        call=call,
        source=source,
        instead=instead,
    )
    loop.on_guard(fault)  # also if the author's code swallows it
    raise fault


def _calling(innermost: FrameType) -> FrameType:
    """Return the frame that called into the standard library, or the innermost one."""
    frame: FrameType | None = innermost
    while frame is not None and frame.f_code is not _BOUNDARY:
        if not frame.f_code.co_filename.startswith(("<frozen ", "<string>", _STDLIB)):
            return frame
        frame = frame.f_back
    return innermost


# ─ the audit hook: what touches the world ────────────────────────────────────


def _audit(event: str, args: tuple[Any, ...]) -> None:
    # Called for everything that the interpreter audits, id() included: the first line is all that most events cost.
    if event not in _EVENTS:
        return
    loop = _get_running_loop()
    if isinstance(loop, DeterministicLoop) and not _unguarded.get():
        frame = sys._getframe(1)
        if not _is_exempt(frame) and not _is_time_zone(event, args):
            _refuse(loop, _title(event, args), _EVENTS[event], frame)


def _is_time_zone(event: str, args: tuple[Any, ...]) -> bool:
    """Whether C code of `zoneinfo` reads its data, on behalf of `ZoneInfo(...)`."""
    zones = sys.modules.get("zoneinfo")
    return (
        zones is not None
        and event == "open"
        and isinstance(args[0], str)
        and args[0].startswith(tuple(path + os.sep for path in zones.TZPATH))
    )


def _title(event: str, args: tuple[Any, ...]) -> str:
    if event == "open" and args and isinstance(args[0], str | bytes | os.PathLike):
        return f"open({os.fspath(args[0])!r})"
    return _TITLES.get(event) or f"{event}()"


def _is_exempt(innermost: FrameType) -> bool:
    """Whether the interpreter, logging or this library acts here, rather than the author's code."""
    frame: FrameType | None = innermost
    is_inside_author = False
    while frame is not None:
        code = frame.f_code
        if code is _BOUNDARY:
            return False
        name = code.co_filename
        if (
            name.startswith(_EXEMPT) or code.co_name == "__del__"
        ):  # a collection may run anybody's finalizer here
            return True
        if not is_inside_author:
            if name.startswith(_OURS_EXEMPT):
                return True
            is_inside_author = not name.startswith(("<frozen ", _STDLIB))
        frame = frame.f_back
    return False


_BOUNDARY: Final = DeterministicLoop.drain.__code__


def _guard_thread_starts() -> None:
    """Python 3.11 audits no thread start: ask at the door of `threading` instead."""
    thread_class: Any = sys.modules["threading"].Thread  # `logging` has imported it
    plain = thread_class.start

    @functools.wraps(plain)
    def start(self: Any) -> None:
        loop = _get_running_loop()
        if isinstance(loop, DeterministicLoop) and not _unguarded.get():
            frame = sys._getframe(1)
            if not _is_exempt(frame):
                _refuse(loop, "starting a thread", _THREADS, frame)
        plain(self)

    thread_class.start = start


# ─ sys.monitoring: what the author's code calls ──────────────────────────────

_monitoring: Final[Any] = getattr(sys, "monitoring", None)
_DISABLE: Final[Any] = getattr(_monitoring, "DISABLE", None)
_MISSING: Final[Any] = getattr(_monitoring, "MISSING", None)


def _take_tool() -> None:
    for tool in TOOL_IDS:
        if _monitoring.get_tool(tool) is None:
            _monitoring.use_tool_id(tool, "durable")
            _monitoring.register_callback(tool, _monitoring.events.CALL, _on_call)
            _tools.append(tool)
            return
    _logger.info("no free tool id in sys.monitoring: clocks and chance inside workflows are not guarded")


def _on_call(code: CodeType, offset: int, called: Any, first: Any) -> Any:
    found = _forbidden(called, first)
    if found is None:
        # Something new of the author's: the site may call yet another thing next time.
        return None if _follow(called) else _DISABLE
    loop = _get_running_loop()
    if isinstance(loop, DeterministicLoop) and not _unguarded.get():
        frame = sys._getframe(1)
        if not _is_exempt(frame):
            _refuse(loop, *found, frame)
    return None


def _forbidden(called: Any, first: Any) -> tuple[str, str] | None:
    """Return what is called, as the author would write it, and what to do instead; None for what is harmless."""
    kind = type(called)
    if kind is BuiltinFunctionType:
        return _forbidden_builtin(called, first)
    if kind is MethodType:
        called, first = called.__func__, called.__self__
        kind = type(called)
    if kind is FunctionType or kind is MethodDescriptorType:
        chance = sys.modules["random"]
        if first is getattr(chance, "_inst", chance):
            return f"random.{called.__name__}()", _CHANCE
        if issubclass(type(first), chance.SystemRandom):
            return f"SystemRandom.{called.__name__}()", _SECRETS
        if kind is FunctionType:
            name = f"{called.__module__}.{called.__qualname__}"
            return (f"{name}()", _CALLS[name]) if name in _CALLS else None
        return None
    if kind is type and called.__module__ == "random":
        if called.__name__ == "Random" and (first is _MISSING or first is None):
            return "random.Random() without a seed", "seed it from durable.random()"
        if called.__name__ == "SystemRandom":
            return "random.SystemRandom()", _SECRETS
    return None


def _forbidden_builtin(called: Any, first: Any) -> tuple[str, str] | None:
    owner, name = called.__self__, called.__name__
    if owner is None or isinstance(owner, ModuleType):
        full = f"{called.__module__}.{name}"
        if full in _CALLS:
            return f"{full.replace('posix.', 'os.').replace('nt.', 'os.')}()", _CALLS[full]
        if full in _CLOCK_IF_BARE and first is _MISSING:
            return f"{full}()", _CLOCK
    elif isinstance(owner, type):
        if name in _DATE_CLOCKS and issubclass(owner, date):
            return f"{owner.__name__}.{name}()", _CLOCK
    elif owner is getattr(sys.modules["random"], "_inst", None):
        return f"random.{name}()", _CHANCE
    return None


def _follow(called: Any) -> bool:
    """Watch what is called as well, if the author wrote it; return whether that was news."""
    kind = type(called)
    if kind is MethodType:
        called = called.__func__
    elif issubclass(kind, type):
        if _is_authors(called, None):
            _watch_class(called)
        return False
    elif kind is not FunctionType:
        called = getattr(kind, "__call__", None)  # noqa: B004  # an object of the author's that can be called
    if (
        type(called) is FunctionType
        and id(called.__code__) not in _watched
        and _is_authors(called, called.__code__)
    ):
        _watch_function(called)
        return True
    return False


def _is_authors(value: Any, code: CodeType | None) -> bool:
    module = value.__module__
    if not isinstance(module, str):
        return False
    if module.partition(".")[0] in _packages:
        return True
    file = code.co_filename if code else getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not file.startswith(_LIBRARIES)


def _watch_function(fn: Any) -> None:
    _watch_code(fn.__code__)
    inner = getattr(fn, "__wrapped__", None)
    if isinstance(inner, FunctionType):
        _watch_code(inner.__code__)
    # The rest of its module too, since a call site once found harmless is not looked at again. Not activities, which are
    # objects of another class: their bodies may call what they like.
    module = fn.__globals__
    name = module.get("__name__")
    if isinstance(name, str) and name not in _modules:
        _modules.add(name)
        for value in list(module.values()):
            kind = type(value)  # not isinstance(): that would wake proxies
            if kind is FunctionType and value.__module__ == name:
                _watch_code(value.__code__)
            elif issubclass(kind, type) and value.__module__ == name:
                _watch_class(value)


def _watch_class(cls: type) -> None:
    for value in list(vars(cls).values()):
        kind = type(value)
        if kind is classmethod or kind is staticmethod:
            parts = [value.__func__]
        elif kind is property:
            parts = [value.fget, value.fset, value.fdel]
        elif kind is functools.cached_property:
            parts = [value.func]
        else:
            parts = [value]
        for part in parts:
            if type(part) is FunctionType:
                _watch_code(part.__code__)


def _watch_code(code: CodeType) -> None:
    if id(code) in _watched or code.co_filename.startswith(_OURS):
        return
    if len(_watched) >= WATCHED_MAX:
        _watched.clear()
    _watched[id(code)] = code
    _monitoring.set_local_events(_tools[0], code, _monitoring.events.CALL)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _watch_code(constant)
