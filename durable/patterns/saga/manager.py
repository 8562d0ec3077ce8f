"""`SagaManager`: runs sagas that are classes, by name."""

from __future__ import annotations

from typing import Any, TypeVar

from durable import DefinitionError
from durable.patterns.saga.base import SagaBase, definitions_of, name_of, plan_of, steps_of
from durable.patterns.saga.runtime import SagaRuntime

S = TypeVar("S", bound="SagaBase | type[SagaBase]")


class SagaManager(SagaRuntime):
    """Starts and follows sagas of registered classes.

        manager = SagaManager()
        manager.register(OrderSaga)
        saga_id = await manager.start("OrderSaga", {"order": "o-7"})
        record = await manager.wait(saga_id)

    A worker that imports the module which holds the manager, or the class, can finish any of them.
    """

    def register(self, saga: S, name: str | None = None) -> S:
        """Make a class (or an object of one) known under its name: `name`, else its `saga_name` or `name`, else the class's. Also a decorator."""
        cls: Any = saga if isinstance(saga, type) else type(saga)
        if not issubclass(cls, SagaBase):
            raise DefinitionError(f"a saga of a manager is a subclass of SagaBase, not {saga!r}")
        steps = steps_of(cls)
        if not steps:
            raise DefinitionError(f"{cls.__name__} has no @saga_step")
        known = name or name_of(cls)
        plan_of(cls)  # what is wrong with it is said here
        self._add(
            known, definitions_of(saga, known, tidied=self.config.tidied), [step.name for _, step in steps]
        )
        return saga
