"""The mirror of sagas that an application may keep: told after the journal, and never trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from durable import SagaManager, SagaStoreProtocol
from durable.patterns.saga.mirror import saga_mirror
from tests.patterns.test_abstract_saga import Failing, Order
from tests.patterns.test_saga_manager import OrderSaga


class Mirror:
    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.is_broken = False

    async def save(self, saga_id: str, state: str, data: dict[str, Any]) -> None:
        if self.is_broken:
            raise OSError("the mirror is broken")
        self.told.append((saga_id, state, data))

    async def load(self, saga_id: str) -> Any:
        raise AssertionError("nobody asks the mirror")

    async def delete(self, saga_id: str) -> None: ...


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror()
    token = saga_mirror.set(made)
    yield made
    saga_mirror.reset(token)


async def test_the_mirror_is_told_the_state_and_the_results(embedded: str, mirror: Mirror) -> None:
    """When a saga begins, and when it has ended; with its version and the steps that are done."""
    assert isinstance(mirror, SagaStoreProtocol)

    await Order("o").execute(run_id="good")
    await Failing("o").execute(run_id="bad")

    results = {"reserve": "r-1", "charge": {"id": "c-1"}, "ship": "shipped"}
    assert [(saga_id, state) for saga_id, state, _ in mirror.told] == [
        ("good", "running"),
        ("good", "completed"),
        ("bad", "running"),
        ("bad", "compensated"),
    ]
    assert mirror.told[1][2] == {"version": 1, "completed_steps": list(results), "results": results}


async def test_a_manager_tells_the_mirror_too(embedded: str, mirror: Mirror) -> None:
    """Whoever waits for the end does."""
    manager = SagaManager()
    manager.register(OrderSaga)
    await manager.wait(await manager.start("OrderSaga", {"order": "o"}, saga_id="m"))

    saga_id, state, data = mirror.told[-1]
    assert (saga_id, state, data["completed_steps"]) == ("m", "completed", ["reserve", "charge", "announce"])


async def test_a_broken_mirror_stops_no_saga(embedded: str, mirror: Mirror) -> None:
    """The journal is the truth."""
    mirror.is_broken = True

    assert (await Order("o").execute()).is_ok()
