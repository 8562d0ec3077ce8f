"""`AbstractSaga`: results, undoing, identity, and what a worker can rebuild."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, ClassVar

import pytest

import durable
from durable import (
    AbstractSaga,
    Client,
    Err,
    LostStateWarning,
    Ok,
    Pipeline,
    RunCancelledError,
    RunConflictError,
    RunStatus,
    SagaError,
    SagaState,
    SagaStep,
    SagaStepError,
    SagaStepResult,
    SagaVersionMismatchError,
    WorkflowCompensationError,
    WorkflowVersionMismatchError,
    saga_step,
    step,
    workflow,
)
from tests.support.workers import Calls, running_worker

calls = Calls()


@pytest.fixture(autouse=True)
def _forget() -> None:
    calls.names.clear()


class Order(AbstractSaga[dict[str, Any]]):  # type: ignore[type-arg]  # how programs of others spell it: the type says nothing
    """Reserves and charges; ships unless told to fail."""

    fails: ClassVar[Any] = None

    def __init__(self, order_id: str, cents: int = 100) -> None:
        super().__init__()
        self.order_id = order_id
        self.cents = cents
        self.add_step(SagaStep("reserve", self.reserve, self.release))
        self.add_step(SagaStep("charge", self.charge, self.refund))
        self.add_step(SagaStep("ship", self.ship, max_retries=0))

    async def reserve(self) -> str:
        calls(f"reserve {self.order_id}")
        return "r-1"

    async def release(self, ctx: dict[str, Any]) -> None:
        calls(f"release {ctx['reserve']}")

    def charge(self, ctx: dict[str, Any]) -> dict[str, Any]:
        calls(f"charge {self.cents} for {ctx['reserve']}")
        return {"id": "c-1"}

    def refund(self, ctx: dict[str, Any]) -> None:
        calls(f"refund {ctx['charge']['id']} of {sorted(ctx)}")

    async def ship(self) -> Any:
        calls("ship")
        if isinstance(self.fails, Exception):
            raise self.fails
        return "shipped" if self.fails is None else self.fails


class Failing(Order):
    fails = RuntimeError("no truck")


async def journal(run_id: str) -> list[tuple[str, str, str]]:
    run = await durable.get_run(run_id)
    return [(entry.name, entry.kind, entry.status) for entry in run.journal]


async def test_a_saga_gives_its_results_by_step(embedded: str) -> None:
    """`Ok` with a dict; the object knows its state and results, too."""
    saga = Order("o")
    assert saga.state == "pending"

    result = await saga.execute(run_id="o-1")

    assert result == Ok({"reserve": "r-1", "charge": {"id": "c-1"}, "ship": "shipped"})
    assert saga.is_completed()
    assert (saga.state, saga.result("reserve")) == (SagaState.COMPLETED, "r-1")
    with pytest.raises(KeyError):
        saga.result("nothing")
    run = await durable.get_run("o-1")
    assert (run.kind, run.workflow, run.status) == ("saga", "Order", RunStatus.COMPLETED)
    assert run.input == {"arguments": {"order_id": "o"}}
    assert calls.names == ["reserve o", "charge 100 for r-1", "ship"]


async def test_a_failed_saga_is_undone_in_reverse(embedded: str) -> None:
    """`Err(SagaError)`: its step, its cause, what was undone; state and status are compensated."""
    saga = Failing("o")

    for _ in range(2):  # the second time from the record: nothing runs again
        result = await saga.execute(run_id="o-1")
        error = result.unwrap_err()
        assert type(error) is SagaError
        assert error.step_name == "ship"
        assert isinstance(error.cause, RuntimeError)
        assert (error.compensated, error.failed_compensations) == (["charge", "reserve"], [])
        assert saga.state == SagaState.COMPENSATED
        assert not saga.is_completed()
    assert calls.names == [
        "reserve o",
        "charge 100 for r-1",
        "ship",
        "refund c-1 of ['charge', 'reserve']",
        "release r-1",
    ]
    assert (await durable.get_run("o-1")).status == RunStatus.COMPENSATED
    assert [run.run_id for run in await durable.list_runs(status="compensated")] == ["o-1"]
    assert await journal("o-1") == [
        ("reserve", "activity", "completed"),
        ("charge", "activity", "completed"),
        ("ship", "activity", "failed"),
        ("charge/compensation", "compensation", "completed"),
        ("reserve/compensation", "compensation", "completed"),
    ]


@pytest.mark.parametrize(
    "answer", [SagaStepResult.fail("no truck"), Err("no truck"), SagaStepResult.fail(KeyError("truck"))]
)
async def test_an_answer_that_says_no_is_a_failure_without_a_retry(
    embedded: str, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Returned failures undo as raised ones do."""
    monkeypatch.setattr(Order, "fails", answer)

    error = (await Order("o").execute()).unwrap_err()

    assert isinstance(error.cause, SagaStepError | KeyError)
    assert "truck" in str(error.cause)
    assert (calls.of("ship"), error.compensated) == (1, ["charge", "reserve"])


async def test_a_failed_compensation_fails_the_saga(embedded: str) -> None:
    """`WorkflowCompensationError`, state failed; the others are tried all the same."""

    class Stuck(Failing):
        def refund(self, ctx: dict[str, Any]) -> None:
            raise ValueError("the bank says no")

    saga = Stuck("o")
    error = (await saga.execute(run_id="o-1")).unwrap_err()

    assert isinstance(error, WorkflowCompensationError)
    assert (error.step_name, error.compensated, error.failed_compensations) == (
        "ship",
        ["reserve"],
        ["charge"],
    )
    assert isinstance(error.cause, RuntimeError)
    assert saga.state == SagaState.FAILED
    assert (await durable.get_run("o-1")).status == RunStatus.FAILED
    assert ("charge/compensation", "compensation", "failed") in await journal("o-1")


async def test_any_class_of_error_fails_the_saga(embedded: str) -> None:
    """Also the user's own, and one whose first step fails with nothing to undo."""

    class OddError(Exception):
        pass

    saga = AbstractSaga()
    saga.add_step(SagaStep("odd", lambda: (_ for _ in ()).throw(OddError("?")), max_retries=0))

    error = (await saga.execute()).unwrap_err()

    assert (type(error), error.step_name, error.compensated) == (SagaError, "odd", [])
    assert saga.state == SagaState.COMPENSATED


async def test_attempts_are_one_and_the_retries(embedded: str) -> None:
    """For actions and compensations alike."""

    async def flaky() -> None:
        calls("flaky")
        raise OSError

    async def undo() -> None:
        calls("undo")
        raise OSError

    saga = AbstractSaga()
    saga.add_step(SagaStep("first", lambda: None, undo, max_retries=2, retry_delay=0))
    saga.add_step(SagaStep("second", flaky, max_retries=1, retry_delay=0))

    assert isinstance((await saga.execute()).unwrap_err(), WorkflowCompensationError)
    assert (calls.of("flaky"), calls.of("undo")) == (2, 3)


async def test_a_step_timeout_is_a_failure(embedded: str) -> None:
    """Of each attempt; it is retried, and then undone like any other."""

    async def slow() -> None:
        calls("slow")
        await asyncio.sleep(60)

    saga = AbstractSaga()
    saga.add_step(SagaStep("quick", lambda: 1, lambda: calls("undo")))
    saga.add_step(SagaStep("slow", slow, timeout=0.05, max_retries=1, retry_delay=0))

    assert isinstance((await saga.execute()).unwrap_err().cause, TimeoutError)
    assert calls.names == ["slow", "slow", "undo"]


async def test_a_cancelled_saga_is_undone(embedded: str) -> None:
    """The run is cancelled; whoever executes it hears so."""
    begun = asyncio.Event()

    class Waits(Order):
        async def ship(self) -> None:
            begun.set()
            await asyncio.sleep(60)

    saga = Waits("o")
    executing = asyncio.ensure_future(saga.execute(run_id="o-1"))
    await begun.wait()
    await durable.cancel("o-1")

    with pytest.raises(RunCancelledError):
        await executing
    assert calls.names[-2:] == ["refund c-1 of ['charge', 'reserve']", "release r-1"]
    assert (await durable.get_run("o-1")).status == RunStatus.CANCELLED


async def test_the_id_of_an_object_is_its_run_id(embedded: str) -> None:
    """`get_id()`, generated or overridden: a completed saga does not run again under it."""

    class Named(Order):
        def get_id(self) -> str:
            return f"named-{self.order_id}"

    for saga in (Order("o"), Named("x")):
        first = await saga.execute()
        assert await saga.execute() == first
        assert (await durable.get_run(saga.get_id())).status == "completed"
    assert calls.of("ship") == 2
    with pytest.raises(RunConflictError):
        await Order("other").execute(run_id=(await durable.list_runs(workflow="Order"))[0].run_id)


async def test_a_worker_rebuilds_a_saga_from_its_arguments(client: Client) -> None:
    """It imports the module that has the class; the object that started it may be gone."""
    workflows = Order.__durable_workflows__()
    handle = await client.start(workflows[0], {"order_id": "w", "cents": 7}, run_id="w-1")

    async with running_worker(client, sys.modules[__name__]):
        results: Any = await handle.result()

    assert results["ship"] == "shipped"
    assert calls.names == ["reserve w", "charge 7 for r-1", "ship"]


async def test_a_saga_is_left_to_a_worker(client: Client, embedded: str) -> None:
    """`enqueue` stores the run and returns; a worker that imports the module rebuilds the object. The same id is the same saga."""
    handle = await Order("q", cents=9).enqueue(run_id="q-1")
    assert (await handle.describe()).status == RunStatus.PENDING
    assert calls.names == []

    async with running_worker(client, sys.modules[__name__]):
        results = await (await Order("q", cents=9).enqueue(run_id="q-1")).result()

    assert results == {"reserve": "r-1", "charge": {"id": "c-1"}, "ship": "shipped"}
    assert calls.names == ["reserve q", "charge 9 for r-1", "ship"]
    assert (await Order("q", cents=9).execute(run_id="q-1")).unwrap() == results  # from the record
    with pytest.raises(RunConflictError):
        await Order("other").enqueue(run_id="q-1")


async def test_a_saga_is_started_without_waiting_for_it(embedded: str) -> None:
    """`start` drives it here; the handle tells how it ended, under the object's id unless one is given."""
    saga = Failing("s")
    handle = await saga.start()

    with pytest.raises(durable.WorkflowFailedError) as e:
        await handle.result()
    assert isinstance(e.value.__cause__, SagaError)
    assert e.value.__cause__.compensated == ["charge", "reserve"]
    assert handle.run_id == saga.get_id()
    assert (await saga.execute()).unwrap_err().step_name == "ship"
    assert calls.of("ship") == 1


async def test_a_saga_started_in_a_workflow_is_a_child(embedded: str) -> None:
    """A run of its own whose id follows from the parent's, so that a replay finds it; one that `get_id` names is called so."""

    @workflow
    async def outer() -> list[str]:
        first = await Order("c").start()
        second = await Numbered("n").enqueue()
        return [(await first.result())["ship"], (await second.result())["ship"], first.run_id, second.run_id]

    assert await outer(run_id="w") == ["shipped", "shipped", "w@1/Order#1", "number-n"]
    assert (await durable.get_run("w@1/Order#1")).parent == "w"
    assert calls.of("ship") == 2


class Numbered(Order):
    def get_id(self) -> str:
        return f"number-{self.order_id}"


async def test_a_saga_that_nobody_else_can_make_is_not_left_to_a_worker(embedded: str) -> None:
    """It is refused before anything is stored, and told why; `execute`, which keeps the object, takes it."""

    class Inner(Order):
        pass

    changed = Order("o")
    changed.cents = 5
    for saga, reason in (
        (WithClient(Opaque()), "arguments cannot be stored"),
        (changed, "changed after it was made"),
        (AbstractSaga(), "added from outside"),
        (Inner("o"), "inside of a function"),
    ):
        for leave in (saga.enqueue, saga.start):
            with pytest.raises(durable.DefinitionError, match=f"{reason}.*execute"):
                await leave()
    assert await durable.list_runs() == []


class Opaque:
    pass


class WithClient(AbstractSaga):
    def __init__(self, client: Any) -> None:
        super().__init__()
        self.client = client
        self.add_step(SagaStep("use", lambda: type(client).__name__))


async def test_what_cannot_be_rebuilt_is_local(embedded: str) -> None:
    """Arguments that cannot be stored, or steps and attributes from outside: no worker gets such a run."""
    changed = Order("o")
    changed.add_step(SagaStep("more", lambda: "more"))
    set_later = Order("o")
    set_later.cents = 5

    assert (await WithClient(Opaque()).execute(run_id="a")).unwrap() == {"use": "Opaque"}
    assert (await changed.execute(run_id="b")).unwrap()["more"] == "more"
    assert (await set_later.execute(run_id="c")).is_ok()
    assert (await Order("o").execute(run_id="d")).is_ok()

    queues = {run.run_id: run.task_queue for run in await durable.list_runs()}
    assert queues == {"a": "local", "b": "local", "c": "local", "d": "default"}
    assert "charge 5 for r-1" in calls.names


async def test_show_says_that_a_local_run_needs_its_script(client: Client) -> None:
    """A worker cannot be told to serve its queue; `why` tells what can be done."""
    await client.start(WithClient._workflow(), run_id="l-1", task_queue="local")

    run = await client.describe("l-1")
    assert "its own script" in run.waiting_on[0].text
    assert "only the script that started it" in (await client.why("l-1")).text
    with pytest.raises(durable.DefinitionError):
        durable.Worker(client, Order, task_queue="local")


async def test_inside_a_workflow_a_saga_is_part_of_its_run(embedded: str) -> None:
    """Its entries are under its name; its failure is undone there and then, and the workflow goes on."""

    @workflow
    async def outer() -> list[Any]:
        good = await Order("in").execute()
        bad = await Failing("bad").execute()
        return [good.unwrap()["ship"], bad.unwrap_err().step_name]

    assert await outer(run_id="w") == ["shipped", "ship"]
    names = [name for name, _, _ in await journal("w")]
    assert names[:4] == ["Order/reserve", "Order/charge", "Order/ship", "Failing/reserve"]
    assert names[-2:] == ["Failing/charge/compensation", "Failing/reserve/compensation"]


async def test_inside_a_step_a_saga_is_a_run_of_its_own(embedded: str) -> None:
    """A retried step attaches to it."""

    @step(retry_delay=0)
    async def outer(ctx: dict[str, Any]) -> str:
        result = await Order("s").execute()
        if calls("outer") == 1:
            raise OSError
        return str(result.unwrap()["ship"])

    assert await Pipeline("p", [outer]).execute(run_id="p-1") == "shipped"
    assert sorted(run.run_id for run in await durable.list_runs()) == ["p-1", "p-1@1/outer#1/Order#1"]
    assert calls.of("ship") == 1


async def test_a_saga_in_a_workflow_that_fails_later_stays_done(embedded: str) -> None:
    """It has completed: a completed saga undoes nothing. Steps of the body around it are undone."""

    async def undo() -> None:
        calls("undo own")

    @saga_step(compensation=undo)
    async def own() -> None:
        pass

    @workflow
    async def outer() -> None:
        await own()
        await Order("in").execute()
        raise ValueError

    with pytest.raises(durable.WorkflowFailedError):
        await outer()
    assert calls.names[-2:] == ["ship", "undo own"]


class Old(AbstractSaga):
    def __init__(self) -> None:
        super().__init__()
        self.add_step(SagaStep("x", lambda: "x"))


async def test_another_version_is_refused_unless_it_is_compatible(
    embedded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SagaVersionMismatchError` is a `WorkflowVersionMismatchError`; `is_compatible_with` may allow it, for workers as well."""
    await Old._workflow().options(run_id="v-1").enqueue({})
    await Old._workflow().options(run_id="v-2").enqueue({})
    monkeypatch.setattr(Old, "VERSION", 3)

    with pytest.raises(SagaVersionMismatchError) as e:
        await Old().execute(run_id="v-1")
    assert isinstance(e.value, WorkflowVersionMismatchError)
    assert (e.value.saga_id, e.value.stored_version, e.value.code_version) == ("v-1", 1, 3)

    with pytest.raises(SagaVersionMismatchError):
        await Old().start(run_id="v-2")

    monkeypatch.setattr(Old, "is_compatible_with", lambda self, stored: stored in (1, 3))
    assert (await Old().execute(run_id="v-1")).is_ok()
    assert await (await Old().start(run_id="v-2")).result() == {"x": "x"}
    assert [one.version for one in Old.__durable_workflows__()] == [1, 3]


async def test_state_kept_on_self_draws_a_warning(embedded: str) -> None:
    """It says why it is lost: a recorded action is not called again. Results and the context are not lost."""

    class Keeps(AbstractSaga):
        def __init__(self) -> None:
            super().__init__()
            self.add_step(SagaStep("keep", self.keep))

        async def keep(self) -> None:
            self.kept = "state"

    with pytest.warns(LostStateWarning, match=r"changed self\.kept: after a crash"):
        assert (await Keeps().execute()).is_ok()

    count = 0

    async def counts() -> None:
        nonlocal count
        count += 1

    saga = AbstractSaga()
    saga.add_step(SagaStep("count", counts))
    with pytest.warns(LostStateWarning, match="the variable 'count' of its closure"):
        assert (await saga.execute()).is_ok()


async def test_a_warning_that_is_an_error_does_not_fail_a_step(embedded: str) -> None:
    """The step has had its effect: it is recorded."""

    class Keeps(AbstractSaga):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[int] = []
            self.add_step(SagaStep("keep", self.keep, max_retries=0))

        def keep(self) -> None:
            self.kept.append(1)

    assert (await Keeps().execute()).is_ok()  # this suite turns warnings into errors


def test_definitions_are_checked() -> None:
    """A misspelt option is a TypeError; two steps of one name are a ValueError."""
    with pytest.raises(TypeError):
        SagaStep("x", print, retries=3)  # type: ignore[call-arg]
    with pytest.raises(durable.DefinitionError):
        SagaStep("x", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_retries"):
        SagaStep("x", print, max_retries=-1)
    saga = AbstractSaga()
    saga.add_step(SagaStep("x", print))
    with pytest.raises(ValueError, match="called 'x'"):
        saga.add_step(SagaStep("x", print))


async def test_unfinished_sagas_are_hinted_at(embedded: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A new object without an id is a new run."""

    class Hinted(Order):
        pass

    await Hinted._workflow().options(run_id="left-1").enqueue({"order_id": "x"})
    await Hinted("a").execute()
    await Hinted("b").execute()

    (line,) = capsys.readouterr().err.splitlines()
    assert "left-1" in line


class Delicate(Failing):
    """Its refund must not be repeated, and hangs."""

    undoing: ClassVar[asyncio.Event]

    def __init__(self) -> None:
        super().__init__("d")
        self._inside.steps[1] = SagaStep("charge", self.charge, self.refund, idempotent=False)

    async def refund(self, ctx: dict[str, Any]) -> None:  # type: ignore[override]
        calls("refund")
        Delicate.undoing.set()
        await asyncio.sleep(60)


async def test_a_worker_that_is_stopped_interrupts_a_delicate_compensation_for_good(client: Client) -> None:
    """Handed back in order, too, it is reported and not repeated: nobody knows how far it came."""
    Delicate.undoing = asyncio.Event()
    (workflow,) = Delicate.__durable_workflows__()
    handle = await client.start(workflow, {}, run_id="d-1")
    worker = durable.Worker(client, workflow)
    async with worker:
        await Delicate.undoing.wait()
        worker.stop(0)

    async with running_worker(client, workflow):
        with pytest.raises(durable.WorkflowFailedError) as e:
            await handle.result()
    error = e.value.__cause__
    assert isinstance(error, WorkflowCompensationError)
    assert (error.compensated, error.failed_compensations) == (["reserve"], ["charge"])
    assert calls.of("refund") == 1


async def test_a_raised_step_error_is_retried(embedded: str) -> None:
    """Only an answer is final: `SagaStepError` that is raised is an error like any other."""

    def fail() -> None:
        calls("fail")
        raise SagaStepError("not yet")

    saga = AbstractSaga()
    saga.add_step(SagaStep("fail", fail, max_retries=2, retry_delay=0))

    error = (await saga.execute()).unwrap_err()
    assert (type(error.cause), str(error.cause)) == (SagaStepError, "not yet")
    assert calls.of("fail") == 3
