"""`crash_everywhere`: a workflow is run through once, and then again with a crash or another mishap at every place where one makes a difference.

Theory. What a crash costs an author is that activities begin again whose effect was there already. So the same workflow, struck somewhere,
must come to the same outcome and leave the same effects as undisturbed. If it does not, the activity to blame is one that began
again in that trial; one that began again in a trial which made no difference is innocent. Trials in which a single activity loses its
result name the culprit alone.

Everything is the production's, on a real SQLite file, in one thread, in virtual time, under one seed.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from durable.activities import Activity
from durable.errors import DefinitionError
from durable.messages import Sent
from durable.seams import SystemClock, seeded
from durable.testing.clock import SkippingClock
from durable.testing.environment import MEMORY
from durable.testing.lives import START_US, At, LifeStore, Observed, Strike, Subject, Trial
from durable.testing.virtual import VirtualClock, VirtualLoop
from durable.updating import Called
from durable.worker.serving import Serving
from durable.workflows import Named, Workflow

OTHER_START_US: Final = (
    START_US + 123_456_789_000_000
)  # of the second undisturbed course: whatever depends on time differs
SHOWN_MAX: Final = 5
VALUE_LENGTH_MAX: Final = 400
DEATHS: Final[tuple[At, ...]] = ("before", "after")
CLOCKS: Final[tuple[At, ...]] = ("forward", "back")
IN_BODIES: Final[tuple[At, ...]] = ("lost", "late")
_WORDS: Final[dict[At, str]] = {
    "before": "the process died before commit {number} of {of} ({what})",
    "after": "the process died after commit {number} of {of} ({what}), before anything came of it",
    "reply": "the database's reply to commit {number} of {of} ({what}) was lost",
    "lease": "the worker lost its lease before commit {number} of {of} ({what})",
    "forward": "the clock was set forward by a day before commit {number} of {of} ({what})",
    "back": "the clock was set back by a day before commit {number} of {of} ({what})",
    "lost": "the result of {body} was lost with its worker, after its effect",
    "late": "the result of {body} came late: its worker had lost its lease",
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """An activity that must not begin again as it is; or, with `activity` empty, a mishap that makes a difference by itself.

    `where` is the first place that showed it, `trials` how many did. `expected` and `found` are what differs: the outcome, or the effects.
    """

    activity: str
    source: str
    where: str
    what: str
    expected: str
    found: str
    trials: int


class CrashReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `crash_everywhere` did: `failed` of its `trials` made a difference. `compared`: of what, "outcome" or "effects"."""

    workflow: str
    seed: int
    commits: int
    activities: int
    trials: int
    failed: int
    seconds: float
    compared: tuple[str, ...]
    findings: tuple[Finding, ...]

    def text(self) -> str:
        """Return it for people."""
        head = (
            f"workflow {self.workflow!r} does not come through everything: {self.failed} of {self.trials} trials differ from the "
            f"undisturbed run (seed {self.seed})"
        )
        lines = [head, *(line for finding in self.findings[:SHOWN_MAX] for line in _told(finding))]
        if len(self.findings) > SHOWN_MAX:
            lines.append(f"  ... and {len(self.findings) - SHOWN_MAX} more in .report.findings")
        return "\n".join(lines)


class NotCrashSafeError(AssertionError):
    """A workflow did not come through everything. `report` has the findings."""

    def __init__(self, report: CrashReport) -> None:
        super().__init__(report.text())
        self.report = report


def crash_everywhere(
    workflow: Named[Any] | Serving,
    /,
    *args: object,
    effects: Callable[[], object] | None = None,
    reset: Callable[[], object] | None = None,
    mocks: Mapping[Activity[..., Any], Callable[..., Any]] | None = None,
    signals: Sequence[tuple[Sent, object]] = (),
    updates: Sequence[tuple[Called, object]] = (),
    seed: int = 0,
    trials: int = 250,
    **kwargs: object,
) -> CrashReport:
    """Run a workflow (or a pattern that stands for one) undisturbed, then again and again, each time with one mishap; raise `NotCrashSafeError` if one makes a difference.

    The mishaps: the process dies before and after each commit; the database's reply to it is lost; the worker loses its lease; the clock is set
    forward or back by a day; the result of each activity is lost after its effect, or comes late. What must be the same is
    the run's outcome, and what `effects()` returns: whatever the activities did to the world, as a value that can be compared.
    `reset()` is called before each trial and makes the world new.

    `mocks` are functions that stand for activities. `signals` are sent at the beginning of each trial, then `updates`, each once the one before is
    answered; the answers are a part of the outcome. At most `trials` are made, by `seed`
    the same each time: all deaths and lost results, if that is enough for them, and a sample of the rest. Time is virtual. Call it from a plain
    function: it runs event loops of its own.
    Raises `DefinitionError` if the effects differ although nothing happened.
    """
    _require_no_loop()
    subject = Subject(
        workflow=_workflow_of(workflow),
        args=args,
        kwargs=kwargs,
        signals=tuple(signals),
        updates=tuple(updates),
        mocks=dict(mocks or {}),
        seed=seed,
    )
    with _quiet(), _Laboratory(subject, effects, reset) as laboratory:
        return laboratory.examine(trials)


class _Laboratory:
    """All trials of one workflow."""

    def __init__(
        self, subject: Subject, effects: Callable[[], object] | None, reset: Callable[[], object] | None
    ) -> None:
        self._subject = subject
        self._effects = effects
        self._reset = reset
        self._directory = Path(
            tempfile.mkdtemp(prefix="durable-crash-", dir=MEMORY if MEMORY.is_dir() else None)
        )
        self._template = self._directory / "empty.db"
        self._innocent: set[str] = set()
        self._differing: list[tuple[Strike, Observed, str]] = []

    def __enter__(self) -> _Laboratory:
        loop = VirtualLoop(0.0)
        try:
            loop.run_until_complete(_make(self._template, SkippingClock(VirtualClock(loop, START_US))))
        finally:
            loop.close()
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def examine(self, limit: int) -> CrashReport:
        machine = SystemClock()
        since = machine.monotonic()
        first = self._try(None)
        compared = self._comparable(first)
        strikes = self._plan(first, limit)
        for strike in strikes:
            seen = self._try(strike)
            differs = next((one for one in compared if _differs(one, first, seen)), None)
            if seen.is_given_up and not first.is_given_up:
                continue  # its activity must not be repeated, and was not
            if differs is not None:
                self._differing.append((strike, seen, differs))
            elif strike.at in IN_BODIES:
                self._innocent.update(seen.begun - first.begun)
        report = CrashReport(
            workflow=self._subject.workflow.name,
            seed=self._subject.seed,
            commits=len(first.commits),
            activities=len(first.begun),
            trials=len(strikes),
            failed=len(self._differing),
            seconds=machine.monotonic() - since,
            compared=compared,
            findings=tuple(self._findings(first)),
        )
        if report.findings:
            raise NotCrashSafeError(report)
        return report

    def _comparable(self, first: Observed) -> tuple[str, ...]:
        """Return what a second undisturbed course, at another time, has in common with the first: that is to be compared."""
        if first.outcome.startswith("did not end"):
            raise DefinitionError(
                f"workflow {self._subject.workflow.name!r} {first.outcome}: give crash_everywhere the signals= it waits for"
            )
        second = self._try(None, start_us=OTHER_START_US)
        if _differs("effects", first, second):
            raise DefinitionError(
                f"the effects of workflow {self._subject.workflow.name!r} differ although nothing happened: "
                f"{_short(first.effects)} and {_short(second.effects)}. Let reset() make the world new, and leave times and "
                "ids that are new each time out of effects()"
            )
        compared = [] if _differs("outcome", first, second) else ["outcome"]
        return (*compared, *(["effects"] if self._effects is not None else []))

    def _plan(self, first: Observed, limit: int) -> list[Strike]:
        """Return the strikes, the most telling ones first; of too many, a sample by the seed."""
        commits = range(1, len(first.commits) + 1)
        bodies = list(enumerate(first.bodies, 1))
        deaths = [Strike(at, k) for k in commits for at in DEATHS]
        lost = [Strike("lost", k) for k, body in bodies if body.is_repeatable]
        others = [Strike(at, k) for k in commits for at in ("reply", "lease", CLOCKS[k % 2])]
        others += [Strike("late", k) for k, body in bodies if body.is_async]
        chance = seeded(self._subject.seed)
        planned: list[Strike] = []
        for strikes in (deaths, lost, others):
            room = limit - len(planned)
            planned += strikes if len(strikes) <= room else chance.sample(strikes, room)
        return planned

    def _try(self, strike: Strike | None, *, start_us: int = START_US) -> Observed:
        if self._reset is not None:
            self._reset()
        place = self._directory / "trial"
        place.mkdir()
        try:
            database = place / "runs.db"
            shutil.copyfile(self._template, database)
            trial = Trial(self._subject, database, strike, start_us)
            try:
                seen = trial.run()
                if self._effects is not None:
                    seen.effects = copy.deepcopy(self._effects())
                return seen
            finally:
                trial.close()
        finally:
            shutil.rmtree(place, ignore_errors=True)

    # ─ who is to blame ──

    def _findings(self, first: Observed) -> Iterator[Finding]:
        by_activity: dict[tuple[str, str], list[tuple[Strike, Observed, str]]] = {}
        guilty: set[str] = set()
        for strike, seen, differs in sorted(self._differing, key=lambda one: one[0].at not in IN_BODIES):
            again = set(seen.begun - first.begun)
            blamed = (again & guilty) or (again - self._innocent) or again
            guilty |= blamed
            for key in sorted(blamed) or [""]:
                by_activity.setdefault((key, "" if key else strike.at), []).append((strike, seen, differs))
        for (key, _), shown in by_activity.items():
            strike, seen, differs = shown[0]
            body = next((body for body in seen.bodies if body.key == key), None)
            yield Finding(
                activity="" if body is None else f"{body.activity} (call {key.rpartition('#')[2]})",
                source="" if body is None else body.source,
                where=_where(strike, first),
                what=differs,
                expected=_short(getattr(first, differs)),
                found=_short(getattr(seen, differs)),
                trials=len(shown),
            )


def _workflow_of(source: Named[Any] | Serving) -> Workflow[..., Any]:
    if isinstance(source, Workflow):
        return source
    found = list(cast(Serving, source).__durable_workflows__())
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise DefinitionError(f"crash_everywhere takes one workflow, not those of {source!r}: {names}")
    return found[0]


def _told(finding: Finding) -> list[str]:
    many = f" ({finding.trials} trials)" if finding.trials > 1 else ""
    if finding.activity:
        place = f" ({finding.source})" if finding.source else ""
        head = f"  activity {finding.activity}{place} is not idempotent: it began twice, which made a difference{many}"
        advice = (
            "    what to do    let whoever receives the effect deduplicate activity_info().idempotency_key, or look first whether "
            "it is there"
        )
    else:
        head = f"  this makes a difference, though no activity began twice{many}"
        advice = "    what to do    look for what the workflow takes from elsewhere: durable check finds most of it"
    return [
        head,
        f"    where         {finding.where}",
        f"    {finding.what} undisturbed: {finding.expected}",
        f"    {finding.what} here:        {finding.found}",
        advice,
    ]


def _where(strike: Strike, first: Observed) -> str:
    commits, bodies = first.commits, first.bodies
    in_body = strike.at in IN_BODIES
    return _WORDS[strike.at].format(
        number=strike.number,
        of=len(commits),
        what="" if in_body else commits[strike.number - 1],
        body=bodies[strike.number - 1].activity if in_body else "",
    )


def _differs(what: str, first: Observed, seen: Observed) -> bool:
    return bool(getattr(first, what) != getattr(seen, what))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= VALUE_LENGTH_MAX else f"{text[:VALUE_LENGTH_MAX]}… ({len(text):,} characters)"


async def _make(database: Path, clock: SkippingClock) -> None:
    store = await LifeStore.of(database, clock)
    await store.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the mishaps out of the test's log: they are on purpose."""
    logger = logging.getLogger("durable")
    disabled, logger.disabled = logger.disabled, True
    children = [
        one
        for name, one in logging.root.manager.loggerDict.items()
        if name.startswith("durable.") and isinstance(one, logging.Logger) and not one.disabled
    ]
    for child in children:
        child.disabled = True
    try:
        yield
    finally:
        logger.disabled = disabled
        for child in children:
            child.disabled = False


def _require_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise DefinitionError(
        "crash_everywhere runs event loops of its own: call it from a plain function, not `async def`"
    )
