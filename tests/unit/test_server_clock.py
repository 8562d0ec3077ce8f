"""A server's clock as seen from here: never ahead of it."""

from __future__ import annotations

import pytest

from durable.seams import ServerClock


class Local:
    """This machine's monotonic time, by hand."""

    def __init__(self, clock: ServerClock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.seconds)


def test_it_is_never_ahead_of_the_server_and_behind_by_a_round_trip_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A timer that is due here must be due there, wherever in the round trip the server looked at its clock."""
    clock = ServerClock()
    local = Local(clock, monkeypatch)
    for looked_after in (0.0, 0.02, 0.05):
        asked = local.seconds
        server = 5_000.0 + asked + looked_after
        local.seconds += 0.05
        clock.learn(round(server * 1e6), asked, local.seconds)
        truth = (5_000.0 + local.seconds) * 1e6

        assert truth - 50_001 <= clock.now_us() <= truth + 1


def test_a_quick_answer_counts_more_than_later_slow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as it is not too old."""
    clock = ServerClock()
    local = Local(clock, monkeypatch)
    clock.learn(round((5_000 + local.seconds) * 1e6), local.seconds, local.seconds)
    asked = local.seconds
    local.seconds += 10
    clock.learn(round((5_000 + asked) * 1e6), asked, local.seconds)

    assert clock.now_us() == round((5_000 + local.seconds) * 1e6)


def test_a_server_whose_clock_is_set_back_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back is no reason to fire an hour's timers."""
    clock = ServerClock()
    local = Local(clock, monkeypatch)
    clock.learn(round(9_000 * 1e6), local.seconds, local.seconds)
    assert clock.now_us() == 9_000_000_000

    local.seconds += 1
    clock.learn(round(5_400 * 1e6), local.seconds, local.seconds)

    assert clock.now_us() == 5_400_000_000


def test_this_machines_clock_has_to_do_until_the_server_has_been_asked() -> None:
    """A client that is not open yet can still say what time it thinks it is."""
    assert ServerClock().now_us() > 1_700_000_000_000_000
