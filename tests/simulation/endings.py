"""What must hold once all is over: of each run and its children, by their journals, by what was acknowledged, and by the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from durable.payloads.codec import is_sealed
from tests.simulation import listening
from tests.simulation.codec import looked_at
from tests.simulation.node import START_US
from tests.simulation.programs import LIFE, complaint

if TYPE_CHECKING:
    from tests.simulation.checker import Checker
    from tests.simulation.clients import Errand
    from tests.simulation.simulation import Simulation

HEALED_SECONDS = 15.0  # after the last fault: timers may be late until then
PAYLOADS = (
    "SELECT run, data FROM payload UNION ALL SELECT run, data FROM journal WHERE length(data) > 0"
    " UNION ALL SELECT run, input FROM run_payload WHERE input IS NOT NULL"
    " UNION ALL SELECT run, result FROM run_payload WHERE result IS NOT NULL"
    " UNION ALL SELECT run, failure FROM run_payload WHERE failure IS NOT NULL"
)
ENDS = ("Completed", "Failed", "Cancelled", "Terminated", "TimedOut")
COMPLETED, CANCELLED, CONTINUED = 10, 12, 15  # statuses, as they are stored


class Endings:
    """The verdict on everything that has ended."""

    def __init__(self, simulation: Simulation, checker: Checker) -> None:
        self._simulation = simulation
        self._checker = checker
        self._query, self._fail = checker.query, checker.fail

    def check(self, errands: Sequence[Errand]) -> None:
        for errand in errands:
            self._check_errand(errand)
        for pk, run_id, generation, status in self._query(
            "SELECT id, run_id, generation, status FROM run WHERE parent IS NOT NULL"
        ):
            self._check_child(pk, run_id, generation, status)
        for pk, run_id, generation in self._query(
            "SELECT id, run_id, generation FROM run WHERE has_children = 1"
        ):
            for one in range(1, generation + 1):
                self._check_answers(run_id, [entry for _, entry in self._checker.entries(pk, one)])
        if self._simulation.codec is not None:
            self._check_seals()

    def _check_errand(self, errand: Errand) -> None:
        rows = self._query("SELECT id, generation, status FROM run WHERE run_id = ?", errand.run_id)
        if not rows:
            if errand.is_started and self._checker.pruned.isdisjoint(errand.pks):
                self._fail("I2", f"the start of {errand.run_id} was acknowledged, but there is no such run")
            return
        pk, generation, status = rows[0]
        if any(found != pk and found not in self._checker.pruned for found in errand.pks):
            self._fail("I10", f"starts of {errand.run_id} were told of runs {errand.pks}, it is {pk}")
        end, everything = self._check_journals(pk, errand.run_id, generation, status, errand.is_lossy)
        is_heard = end not in (None, "Terminated", "TimedOut") and not errand.is_lossy
        sent = {name: range(0) for name in ("chatter", *errand.letters)}
        if is_heard:
            sent["chatter"] = range(errand.chatter_stored)
            for name in errand.letters:
                sent[name] = [
                    n for n, one in enumerate(errand.letters[: errand.signals_stored]) if one == name
                ]
        for name, stored in sent.items():
            self._check_signals(errand, name, everything, stored)
        if errand.listens:
            self._check_early(pk, errand, generation, end)
        self._check_read_again(pk, errand.run_id, generation, is_heard=is_heard)

    def _check_journals(
        self, pk: int, run_id: str, generation: int, status: int, is_lossy: bool = False
    ) -> tuple[str | None, list[Any]]:
        """Check what holds of any run; return the name of its end, and the entries of all its generations."""
        everything = []
        for one in range(1, generation + 1):
            told = [entry for _, entry in self._checker.entries(pk, one)]
            self._check_timers(run_id, told)
            self._check_attempts(pk, run_id, one, told)
            everything.extend(told)
        entries = [entry for _, entry in self._checker.entries(pk, generation)]
        ends = [entry for entry in entries if type(entry).__name__ in ENDS]
        if (status >= 10) != (len(ends) == 1) or len(ends) > 1 or (ends and entries[-1] is not ends[0]):
            self._fail("I15", f"{run_id} has status {status} and ends {ends}")
        end = type(ends[0]).__name__ if ends else None
        if end not in (None, "Terminated", "TimedOut") and not is_lossy:
            self._check_sagas(run_id, entries, end)
        messages = [e.msg for e in entries if type(e).__name__ in ("SignalReceived", "CancelRequested")]
        if len(messages) != len(set(messages)) or messages != sorted(messages):
            self._fail("I2", f"{run_id}: messages in the order {messages}")
        return end, everything

    def _check_attempts(self, pk: int, run_id: str, generation: int, entries: list[Any]) -> None:
        """I3: what was recorded is what came of the last attempt that was begun."""
        ((epoch,),) = self._query(
            "SELECT epoch FROM run WHERE id = ? AND generation = ?"
            " UNION ALL SELECT epoch FROM generation WHERE run = ? AND generation = ?",
            pk,
            generation,
            pk,
            generation,
        )
        keys: dict[int, str] = {}
        for entry in entries:
            match type(entry).__name__:
                case "ScheduleActivity":
                    keys[entry.op] = f"{run_id}@{epoch}/{entry.name}#{entry.n}"
                case "ActivityCompleted" if entry.op in keys:
                    bodies = self._checker.bodies.get((keys[entry.op], generation), ())
                    if bodies and max(body.attempt for body in bodies) != entry.attempts:
                        begun = [(body.attempt, body.node) for body in bodies]
                        self._fail(
                            "I3",
                            f"{keys[entry.op]}: attempt {entry.attempts} is recorded, begun were {begun}",
                        )

    # ─ children ──

    def _check_child(self, pk: int, run_id: str, generation: int, status: int) -> None:
        """I16: a child does as its plan says; who closes takes along those that wait for ever, and leaves alone who may stay."""
        end, _ = self._check_journals(pk, run_id, generation, status)
        ((workflow, sealed),) = self._query(
            "SELECT workflow, input FROM run JOIN whole_payload ON whole_payload.run = run.id AND"
            " whole_payload.generation = run.generation WHERE run.id = ?",
            pk,
        )
        self._simulation.features[f"child {workflow} {end}"] += 1
        for (parent,) in self._query("SELECT parent FROM child WHERE run = ?", pk):
            if run_id not in self._asked_by(parent):
                self._fail("I16", f"{run_id} was started, and no turn of its parent asks for it")
        allowed = {
            "life": ("Completed", "Cancelled"),
            "fails": ("Failed", "Cancelled"),
            "waits_for_ever": ("Cancelled",),
            "left_alone": ("Completed",),
            "Heeds": ("Completed", "Cancelled"),
        }[workflow]
        if end not in allowed:
            self._fail("I16", f"child {run_id} of {workflow} ended as {end}")
        if end == "Completed":
            plan = msgspec.json.decode(looked_at(sealed))["plan"]
            ((result,),) = self._query(
                "SELECT result FROM whole_payload WHERE run = ? AND generation = ?", pk, generation
            )
            model = listening.complaint if workflow == "Heeds" else complaint
            if (text := model(plan, msgspec.json.decode(looked_at(result)))) is not None:
                self._fail("I16", f"child {run_id} {plan}: {text}")

    def _asked_by(self, parent: int) -> set[str]:
        """Return the children that any generation of a run has asked for."""
        ((last,),) = self._query("SELECT generation FROM run WHERE id = ?", parent)
        entries = [e for one in range(1, last + 1) for _, e in self._checker.entries(parent, one)]
        return {entry.run_id for entry in entries if type(entry).__name__ == "StartChild"}

    def _check_answers(self, run_id: str, entries: list[Any]) -> None:
        """I16: each child that was asked for is there; its parent was told once how it ended, and that is how it ended."""
        children: dict[int, str] = {}
        told: set[int] = set()
        for entry in entries:
            name = type(entry).__name__
            if name == "StartChild":
                children[entry.op] = entry.run_id
                if not self._query("SELECT 1 FROM run WHERE run_id = ?", entry.run_id):
                    self._fail("I16", f"{run_id} has asked for {entry.run_id}, and there is no such run")
            elif name in ("ActivityCompleted", "ActivityFailed") and entry.op in children:
                if entry.op in told:
                    self._fail("I16", f"{run_id} was told twice how {children[entry.op]} ended")
                told.add(entry.op)
                if name == "ActivityCompleted" and bytes(entry.result) not in self._results(
                    children[entry.op]
                ):
                    self._fail("I16", f"{run_id} was told {entry.result!r} of {children[entry.op]}")

    def _results(self, run_id: str) -> list[bytes]:
        return [
            looked_at(result)
            for (result,) in self._query(
                "SELECT result FROM run JOIN whole_payload ON whole_payload.run = run.id"
                " WHERE run_id = ? AND result IS NOT NULL",
                run_id,
            )
        ]

    def _check_seals(self) -> None:
        """With a codec nothing is stored that has not passed it, but what the store itself writes."""
        for run, data in self._query(PAYLOADS):
            if not is_sealed(data) and b'"worker":0,' not in data:
                self._fail("P21", f"a payload of run {run} is stored in clear: {data[:80]!r}")

    def _check_sagas(self, run_id: str, entries: list[Any], end: str | None) -> None:
        """I7: a scope that came to its end is not undone; of any other, what was recorded is, in reverse."""
        booked: dict[int, str] = {}
        undoing: dict[int, str] = {}
        done: dict[str, list[str]] = {}
        undone: dict[str, list[str]] = {}
        whole = {e.name.removeprefix("saga ") for e in entries if type(e).__name__ == "Noted"}
        for entry in entries:
            match type(entry).__name__:
                case "ScheduleActivity" if entry.name in ("book", "book/compensation"):
                    ops = booked if entry.name == "book" else undoing
                    ops[entry.op] = msgspec.json.decode(entry.args)["key"]
                case "ActivityCompleted" if entry.op in booked:
                    done.setdefault(booked[entry.op].split("/")[0], []).append(booked[entry.op])
                case "ActivityCompleted" if entry.op in undoing:
                    undone.setdefault(undoing[entry.op].split("/")[0], []).append(undoing[entry.op])
        for scope in {*done, *undone}:
            steps = done.get(scope, [])
            is_whole = scope in whole or (scope == "" and end == "Completed")
            if undone.get(scope, []) != ([] if is_whole else steps[::-1]):
                self._fail("I7", f"{run_id}, saga {scope!r}: done {steps}, undone {undone.get(scope, [])}")

    def _check_signals(self, errand: Errand, name: str, entries: list[Any], stored: Sequence[int]) -> None:
        """Over all generations: a message that a retry keeps or takes back is the same one, by its number."""
        by_number = {
            e.msg: int(bytes(e.value))
            for e in entries
            if type(e).__name__ == "SignalReceived" and e.name == name
        }
        received = [
            value for _, value in sorted(by_number.items()) if value // LIFE == errand.of_life(0) // LIFE
        ]
        if received != sorted(set(received)):
            self._fail("I2", f"{errand.run_id} received the signals {name} {received}")
        if lost := [value for value in map(errand.of_life, stored) if value not in received]:
            self._fail("I2", f"{errand.run_id}: signals {name} {lost} were acknowledged and never delivered")

    def _check_read_again(self, pk: int, run_id: str, generation: int, *, is_heard: bool) -> None:
        """I2: what a failed attempt of a workflow had read is read by the next one, again or as what was kept of its journal."""
        journals = [
            [entry for _, entry in self._checker.entries(pk, one)] for one in range(1, generation + 1)
        ]
        ends = dict(self._query("SELECT generation, status FROM generation WHERE run = ?", pk))
        later: set[int] = set()
        for one in reversed(range(1, generation + 1)):
            entries = journals[one - 1]
            read = {entry.msg for entry in entries if type(entry).__name__ == "SignalReceived"}
            is_retried = ends.get(one) == CONTINUED and type(entries[-1]).__name__ == "Failed"
            if is_retried and type(journals[one][-1]).__name__ in ("Terminated", "TimedOut"):
                is_retried = False  # the store ended that life, with what was still to be read again
            if is_retried and is_heard and not read <= later:
                self._fail("I2", f"{run_id}: generation {one} had read {read - later}, its retry has not")
            if ends.get(one) == CONTINUED and not is_retried and read & later:
                self._simulation.features["told too late to be read"] += 1
            later |= read

    def _check_early(self, pk: int, errand: Errand, generation: int, end: str | None) -> None:
        """What was there when a run was first taken was given to its handlers before its first step, and nothing else was."""
        entries = [entry for _, entry in self._checker.entries(pk, generation)]
        if not entries or type(entries[0]).__name__ != "Started" or errand.workflow is listening.hears:
            return
        there = self._checker.leading.get((pk, generation), 0)
        if entries[0].early < there:
            self._fail(
                "I2", f"{errand.run_id} began before {there - entries[0].early} signals that were there"
            )
        received = [
            entry for entry in entries if type(entry).__name__ in ("SignalReceived", "UpdateReceived")
        ]
        early = [entry for entry in received[: entries[0].early] if entry.name in listening.LETTERS]
        if end != "Completed" or any(type(entry).__name__ == "Retried" for entry in entries):
            return
        if early:
            self._simulation.features["told before the first step"] += 1
        before = [
            value
            for _, value, has_begun, part in errand.result["told"]
            if part == errand.result["part"] and not has_begun
        ]
        if before != [int(bytes(entry.value)) for entry in early]:
            self._fail("I2", f"{errand.run_id} was told {before} before its first step, not {early}")

    def _is_late(self, due_us: int, at_us: int) -> bool:
        simulation = self._simulation
        if simulation.healed_at is None or not simulation.is_roomy or not simulation.is_punctual:
            return False
        well_us = START_US + round((simulation.healed_at + HEALED_SECONDS) * 1_000_000)
        return at_us - max(due_us, well_us) > 5_000_000

    def _check_timers(self, run_id: str, entries: list[Any]) -> None:
        """I6: by the clock that fed it, no timer fires before it is due."""
        due: dict[int, int] = {}
        since = 0  # a retry keeps timers whose time had come in the attempt that failed
        for entry in entries:
            match type(entry).__name__:
                case "StartTimer":
                    due[entry.op] = entry.due
                case "Retried":
                    since = entry.at
                case "TimerFired" if entry.at < due[entry.op]:
                    self._fail("I6", f"{run_id}: timer {entry.op} fired {due[entry.op] - entry.at} us early")
                case "TimerFired" if self._is_late(max(due[entry.op], since), entry.at):
                    self._fail("I6", f"{run_id}: timer {entry.op} fired {entry.at - due[entry.op]} us late")
