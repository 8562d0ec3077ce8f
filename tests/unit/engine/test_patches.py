"""Patches: a change of a workflow's code that open runs do not see, and how it is retired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import durable
from durable.errors import DefinitionError, NonDeterminismError
from durable.journal.events import Completed, Patched, SignalReceived
from durable.journal.turns import decode_turn, encode_turn
from durable.journal.view import tell
from tests.support.engine_harness import EngineRun, an_activity, driven, next_signal


@an_activity
async def old(x: int) -> str:
    return f"old {x}"


@an_activity
async def new(x: int) -> str:
    return f"new {x}"


async def before() -> list[str]:
    return [await old(1), await old(2)]


async def changed() -> list[str]:
    first = await new(1) if durable.patched("new-way") else await old(1)
    second = await new(2) if durable.patched("new-way") else await old(2)
    return [first, second]


async def retired() -> list[str]:
    durable.deprecate_patch("new-way")
    return [await new(1), await new(2)]


async def forgotten() -> list[str]:
    return [await new(1), await new(2)]


def patches(run: EngineRun) -> list[Patched]:
    return [entry for entry in run.entries() if isinstance(entry, Patched)]


def gone_on_with(run: EngineRun, fn: Callable[..., Any]) -> EngineRun:
    """Replay what the run has, with other code, and drive it on with that."""
    run.adopt(run.replay(fn))
    return run.drive()


def finished(run: EngineRun) -> Any:
    run.instance.evict()
    return run.result


def test_a_new_run_takes_the_new_side_and_says_so_once() -> None:
    """The first answer is journaled, before what the new side asks for; the second is remembered."""
    run = driven(changed)

    assert run.result == ["new 1", "new 2"]
    assert [(one.id, one.deprecated) for one in patches(run)] == [("new-way", False)]
    assert run.trace()[:3] == ["started", "patch", '  1 new#1 {"x":1}']
    assert patches(run)[0].src.startswith("engine/test_patches.py:")


@pytest.mark.parametrize("performed", [0, 1])
def test_a_run_that_was_past_the_change_keeps_the_old_side(performed: int) -> None:
    """Also where it meets the id again later, live: one id, one answer."""
    run = EngineRun(before)
    for op in range(performed):
        run.perform(op + 1)

    gone_on_with(run, changed)

    assert finished(run) == ["old 1", "old 2"]
    assert patches(run) == []


def test_a_run_that_comes_to_the_change_after_the_deploy_takes_the_new_side() -> None:
    """What it did before is replayed; the marker stands where it first asked."""

    async def late() -> list[str]:
        first = await old(1)
        return [first, await new(2) if durable.patched("late") else await old(2)]

    run = EngineRun(before)
    gone_on_with(run, late)

    assert finished(run) == ["old 1", "new 2"]
    assert run.trace()[2:4] == ["activity_completed 1", "patch"]


def test_a_patched_run_replays_to_the_same_side() -> None:
    """After a restart, in the middle."""
    run = EngineRun(changed)
    run.check_replay().evict()
    gone_on_with(run, changed)

    assert finished(run) == ["new 1", "new 2"]


def test_a_patch_in_the_last_activation_is_journaled_too() -> None:
    """A closed run replays to the same end."""

    async def ends() -> str:
        return "new" if durable.patched("end") else "old"

    run = driven(ends)

    assert run.result == "new"
    assert [type(entry) for entry in run.entries()[1:]] == [Patched, Completed]


def test_code_that_forgot_the_patch_is_non_determinism() -> None:
    """Even where it asks for the same: whoever removed the call may have removed the wrong side."""
    run = EngineRun(changed)

    error = run.replay_error(forgotten)
    run.instance.evict()

    assert error.expected == "patch 'new-way'"
    assert "durable.deprecate_patch('new-way')" in str(error)
    assert "the journal holds  patch 'new-way', asked for at engine/test_patches.py" in str(error)


def test_code_that_went_back_is_non_determinism() -> None:
    """The old code knows neither the marker nor what followed it."""
    run = EngineRun(changed)

    error = run.replay_error(before)
    run.instance.evict()

    assert (error.expected, error.got) == ("patch 'new-way'", "old")


def test_another_id_is_another_patch() -> None:
    """A recorded patch says nothing about others: the run was past that one without it."""

    async def renamed() -> list[str]:
        return [await new(1) if durable.patched("other") else await old(1)]

    run = EngineRun(changed)

    assert isinstance(run.replay_error(renamed), NonDeterminismError)
    run.instance.evict()


def test_a_deprecated_patch_replays_with_and_without_its_marker() -> None:
    """`deprecate_patch` is the step between: runs with the marker, and runs that began after it."""
    with_marker = gone_on_with(EngineRun(changed), retired)
    own = driven(retired)

    assert finished(with_marker) == ["new 1", "new 2"]
    assert own.result == ["new 1", "new 2"]
    assert [(one.id, one.deprecated) for one in patches(own)] == [("new-way", True)]


def test_deprecation_holds_for_markers_of_later_activations() -> None:
    """One call at the top is enough."""

    async def second_only() -> list[str]:
        first = await old(1)
        return [first, await new(2) if durable.patched("second") else await old(2)]

    async def without() -> list[str]:
        durable.deprecate_patch("second")
        return [await old(1), await new(2)]

    run = EngineRun(second_only)
    run.perform(1)
    gone_on_with(run, without)

    assert finished(run) == ["old 1", "new 2"]


def test_code_that_forgot_a_deprecated_patch_replays() -> None:
    """The last step: once all open runs began under `deprecate_patch`, nothing has to remember it."""
    run = gone_on_with(EngineRun(retired), forgotten)

    assert finished(run) == ["new 1", "new 2"]


def test_going_back_from_deprecated_to_patched_replays() -> None:
    """A deploy that is rolled back finds the marker it looks for."""
    run = gone_on_with(EngineRun(retired), changed)

    assert finished(run) == ["new 1", "new 2"]


def test_deprecated_code_drives_a_run_that_never_had_the_patch() -> None:
    """As long as it asks for the same."""

    async def same() -> list[str]:
        durable.deprecate_patch("new-way")
        return [await old(1), await old(2)]

    run = gone_on_with(EngineRun(before), same)

    assert finished(run) == ["old 1", "old 2"]
    assert patches(run) == []


def test_siblings_may_ask_in_any_order() -> None:
    """Within one activation markers are matched by id, as everything is."""

    async def two() -> int:
        return int(durable.patched("a")) + int(durable.patched("b")) + len(await old(1))

    async def swapped() -> int:
        return int(durable.patched("b")) + int(durable.patched("a")) + len(await old(1))

    run = gone_on_with(EngineRun(two), swapped)

    assert finished(run) == 7


def test_a_signal_sent_before_the_deploy_replays_on_the_old_side() -> None:
    """Each event is an activation of its own: what it led to is compared alone."""

    async def waits() -> str:
        await next_signal("go")
        return str(await old(1))

    async def waits_patched() -> str:
        await next_signal("go")
        return str(await new(1) if durable.patched("p") else await old(1))

    run = EngineRun(waits)
    live = EngineRun(waits)
    run.signal("go")
    gone_on_with(run, waits_patched)
    live.adopt(live.replay(waits_patched))
    live.signal("go")
    live.drive()

    assert finished(run) == "old 1"
    assert finished(live) == "new 1"
    assert any(isinstance(entry, SignalReceived) for entry in live.entries())


def test_nothing_is_recorded_at_eviction() -> None:
    """A `finally` that asks gets the answer of the run, or no."""
    answers: list[bool] = []

    async def asks() -> None:
        durable.patched("known")
        try:
            await old(1)
        finally:
            answers.extend((durable.patched("known"), durable.patched("unknown")))

    run = EngineRun(asks)
    run.instance.evict()

    assert answers == [True, False]


def test_the_marker_survives_the_stored_format() -> None:
    """Tag and fields are the format."""
    marker = Patched(id="new-way", src="a.py:1")
    (data,) = encode_turn(1, [marker, Patched(id="x", deprecated=True)])

    assert b'{"e":"patch","id":"new-way","src":"a.py:1"}' in data
    assert decode_turn(data).entries == [marker, Patched(id="x", deprecated=True)]


def test_markers_are_part_of_the_story_and_nobody_waits_for_them() -> None:
    """Done at once, where they took effect."""
    run = driven(changed)

    story = tell(run.entries())
    told = [(entry.kind, entry.status) for entry in story.entries]
    assert told.count(("patch", "completed")) == 1
    assert [entry.name for entry in story.entries if entry.kind == "activity"] == ["new", "new"]
    assert all(entry.kind != "patch" for entry in story.open)


@pytest.mark.parametrize("ask", [durable.patched, durable.deprecate_patch])
def test_patches_belong_to_workflows(ask: Callable[[str], Any]) -> None:
    """Outside there is no journal to ask; and an id is a text."""
    with pytest.raises(DefinitionError, match="inside a workflow"):
        ask("new-way")
    with pytest.raises(DefinitionError, match="text"):
        ask("")
