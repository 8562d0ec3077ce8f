"""What holds a run back, in words: its own pause, its task queue's, or that of every worker that serves it. Reads nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec

from durable.journal import view
from durable.payloads.codec import shown_text
from durable.store.records import PauseRecord, RunRecord


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """One pause that keeps a run from going on. `name`: of the task queue or worker; empty if it is the run's own."""

    name: str
    text: str
    since: datetime


def hold_of(
    record: RunRecord, pauses: Sequence[PauseRecord], now_us: int, *, serving: Collection[str] = ()
) -> Hold | None:
    """Return the first pause that holds an open run back; `serving`: the names of the living workers that serve it."""
    if record.status.is_closed:
        return None
    if record.paused_at_us is not None:
        return _hold("", "paused", record.paused_at_us, record.pause_reason, now_us)
    for pause in pauses:
        if pause.kind == "task_queue" and pause.name == record.task_queue:
            return _of(pause, f'queue "{pause.name}" is paused', now_us)
    of_workers = {pause.name: pause for pause in pauses if pause.kind == "worker"}
    if record.owner is None and serving and all(name in of_workers for name in serving):
        last = max((of_workers[name] for name in serving), key=lambda pause: pause.at_us)
        return _of(last, f"every worker that serves it is paused ({last.name})", now_us)
    return None


def _of(pause: PauseRecord, what: str, now_us: int) -> Hold:
    return _hold(pause.name, what, pause.at_us, pause.reason, now_us)


def _hold(name: str, what: str, at_us: int, reason: str | None, now_us: int) -> Hold:
    ago = view.duration_text(max(0, now_us - at_us) / 1_000_000)
    text = f"{what} {ago} ago" + (f": {shown_text(reason)}" if reason else "")
    return Hold(name=name, text=text, since=view.instant(at_us))
