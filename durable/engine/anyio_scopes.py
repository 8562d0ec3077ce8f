"""Two classes that others create and hash by address, given a stable hash inside runs.

anyio keeps nested cancel scopes in sets, and `asyncio.gather` returns a future of its own class (P26). Both are replaced
by subclasses that hash to a creation number while a run's loop is running, and by identity otherwise. anyio is a moving
target: what does not look as expected is left alone, with a warning.
"""

from __future__ import annotations

import asyncio
import math
import warnings
from typing import Any, Final, NoReturn

from durable.engine.loop import DeterministicLoop
from durable.errors import DefinitionError

_MARK: Final = "_durable_hashed"
_installed: Final[list[bool]] = []
_tasks: Final[Any] = asyncio.tasks  # what is replaced there is private, hence unknown to type checkers


def _next_hash(one: object) -> int:
    loop = asyncio._get_running_loop()
    return loop.next_hash() if isinstance(loop, DeterministicLoop) else object.__hash__(one)


def install() -> None:
    """Replace both classes, once per process; cheap when it was done."""
    if _installed:
        return
    _installed.append(True)
    if not hasattr(_tasks._GatheringFuture, _MARK):
        _install_gathering()
    try:
        from anyio._backends import _asyncio as backend
    except ImportError:
        warnings.warn("anyio cannot be imported: anyio code inside workflows is not replayable", stacklevel=3)
        return
    if not hasattr(backend.CancelScope, _MARK):
        try:
            _install_scope(backend)
        except (AttributeError, TypeError, AssertionError) as error:
            warnings.warn(
                f"this version of anyio is unknown to durable ({error!r}): nested cancel scopes inside workflows may be "
                f"cancelled in another order in replay",
                stacklevel=3,
            )


def _install_gathering() -> None:
    class GatheringFuture(_tasks._GatheringFuture):  # type: ignore[misc]  # of an unknown class
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._durable_hashed = _next_hash(self)
            super().__init__(*args, **kwargs)

        def __hash__(self) -> int:
            return self._durable_hashed

        _durable_hashed = 0

    GatheringFuture.__name__ = GatheringFuture.__qualname__ = "_GatheringFuture"
    _tasks._GatheringFuture = GatheringFuture


def _install_scope(backend: Any) -> None:
    plain = backend.CancelScope

    class CancelScope(plain):  # type: ignore[misc,valid-type]  # of an unknown class
        __slots__ = ("_durable_hashed",)

        def __init__(self, deadline: float = math.inf, shield: bool = False) -> None:
            self._durable_hashed = _next_hash(self)
            super().__init__(deadline=deadline, shield=shield)

        def __hash__(self) -> int:
            return self._durable_hashed

    CancelScope.__name__ = CancelScope.__qualname__ = plain.__name__
    CancelScope.__module__ = plain.__module__
    _check_shape(CancelScope)
    backend.CancelScope = CancelScope
    _refuse_threads(backend)


def _check_shape(scope_class: Any) -> None:
    scope = scope_class(deadline=math.inf, shield=True)
    assert scope.shield, "shield is not kept"
    assert isinstance(scope._child_scopes, set), "child scopes are not in a set"
    assert isinstance(scope._tasks, set), "tasks are not in a set"
    assert callable(scope._deliver_cancellation), "cancellation is delivered by other means"
    assert {scope: 1}[scope] == 1, "the hash is not used"


def _refuse_threads(backend: Any) -> None:
    """Make `anyio.to_thread.run_sync` an error inside runs; its result could never be delivered to them."""
    backend_class = backend.AsyncIOBackend
    plain = backend_class.run_sync_in_worker_thread.__func__

    async def run_sync_in_worker_thread(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(asyncio._get_running_loop(), DeterministicLoop):
            _refuse_thread()
        return await plain(cls, *args, **kwargs)

    backend_class.run_sync_in_worker_thread = classmethod(run_sync_in_worker_thread)


def _refuse_thread() -> NoReturn:
    raise DefinitionError(
        "anyio.to_thread.run_sync() inside a workflow: threads work only outside of the run; do it in an @activity "
        "(a plain `def` runs in a thread)"
    )
