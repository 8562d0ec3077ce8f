"""A run as it can be carried away: all that a replay needs, in memory or as JSON. `durable show ID --events -o json` prints it.

In JSON events are numbered and named, instants are ISO 8601; reading it back gives the very entries. Knows nothing of stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Self

import msgspec

from durable.definitions import LOCAL_TASK_QUEUE
from durable.errors import UndecodableError
from durable.journal.events import AnyEntry
from durable.journal.view import instant
from durable.seams import EPOCH

VERSION: Final = 1
_INSTANTS: Final = ("at", "due")
_DURATION: Final = "duration"
_entries: Final = msgspec.json.Decoder(tuple[AnyEntry, ...])


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same in memory and in JSON."""

    run_id: str
    workflow: str
    version: int
    generation: int
    epoch: int
    task_queue: str
    status: str


class RecordedRun(_Head, frozen=True, kw_only=True):
    """One generation of a run with its whole journal. `input` is its JSON; `status` what the run was when it was read."""

    input: bytes
    events: tuple[AnyEntry, ...]

    @property
    def is_local(self) -> bool:
        """Whether its code is in the memory of one script only, e.g. in closures: nothing else can replay it."""
        return self.task_queue == LOCAL_TASK_QUEUE

    def to_data(self) -> dict[str, Any]:
        """Return it as plain JSON data, events numbered from 1; raise `UndecodableError` if its input is not JSON."""
        data = msgspec.structs.asdict(self)
        try:
            data["input"] = msgspec.json.decode(self.input)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UndecodableError(f"run {self.run_id!r}: its stored input is not JSON: {error}") from None
        data["events"] = self.shown_events()
        return {"v": VERSION, **data}

    def shown_events(self) -> list[dict[str, Any]]:
        """Return its events as plain JSON data, numbered from 1."""
        return [_shown(number, entry) for number, entry in enumerate(self.events, 1)]

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return msgspec.json.encode(self.to_data()).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return what `to_json` wrote; raise `UndecodableError` for anything else."""
        try:
            data = msgspec.json.decode(text, type=dict[str, Any])
            if data.get("v") != VERSION:
                raise ValueError(f"v is {data.get('v')!r}, not {VERSION}")
            events = [_entry(event) for event in data["events"]]
            fields = {key: value for key, value in data.items() if key in _PLAIN}
            head = msgspec.convert(fields, _Head)
            return cls(
                **msgspec.structs.asdict(head),
                input=msgspec.json.encode(data["input"]),
                events=_entries.decode(msgspec.json.encode(events)),
            )
        except (
            msgspec.DecodeError,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise UndecodableError(
                f"this is no recorded run ({type(error).__name__}: {error}); "
                "`durable show ID --events -o json` prints one"
            ) from None


class UnreadableRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run whose journal cannot be read, and why."""

    run_id: str
    workflow: str
    reason: str


_PLAIN: Final = frozenset(_Head.__struct_fields__)


def _shown(number: int, entry: AnyEntry) -> dict[str, Any]:
    """Return one journal entry for programs: numbered, its instants in ISO 8601, durations named by their unit."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(entry))
    shown: dict[str, Any] = {"number": number, "event": data.pop("e")}
    for key, value in data.items():
        if key in _INSTANTS:
            shown[key] = instant(value).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        elif key == _DURATION:
            shown["duration_us"] = value
        else:
            shown[key] = value
    return shown


def _entry(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored form of what `_shown` returned."""
    data: dict[str, Any] = {"e": shown["event"]}
    for key, value in shown.items():
        if key in _INSTANTS:
            data[key] = (datetime.fromisoformat(value) - EPOCH) // timedelta(microseconds=1)
        elif key == "duration_us":
            data[_DURATION] = value
        elif key not in ("number", "event"):
            data[key] = value
    return data
