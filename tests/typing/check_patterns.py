"""Never run: mypy reads it. The types of pipelines, sagas and bulk operations that authors and callers see."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, assert_type

from durable import (
    AbstractSaga,
    BulkOperation,
    BulkOperationConfig,
    ConditionalStep,
    Err,
    Ok,
    Pipeline,
    Result,
    RunHandle,
    SagaBase,
    SagaContext,
    SagaError,
    SagaManager,
    SagaOrchestrator,
    SagaRecord,
    SagaScope,
    SagaState,
    SagaStep,
    Workflow,
    conditional,
    saga,
    saga_step,
    workflow,
)


async def undo(order: str, cents: int) -> None: ...


@saga_step(compensation=undo, max_retries=5)
async def charge(order: str, cents: int) -> str:
    return order


@saga_step
def reserve(order: str) -> int:
    return 1


@workflow("order", version=2)
async def order(id: str) -> str:
    assert_type(await reserve(id), int)
    async with saga() as scope:
        assert_type(scope, SagaScope)
        assert_type(await charge(id, 5), str)
        await charge(id)  # type: ignore[call-arg]
    return id


done: Workflow[[str], str] = order


class Order(AbstractSaga):
    def __init__(self, order_id: str) -> None:
        super().__init__()
        self.add_step(SagaStep("reserve", self.reserve))

    async def reserve(self) -> str:
        return "r"


class Checkout(SagaBase):
    @saga_step("reserve")
    async def reserve(self, ctx: SagaContext) -> str:
        return str(ctx["order"])


@conditional("gift", lambda ctx: True)
async def gift(ctx: dict[str, Any]) -> str:
    return "gift"


async def double(item: int) -> str:
    return str(item * 2)


def halve(item: int) -> float:
    return item / 2


async def over_many() -> None:
    operation = BulkOperation(double, BulkOperationConfig(timeout=timedelta(hours=1)), retention="forever")
    assert_type(operation, BulkOperation[int, str])
    assert_type((await operation.execute([1])).unwrap().results, list[str])
    assert_type(BulkOperation(halve, on_progress=print), BulkOperation[int, float])
    BulkOperation(double, retain=3)  # type: ignore[call-overload]


async def use(pipeline: Pipeline, manager: SagaManager, orchestrator: SagaOrchestrator) -> None:
    assert_type(gift, ConditionalStep)
    assert_type(await pipeline.start({"a": 1}, run_id="p"), RunHandle[Any])
    saga = Order("o")
    result: Result[dict[str, Any], SagaError] = await saga.execute()
    match result:
        case Ok(value):
            assert_type(value, dict[str, Any])
        case Err(error):
            assert_type(error.failed_compensations, Sequence[str])
    assert_type(saga.state, SagaState)
    assert_type(await saga.start(run_id="o"), RunHandle[dict[str, Any]])
    assert_type(await saga.enqueue(), RunHandle[dict[str, Any]])
    assert_type(manager.register(Checkout), type[Checkout])
    assert_type(await manager.start("Checkout", {"order": "o"}), str)
    assert_type(await orchestrator.wait("id", timeout=5), SagaRecord)
    await manager.start("Checkout", saga="o")  # type: ignore[call-arg]
