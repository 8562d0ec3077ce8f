"""What code this is: a text that changes when the code of a workflow may have changed (P13).

It covers the source of all loaded modules of the workflow's top-level package, the engine's version and Python's. Too wide rather
than too narrow: another fingerprint costs a parked run one try. Knows nothing of runs.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

from durable.definitions import WorkflowDefinition
from durable.journal.turns import ENGINE_VERSION

CHARACTERS: Final = 12


class Fingerprints:
    """The fingerprints of one worker's code, each made once: code does not change under a running process."""

    def __init__(self) -> None:
        self._by_package: dict[str, str] = {}

    def of(self, definition: WorkflowDefinition) -> str:
        """Return the fingerprint of the code behind a workflow."""
        package = (definition.fn.__module__ or "").partition(".")[0]
        if package not in self._by_package:
            self._by_package[package] = _fingerprint(package)
        return self._by_package[package]


def _fingerprint(package: str) -> str:
    digest = sha256(f"{ENGINE_VERSION} {sys.version_info[:2]}".encode())
    for name, module in sorted(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            digest.update(name.encode())
            digest.update(_source(getattr(module, "__file__", None)))
    return digest.hexdigest()[:CHARACTERS]


def _source(path: str | None) -> bytes:
    try:
        return Path(path).read_bytes() if path is not None else b""
    except OSError:
        return b""
