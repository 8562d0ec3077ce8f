"""State machines: a table of states and events, in memory or kept in the durable database.

    door = StateMachine("shut", {"shut": {"open": "open"}, "open": {"shut": "shut"}}, machine_id="door-7")
    await door.transition("open")

Theory. A kept machine is a list of records, appended with compare-and-set: of two processes that transition from the same record,
one is written, and the other hears `StateConcurrencyError` and knows the true state. A transition goes: guard, on_exit, *written*, on_enter,
on_transition, *written that they have run*. A crash in between leaves callbacks owed; whoever uses the machine next runs them
first: at least once, in order. Inside a workflow a transition is an activity; one that is tried again finds its own record.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import durable
from durable import DurableError, Retry, make_activity
from durable.patterns import settings
from durable.patterns.running import current_run_id
from durable.patterns.state_records import (
    CallbacksRun,
    DatabaseStatePersistence,
    Moved,
    Place,
    StatePersistenceProtocol,
    StateTransition,
)

Callback = Callable[..., Any]
Table = Mapping[str, "Mapping[str, str | Transition] | Iterable[Transition]"]

# Where the transition that is under way has led, by machine: state and version. A callback that goes on to the next state moves it on;
# somebody else, who may be quicker than the callbacks, does not.
_led: Final[ContextVar[dict[str | None, tuple[str, int]]]] = ContextVar("durable_transition_led")


class StateError(DurableError):
    """The event leads nowhere from the state the machine is in. The caller's business."""

    def __init__(self, message: str, *, event: str | None = None, current_state: str | None = None) -> None:
        super().__init__(message)
        self.event = event
        self.current_state = current_state


class GuardRejectedError(StateError):
    """The transition's guard said no; nothing has changed."""


class StateConcurrencyError(StateError):
    """Somebody else moved the machine first; nothing of ours has changed. The machine knows its true state now: decide anew."""

    def __init__(
        self,
        message: str,
        *,
        event: str | None = None,
        current_state: str | None = None,
        expected_version: int = 0,
        actual_version: int = 0,
    ) -> None:
        super().__init__(message, event=event, current_state=current_state)
        self.expected_version = expected_version
        self.actual_version = actual_version


class Transition:
    """One edge: `event` leads to `target`, if `guard()` says so; then `on_transition(event, state)` is called with the new state.

    Both may be async; either may take fewer arguments.
    """

    __slots__ = ("event", "guard", "on_transition", "target")

    def __init__(
        self,
        event: str,
        target: str,
        *,
        guard: Callback | None = None,
        on_transition: Callback | None = None,
    ) -> None:
        for name, fn in (("guard", guard), ("on_transition", on_transition)):
            if fn is not None and not callable(fn):
                raise TypeError(f"{name} of transition {event!r} is something to call, not {fn!r}")
        self.event = event
        self.target = target
        self.guard = guard
        self.on_transition = on_transition

    def __repr__(self) -> str:
        return f"Transition({self.event!r}, {self.target!r})"


class StateMachine:
    """A machine in one of its states. `transitions` maps each state to its edges: `{event: target}`, or a list of `Transition`s.

    Every state is a key of `transitions` or named in `states`; ValueError for a target that is neither. Without
    `machine_id` it lives in memory. With it, it is kept: in the durable database, or in `persistence`; objects of one id, in whatever process,
    are one machine. `on_enter` and `on_exit` map states to callbacks (event, state), which may be async and may take fewer arguments.
    """

    def __init__(
        self,
        initial: str | None = None,
        transitions: Table | None = None,
        *,
        states: Iterable[str] | Table = (),
        initial_state: str | None = None,
        machine_id: str | None = None,
        persistence: StatePersistenceProtocol | None = None,
        on_enter: Mapping[str, Callback] | None = None,
        on_exit: Mapping[str, Callback] | None = None,
    ) -> None:
        if transitions is None and isinstance(states, Mapping):
            transitions = states
        first = initial if initial is not None else initial_state
        if first is None or (initial is not None and initial_state not in (None, initial)):
            raise ValueError("a state machine has one initial state: give initial= or initial_state=")
        if persistence is not None and not isinstance(persistence, StatePersistenceProtocol):
            raise TypeError(f"persistence takes a StatePersistenceProtocol, not {persistence!r}")
        if machine_id is not None and (not isinstance(machine_id, str) or not machine_id):
            raise ValueError(f"machine_id is a text that is not empty, not {machine_id!r}")
        self._edges = _edges(transitions or {}, states)
        self._on_enter = dict(on_enter or {})
        self._on_exit = dict(on_exit or {})
        for what in ({str(first): None}, self._on_enter, self._on_exit):
            for state in what:
                if state not in self._edges:
                    raise ValueError(f"{state!r} is no state of this machine: {', '.join(self._edges)}")
        self.machine_id = machine_id
        self._initial = str(first)
        self._persistence = persistence
        self._place = Place(self._initial)
        self._is_known = machine_id is None  # whether the place was read, or needs not be
        self._paying: set[int] = set()  # the transitions whose callbacks this object is running
        self._state = self._initial
        self._version = 0

    def __repr__(self) -> str:
        return f"<state machine {self.machine_id or 'in memory'}: {self._state}>"

    # ─ what a user asks ──

    @property
    def current_state(self) -> str:
        """The state, as far as this object knows: a kept machine is read at the first `transition` or `recover`."""
        return self._state

    @property
    def version(self) -> int:
        """How many transitions there were, as far as this object knows."""
        return self._version

    @property
    def states(self) -> tuple[str, ...]:
        return tuple(self._edges)

    def can_transition(self, event: str) -> bool:
        """Whether `event` leads anywhere from the current state. Guards are not asked."""
        return event in self._edges[self._state]

    async def transition(self, event: str) -> str:
        """Follow `event` and return the new state: where this move led, and its callbacks, wherever others have taken a kept machine since.

        Raises `StateError` (no such edge), `GuardRejectedError`, `StateConcurrencyError`, or what a callback raises: from on_exit
        nothing has changed then, from the others the transition stands and they are owed.
        """
        if current_run_id() is not None:
            return await self._transition_in_run(event)
        if self.machine_id is not None:
            return await self._follow_once(event)
        await self._follow(event, None)
        return self._state

    async def history(self) -> list[StateTransition]:
        """Return the transitions so far, oldest first. Inside a workflow a journaled read, unless the machine is in memory."""
        if self.machine_id is None:
            return self._place.story()
        if current_run_id() is not None:
            read = make_activity(
                self._read_story,
                name=f"{self._label}/history",
                kind="transition",
                result=list[StateTransition],
            )
            story: list[StateTransition] = await read()
            return story
        return await self._read_story()

    async def recover(self) -> str:
        """Read a kept machine, run the callbacks that a crash left owed, and return its state."""
        if self.machine_id is None:
            return self._state
        if current_run_id() is not None:
            seen: dict[str, Any] = await self._unit("recover", self._recover_apart)()
            self._is_known = True
            self._show(seen["state"], seen["version"])
            return self._state
        await self._read()
        await self._pay_all()
        return self._state

    # ─ one transition ──

    def _edge(self, place: Place, event: str) -> Transition:
        found = self._edges.get(place.state, {}).get(event)
        if found is None:
            known = ", ".join(self._edges.get(place.state, ())) or "nothing"
            raise StateError(
                f"{self._label} is {place.state!r}, from where {event!r} leads nowhere; possible: {known}",
                event=event,
                current_state=place.state,
            )
        return found

    async def _follow_once(self, event: str) -> str:
        """Follow an edge of a kept machine and return where it led.

        An attempt of an activity that is tried again finds what it did before, and is told the same, wherever the machine is by now.
        """
        key = durable.derived_run_id(f"{self.machine_id}/{event}")
        if key is not None:
            place = await self._read()
            if (number := place.ids.get(key)) is not None:
                await self._pay(number)
                return place.moves[number - 1].to_state
        elif not self._is_known:
            await self._read()
        await self._pay_first(event)
        with _noting() as led:
            await self._follow(event, key)
            return led[self.machine_id][0]

    async def _follow(self, event: str, key: str | None) -> None:
        source, version = self._place.state, self._place.version
        edge = self._edge(self._place, event)
        if edge.guard is not None and not await _call(edge.guard):
            raise GuardRejectedError(
                f"the guard of {event!r} keeps {self._label} in state {source!r}",
                event=event,
                current_state=source,
            )
        if (leave := self._on_exit.get(source)) is not None:
            await _call(leave, event, source)
        owed = [name for name, fn in self._callbacks(event, source, edge.target) if fn is not None]
        moved = Moved(
            from_state=source,
            event=event,
            to_state=edge.target,
            at=durable.now(),
            callbacks=tuple(owed),
            id=key,
        )
        await self._write(moved, version)
        await self._pay(version + 1)

    async def _write(self, moved: Moved, expected: int) -> None:
        """Append the record, unless there were other transitions since version `expected`."""
        while True:
            place = self._place
            if place.version != expected:
                raise self._conflict(moved.event, expected, place)
            if self.machine_id is None or await self._keeper.append(
                self.machine_id, moved, after=place.records
            ):
                break
            await self._read()
        place.add(moved)
        if (led := _led.get(None)) is not None:
            led[self.machine_id] = moved.to_state, place.version
        self._show(place.state, place.version)

    def _conflict(self, event: str, expected: int, place: Place) -> StateConcurrencyError:
        return StateConcurrencyError(
            f"{self._label} was moved by somebody else: it is {place.state!r} now, version {place.version}, not {expected}",
            event=event,
            current_state=place.state,
            expected_version=expected,
            actual_version=place.version,
        )

    # ─ callbacks owed ──

    def _callbacks(self, event: str, source: str, target: str) -> list[tuple[str, Callback | None]]:
        edge = self._edges.get(source, {}).get(event)
        return [
            ("on_enter", self._on_enter.get(target)),
            ("on_transition", None if edge is None else edge.on_transition),
        ]

    async def _pay(self, number: int) -> None:
        """Run the callbacks that transition `number` owes, and write down that they have run."""
        moved = self._place.owed.get(number)
        if (
            moved is None or number in self._paying
        ):  # a callback that goes on to the next state is still at it
            return
        self._paying.add(number)
        try:
            for name, fn in self._callbacks(moved.event, moved.from_state, moved.to_state):
                if name in moved.callbacks and fn is not None:
                    await _call(fn, moved.event, moved.to_state)
            await self._settle(number)
        finally:
            self._paying.discard(number)

    async def _settle(self, number: int) -> None:
        settled, place = CallbacksRun(of=number), self._place
        if self.machine_id is not None:
            while not await self._keeper.append(self.machine_id, settled, after=place.records):
                place = await self._read()
                if number not in place.owed:
                    return  # somebody else ran them, too, and was quicker to say so
        place.add(settled)

    async def _pay_all(self) -> None:
        """Run what is owed, in order, and what others come to owe meanwhile."""
        while owed := self._place.owed.keys() - self._paying:
            await self._pay(min(owed))

    async def _pay_first(self, event: str) -> None:
        """Run what a crash, or a callback that raised, left owed, before `event` is followed.

        Raises `StateConcurrencyError` if others have moved the machine meanwhile. Moves of the callbacks themselves are none of others'.
        """
        expected = self._place.version
        with _noting() as led:
            await self._pay_all()
            if self.machine_id in led:
                expected = max(expected, led[self.machine_id][1])
        if self._place.version != expected:
            raise self._conflict(event, expected, self._place)

    # ─ reading ──

    @property
    def _label(self) -> str:
        return self.machine_id or "state machine"

    @property
    def _keeper(self) -> StatePersistenceProtocol:
        if self._persistence is None:
            self._persistence = settings.state_persistence.get() or DatabaseStatePersistence()
        return self._persistence

    async def _read(self) -> Place:
        assert self.machine_id is not None, "one in memory is not read"
        place = Place(self._initial)
        for record in await self._keeper.load_transitions(self.machine_id):
            place.add(record)
        self._place = place
        self._is_known = True
        self._show(place.state, place.version)
        return place

    async def _read_story(self) -> list[StateTransition]:
        return (await self._apart()._read()).story()

    def _show(self, state: str, version: int) -> None:
        self._state = state if state in self._edges else self._initial
        self._version = version
        if state not in self._edges:
            raise StateError(f"{self._label} was left in state {state!r}, which today's code does not have")

    # ─ inside a workflow ──

    def _apart(self) -> StateMachine:
        """Return another object for the same machine: activities must not touch what the workflow sees."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._place = Place(self._initial)
        other._is_known = self.machine_id is None
        other._paying = set()
        return other

    def _unit(self, name: str, fn: Callback) -> Any:
        return make_activity(
            fn,
            name=f"{self._label}/{name}",
            kind="transition",
            retry=Retry(no_retry=StateError),
            result=dict[str, Any],
        )

    async def _transition_in_run(self, event: str) -> str:
        if self.machine_id is None:
            edge = self._edge(self._place, event)
            source = self._state
            await self._unit(event, self._follow_in_memory)(event, source)
            if self._state != source:
                raise self._conflict(event, self._version - 1, self._place)
            self._place.add(Moved(from_state=source, event=event, to_state=edge.target, at=durable.now()))
            self._show(edge.target, self._place.version)
            return self._state
        known = self._version if self._is_known else None
        try:
            seen: dict[str, Any] = await self._unit(event, self._follow_apart)(event, known)
        except StateConcurrencyError as error:
            self._is_known = True
            self._show(error.current_state or self._initial, error.actual_version)
            raise
        self._is_known = True
        self._show(seen["state"], seen["version"])
        return self._state

    async def _follow_in_memory(self, event: str, source: str) -> dict[str, Any]:
        """Do all that a transition of a machine in memory does, but for the change itself: that is the workflow's."""
        other = self._apart()
        other._place.state = source
        await other._follow(event, None)
        return {"state": other._state}

    async def _follow_apart(self, event: str, known: int | None) -> dict[str, Any]:
        other = self._apart()
        key = durable.derived_run_id(f"{self.machine_id}/{event}")
        place = await other._read()
        if key is not None and (number := place.ids.get(key)) is not None:
            await other._pay(number)
            moved = place.moves[number - 1]
            return {"state": moved.to_state, "version": number}
        if known is not None and place.version != known:
            raise other._conflict(event, known, place)
        await other._pay_first(event)
        with _noting() as led:
            await other._follow(event, key)
            state, version = led[self.machine_id]
        return {"state": state, "version": version}

    async def _recover_apart(self) -> dict[str, Any]:
        other = self._apart()
        await other._read()
        await other._pay_all()
        return {"state": other._state, "version": other._version}


@contextmanager
def _noting() -> Iterator[dict[str | None, tuple[str, int]]]:
    """Yield where the transitions of this block lead; within another such block, that one's."""
    led = _led.get(None)
    if led is not None:
        yield led
        return
    token = _led.set(led := {})
    try:
        yield led
    finally:
        _led.reset(token)


def _edges(transitions: Table, states: Iterable[str] | Table) -> dict[str, dict[str, Transition]]:
    """Return the edges by state and event. ValueError: a target that is no state, an event twice in one state."""
    edges: dict[str, dict[str, Transition]] = {str(state): {} for state in (*states, *transitions)}
    for state, listed in transitions.items():
        for edge in _listed(listed):
            if edge.target not in edges:
                raise ValueError(
                    f"transition {edge.event!r} from {state!r} leads to {edge.target!r}, which is no state: name it in states= or "
                    "as a key of transitions="
                )
            if edge.event in edges[str(state)]:
                raise ValueError(f"event {edge.event!r} has two transitions from state {state!r}")
            edges[str(state)][edge.event] = edge
    return edges


def _listed(listed: Mapping[str, str | Transition] | Iterable[Transition]) -> Iterable[Transition]:
    if not isinstance(listed, Mapping):
        yield from listed
        return
    for event, target in listed.items():
        if not isinstance(target, Transition):
            yield Transition(str(event), str(target))
        elif target.event != event:
            raise ValueError(f"{target!r} stands under another event, {event!r}")
        else:
            yield target


async def _call(fn: Callback, *args: object) -> Any:
    """Call back with as many of the arguments as `fn` takes: (event, state), the state, or none."""
    answer = fn(*args[len(args) - min(_positional(fn), len(args)) :])
    return await answer if inspect.isawaitable(answer) else answer


def _positional(fn: Callback) -> int:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return _ALL
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return _ALL
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


_ALL: Final = 2
