"""What a forked child does with inherited stores: it marks them unusable and leaves their files alone.

A child that closed, or let the garbage collector close, an inherited SQLite connection could disturb its parent, so they are
kept until the child ends. Only copies of `flock` descriptors are closed: such a lock lives as long as any copy does.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Inherited(Protocol):
    def abandon(self) -> None:
        """Become unusable: the process was forked, and this is the child."""
        ...


# Process-wide by nature: a fork copies every store of the process.
_open: Final[weakref.WeakSet[Inherited]] = weakref.WeakSet()
_kept: Final[list[Inherited]] = []
_installed: Final[list[bool]] = []


def track(resource: Inherited) -> None:
    """Have `resource` abandoned in every child forked from now on."""
    if not _installed:
        _installed.append(True)
        os.register_at_fork(after_in_child=_abandon_all)
    _open.add(resource)


def forget(resource: Inherited) -> None:
    _open.discard(resource)


def _abandon_all() -> None:
    for resource in list(_open):
        _kept.append(resource)
        resource.abandon()
    _open.clear()
