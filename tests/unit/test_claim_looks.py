"""Where looks for ready runs begin on a server: `durable.store.postgres.claiming`."""

from __future__ import annotations

from durable.store.postgres.claiming import BACK_SECONDS_MAX, COSTLY_SECONDS, SLACK_US, LookOut

SECOND = 1_000_000


def costly(at: float = 100.0, reached_us: int = 50 * SECOND) -> LookOut:
    """Return what follows a whole look that took a tenth of a second."""
    looks = LookOut()
    looks.looked(0, at, took=0.1, reached_us=reached_us)
    return looks


def test_cheap_looks_are_always_whole() -> None:
    """As long as nobody holds an old snapshot, nothing is ever left out, and nobody looks back."""
    looks = LookOut()
    for now in range(3):
        assert looks.since_us() == 0
        assert not looks.is_back_due(now)
        looks.looked(0, now, took=COSTLY_SECONDS, reached_us=now * SECOND)


def test_after_a_costly_look_the_next_begin_a_little_before_it_ended() -> None:
    """Transactions that were under way then may still add a run that became ready before."""
    looks = costly(reached_us=50 * SECOND)

    assert looks.since_us() == 50 * SECOND - SLACK_US
    looks.looked(50 * SECOND - SLACK_US, 100.2, took=0.05, reached_us=60 * SECOND)
    assert looks.since_us() == 60 * SECOND - SLACK_US


def test_a_look_never_begins_before_one_that_went_before() -> None:
    """A batch of runs that became ready late does not bring the costly part back."""
    looks = costly(reached_us=50 * SECOND)
    looks.looked(looks.since_us(), 101.0, took=0.05, reached_us=10 * SECOND)

    assert looks.since_us() == 50 * SECOND - SLACK_US


def test_looking_back_is_due_again_within_bounds() -> None:
    """So what became ready late is found: after a hundred times its cost, or ten seconds."""
    looks = costly(at=100.0)
    assert not looks.is_back_due(109.9)
    assert looks.is_back_due(110.0)

    looks.looked_back(110.0, took=0.02, earliest_us=None)
    assert not looks.is_back_due(111.9)
    assert looks.is_back_due(112.0)

    looks.looked_back(112.0, took=5.0, earliest_us=None)
    assert not looks.is_back_due(112.0 + BACK_SECONDS_MAX - 0.1)
    assert looks.is_back_due(112.0 + BACK_SECONDS_MAX)


def test_what_was_found_by_looking_back_is_where_the_next_look_begins() -> None:
    """Whatever a look that was under way meanwhile has reached: it began later."""
    looks = costly(reached_us=50 * SECOND)
    under_way = looks.since_us()
    looks.looked_back(110.0, took=0.1, earliest_us=7 * SECOND)
    looks.looked(under_way, 110.1, took=0.001, reached_us=60 * SECOND)
    assert looks.since_us() == 7 * SECOND

    looks.looked(7 * SECOND, 110.2, took=0.3, reached_us=61 * SECOND)
    assert looks.since_us() == 61 * SECOND - SLACK_US


def test_when_looking_back_is_cheap_again_looks_are_whole() -> None:
    """The old snapshot is gone, and the server has cleared up."""
    looks = costly()
    looks.looked_back(110.0, took=COSTLY_SECONDS, earliest_us=None)

    assert looks.since_us() == 0
    assert not looks.is_back_due(1000.0)
