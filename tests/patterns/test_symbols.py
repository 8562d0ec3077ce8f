"""What is documented of the patterns' names: where they are, what they take, which defaults they have, and what a misspelt option is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import pytest

import durable
from durable import (
    AbstractWorkflowNode,
    Activity,
    BulkOperation,
    DefinitionError,
    Err,
    FunctionStep,
    GraphConfig,
    NodeType,
    Ok,
    Pipeline,
    Result,
    Retry,
    RunStatus,
    SagaState,
    SagaStep,
    StateMachine,
    WorkflowBuilder,
    WorkflowEngine,
    activity,
    saga_step,
    step,
    workflow,
)

UNSET: Final = inspect.Parameter.empty
# Name (of a method after its class) -> parameters in order with their defaults; "*" begins those that are given by name. Further ones may follow.
SIGNATURES: Final[dict[str, dict[str, Any]]] = {
    "Pipeline": {"name": None, "steps": (), "*": 0, "version": 1, "timeout": None, "retention": None},
    "conditional": {"name": UNSET, "condition": UNSET, "otherwise": None},
    "parallel": {"name": UNSET, "steps": UNSET, "*": 0, "fail_fast": True, "max_concurrency": 0},
    "FunctionStep": {"name": UNSET, "fn": UNSET, "*": 0, "timeout": None, "retries": 3, "retry_delay": 1.0},
    "ConditionalStep": {"name": UNSET, "condition": UNSET, "true_step": UNSET, "false_step": None},
    "ParallelStep": {"name": UNSET, "steps": UNSET, "*": 0, "fail_fast": True, "max_concurrency": 0},
    "WorkflowBuilder": {"name": None, "config": None, "*": 0, "version": 1, "reducers": None, "retention": None},
    "WorkflowEngine": {"graph": UNSET, "*": 0, "config": None},
    "GateNode": {"name": None, "routes": None},
    "LLMNode": {
        "name": None, "*": 0, "llm": UNSET, "prompt_template": "{input}", "system_prompt": None, "output_key": "output",
        "model": None, "temperature": None, "max_tokens": None,
    },
    "AgentNode": {"name": None, "*": 0, "agent": UNSET, "message_template": "{input}", "output_key": "output"},
    "ToolNode": {"name": None, "*": 0, "tool": UNSET, "input_key": None, "output_key": "output", "extra_keys": ()},
    "SubworkflowNode": {"name": None, "*": 0, "workflow": UNSET, "entry": None, "input_key": None, "output_key": None},
    "GraphConfig": {
        "*": 0, "enabled": True, "max_iterations": 25, "node_timeout": 120.0, "total_timeout": 0.0, "checkpoint_enabled": False,
        "parallel_branches": True, "max_parallel_branches": 0, "on_conflict": "error",
    },
    "SagaStep": {
        "name": UNSET, "action": UNSET, "compensation": None, "max_retries": 3, "retry_delay": 1.0, "idempotent": True, "timeout": None,
    },
    "BulkOperation": {
        "processor": UNSET, "config": None, "*": 0, "name": None, "on_progress": None, "on_complete": None, "on_error": None,
        "retention": None,
    },
    "BulkOperationConfig": {
        "batch_size": 10, "max_concurrency": 5, "timeout": 300.0, "retry_attempts": 3, "retry_delay": 1.0,
        "enable_progress_tracking": True, "circuit_breaker_config": None, "pipeline_timeout": 60.0, "stop_on_error": False,
    },
    "CircuitBreakerConfig": {"failure_threshold": 5, "reset_timeout": 30},
    "Transition": {"event": UNSET, "target": UNSET, "*": 0, "guard": None, "on_transition": None},
    "DatabaseStatePersistence": {"provider": None, "table_name": "workflow_state_transitions"},
    "SagaManager": {"store": None, "config": None},
    "SagaOrchestrator": {"store": None, "config": None},
    "SagaConfig": {
        "*": 0, "default_timeout_seconds": 300, "max_retries_per_step": 3, "retry_delay_seconds": 1.0, "enable_compensation": True,
        "persist_state": True, "cleanup_completed_after_hours": 24,
    },
    "AbstractWorkflowNode": {"name": None},
    "HumanNode": {"name": None, "*": 0, "prompt": None, "output_key": None, "timeout": None},
    "WorkflowRunner": {"engine": UNSET},
    "AbstractSaga": {},
    "saga_step": {
        "name": None, "*": 0, "compensation": None, "max_retries": 3, "retry_delay": 1.0, "timeout": None, "no_retry": (),
    },
    "step": {
        "first": None, "fn": None, "*": 0, "name": None, "retries": 3, "retry_delay": 1.0, "backoff": 2.0, "timeout": None, "no_retry": (),
    },
    "activity": {"fn": None, "*": 0, "name": None, "retry": None, "retries": None, "timeout": None},
    "workflow": {"name": None, "*": 0, "version": 1, "timeout": None, "retries": 0, "retry_delay": 1.0},
    "StateMachine": {
        "initial": None, "transitions": None, "*": 0, "states": (), "initial_state": None, "machine_id": None, "persistence": None,
        "on_enter": None, "on_exit": None,
    },
    "Application": {"name": "app"},
    "WorkflowProvider": {"config": None, "saga_store": None, "state_machine": None},
    "InMemorySagaStore": {},
    "SqlSagaStore": {"url": None},
    "Ok": {"value": UNSET},
    "Err": {"error": UNSET},
    "get_run": {"run_id": UNSET},
    "list_runs": {"*": 0, "status": None, "workflow": None, "limit": 100},
    "signal": {"run_id": UNSET, "signal": UNSET, "value": None},
    "cancel": {"run_id": UNSET},
    "recover": {"wait": False},
    "sleep": {"duration": UNSET},
    "now": {},
    "random": {},
    "uuid4": {},
    "wait_signal": {"name": UNSET, "timeout": None},
    "wait_condition": {"condition": UNSET, "timeout": None},
    "saga": {},
    "configure": {"url": None, "*": 0, "lease_ttl": None},
    # methods
    "Pipeline.add_step": {"step": UNSET},
    "Pipeline.execute": {"input": None, "*": 0, "run_id": None},
    "Pipeline.start": {"input": None, "*": 0, "run_id": None},
    "Pipeline.enqueue": {"input": None, "*": 0, "run_id": None},
    "WorkflowBuilder.add_node": {"name": UNSET, "*": 0, "node": None, "llm": None, "agent": None, "tool": None, "subworkflow": None},
    "WorkflowBuilder.add_edge": {"a": UNSET, "b": UNSET, "*": 0, "condition": None},
    "WorkflowBuilder.add_gate": {"name": UNSET, "routes": UNSET},
    "WorkflowBuilder.build": {},
    "AbstractWorkflowNode.execute": {"state": UNSET},
    "WorkflowEngine.execute": {"entry": None, "initial_state": None, "*": 0, "run_id": None, "state": None},
    "WorkflowEngine.start": {"entry": None, "initial_state": None, "*": 0, "run_id": None},
    "WorkflowEngine.enqueue": {"entry": None, "initial_state": None, "*": 0, "run_id": None},
    "WorkflowEngine.resume": {"run_id": UNSET, "input": UNSET, "*": 0, "node": None},
    "WorkflowRunner.resume": {"*": 0, "checkpoint_id": UNSET, "input": UNSET},
    "AbstractSaga.add_step": {"step": UNSET},
    "AbstractSaga.execute": {"*": 0, "run_id": None},
    "AbstractSaga.start": {"*": 0, "run_id": None},
    "AbstractSaga.enqueue": {"*": 0, "run_id": None},
    "AbstractSaga.get_id": {},
    "AbstractSaga.is_completed": {},
    "AbstractSaga.result": {"name": UNSET},
    "AbstractSaga.is_compatible_with": {"stored": UNSET},
    "SagaBase.is_compatible_with": {"stored": UNSET},
    "SagaStepResult.Ok": {"output": None},
    "SagaStepResult.fail": {"error": UNSET},
    "BulkOperation.execute": {"items": UNSET, "*": 0, "run_id": None},
    "BulkOperation.stream": {"items": UNSET, "*": 0, "run_id": None},
    "BulkOperation.start": {"items": UNSET, "*": 0, "run_id": None},
    "BulkOperation.enqueue": {"items": UNSET, "*": 0, "run_id": None},
    "BulkOperation.cancel": {},
    "StateMachine.can_transition": {"event": UNSET},
    "StateMachine.transition": {"event": UNSET},
    "StateMachine.history": {},
    "StateMachine.recover": {},
    "SagaManager.register": {"saga": UNSET, "name": None},
    "SagaManager.start": {"name": UNSET, "data": None, "saga_id": None},
    "SagaManager.enqueue": {"name": UNSET, "data": None, "saga_id": None},
    "SagaManager.get": {"saga_id": UNSET},
    "SagaManager.wait": {"saga_id": UNSET, "timeout": None},
    "SagaManager.list": {"name": None, "status": None},
    "SagaManager.cancel": {"saga_id": UNSET},
    "SagaManager.recover": {"wait": False, "timeout": None},
    "SagaOrchestrator.define": {"name": UNSET, "steps": UNSET, "start": None},
    "SagaStore.save": {"record": UNSET},
    "SagaStore.load": {"saga_id": UNSET},
    "SagaStore.list_by_name": {"saga_name": UNSET},
    "SagaStore.delete": {"saga_id": UNSET},
    "InMemorySagaStore.clear": {},
    "WorkflowModule.configure": {"config": None, "saga_store": None, "state_machine": None},
    "Application.add_module": {"module": UNSET},
    "Application.add_provider": {"provider": UNSET},
    "Provider.register": {"container": UNSET},
    "ContainerRegistrarProtocol.resolve": {"type": UNSET},
    "ContainerRegistrarProtocol.singleton": {"type": UNSET, "factory": UNSET},
    "StatePersistenceProtocol.load_transitions": {"machine_id": UNSET},
    "StatePersistenceProtocol.append": {"machine_id": UNSET},
    "SagaStoreProtocol.save": {"saga_id": UNSET, "state": UNSET, "data": UNSET},
    "SagaStoreProtocol.load": {"saga_id": UNSET},
    "SagaStoreProtocol.delete": {"saga_id": UNSET},
    "EventBusProtocol.subscribe": {"event": UNSET, "workflow": UNSET},
    "EventBusProtocol.publish": {"event": UNSET, "payload": None, "id": None},
    "RunHandle.result": {"timeout": None},
    "RunHandle.signal": {"signal": UNSET, "value": None},
    "RunHandle.events": {},
    "RunHandle.detach": {},
    # errors
    "PipelineStepError": {"step_name": UNSET, "run_id": UNSET, "errors": ()},
    "NodeExecutionError": {"node": UNSET, "cause": None},
    "NoRouteError": {"node": UNSET},
    "CycleDetectedError": {"iterations": UNSET},
    "StateConflictError": {"key": UNSET, "nodes": UNSET},
    "SagaError": {"step_name": UNSET, "cause": None, "compensated": (), "failed_compensations": ()},
    "WorkflowCompensationError": {"step_name": UNSET, "cause": None, "compensated": (), "failed_compensations": ()},
    "WorkflowVersionMismatchError": {"run_id": UNSET, "stored_version": UNSET, "code_version": UNSET},
    "SagaVersionMismatchError": {"saga_id": UNSET, "stored_version": UNSET, "code_version": UNSET},
    "Retry": {
        "max_attempts": 4, "initial": 1.0, "backoff": 2.0, "maximum": 100.0, "retry_on": None, "no_retry": (), "jitter": 0.0,
    },
}  # fmt: skip
ERRORS: Final[dict[str, tuple[type[BaseException], ...]]] = {
    "GraphValidationError": (durable.GraphExecutionError,),
    "NodeExecutionError": (durable.GraphExecutionError,),
    "NoRouteError": (durable.GraphExecutionError,),
    "CycleDetectedError": (durable.GraphExecutionError,),
    "StateConflictError": (durable.GraphExecutionError,),
    "GraphTimeoutError": (durable.GraphExecutionError,),
    "HumanInputRequiredError": (durable.GraphExecutionError,),
    "WorkflowCompensationError": (durable.SagaError,),
    "SagaVersionMismatchError": (durable.WorkflowVersionMismatchError,),
    "BulkOperationTimeoutError": (durable.BulkOperationError,),
    "BulkOperationCancelledError": (durable.BulkOperationError,),
    "GuardRejectedError": (durable.StateError,),
    "ActivityTimeoutError": (TimeoutError,),
    "PipelineStepError": (durable.DurableError,),
}


async def _work(item: Any = None) -> Any:
    return item


def _engine_of(node: AbstractWorkflowNode) -> WorkflowEngine:
    return WorkflowEngine(WorkflowBuilder("of-one").add_node(node).build())


# Whatever takes a duration.
DURATIONS: Final[dict[str, Callable[[Any], object]]] = {
    "step.timeout": lambda given: step(timeout=given)(_work),
    "step.retry_delay": lambda given: step(retry_delay=given)(_work),
    "activity.timeout": lambda given: activity(timeout=given)(_work),
    "activity.heartbeat_timeout": lambda given: activity(heartbeat_timeout=given)(_work),
    "workflow.timeout": lambda given: workflow(timeout=given)(_work),
    "workflow.retry_delay": lambda given: workflow(retry_delay=given)(_work),
    "Retry.initial": lambda given: Retry(initial=given),
    "Retry.maximum": lambda given: Retry(maximum=given),
    "Pipeline.timeout": lambda given: Pipeline("x", timeout=given),
    "FunctionStep.timeout": lambda given: FunctionStep("x", _work, timeout=given),
    "FunctionStep.retry_delay": lambda given: FunctionStep("x", _work, retry_delay=given),
    "GraphConfig.node_timeout": lambda given: GraphConfig(node_timeout=given),
    "GraphConfig.total_timeout": lambda given: GraphConfig(total_timeout=given),
    "node.timeout": lambda given: _engine_of(durable.FunctionNode("x", _work, timeout=given)),
    "node.retry_delay": lambda given: _engine_of(durable.FunctionNode("x", _work, retry_delay=given)),
    "GateNode.timeout": lambda given: _engine_of(durable.GateNode("x", timeout=given)),
    "HumanNode.timeout": lambda given: _engine_of(durable.HumanNode("x", timeout=given)),
    "SagaStep.timeout": lambda given: SagaStep("x", _work, timeout=given),
    "SagaStep.retry_delay": lambda given: SagaStep("x", _work, retry_delay=given),
    "saga_step.timeout": lambda given: saga_step(timeout=given)(_work),
    "saga_step.retry_delay": lambda given: saga_step(retry_delay=given)(_work),
    "SagaConfig.default_timeout_seconds": lambda given: durable.SagaConfig(default_timeout_seconds=given),
    "SagaConfig.retry_delay_seconds": lambda given: durable.SagaConfig(retry_delay_seconds=given),
    "SagaConfig.cleanup_completed_after_hours": lambda given: durable.SagaConfig(
        cleanup_completed_after_hours=given
    ),
    "BulkOperationConfig.timeout": lambda given: durable.BulkOperationConfig(timeout=given),
    "BulkOperationConfig.retry_delay": lambda given: durable.BulkOperationConfig(retry_delay=given),
    "BulkOperationConfig.pipeline_timeout": lambda given: durable.BulkOperationConfig(pipeline_timeout=given),
    "CircuitBreakerConfig.reset_timeout": lambda given: durable.CircuitBreakerConfig(reset_timeout=given),
}

# Everything that takes options, with one that it does not have.
MISSPELT: Final[dict[str, Callable[[], object]]] = {
    "step": lambda: step(retrys=1),  # type: ignore[call-overload]
    "activity": lambda: activity(time_out=1),  # type: ignore[call-overload]
    "activity.options": lambda: activity(_work).options(retrys=1),  # type: ignore[call-arg]
    "workflow": lambda: workflow(timeot=1),  # type: ignore[call-overload]
    "workflow.options": lambda: workflow(_work).options(runid="x"),  # type: ignore[call-arg]
    "saga_step": lambda: saga_step("x", retrys=1),  # type: ignore[call-overload]
    "Pipeline": lambda: Pipeline("x", [], timeot=1),  # type: ignore[call-arg]
    "FunctionStep": lambda: FunctionStep("x", _work, retrys=1),  # type: ignore[call-arg]
    "ParallelStep": lambda: durable.ParallelStep("x", [], fail_first=True),  # type: ignore[call-arg]
    "WorkflowBuilder": lambda: WorkflowBuilder("x", reducer={}),  # type: ignore[call-arg]
    "GraphConfig": lambda: GraphConfig(max_iteration=3),  # type: ignore[call-arg]
    "HumanNode": lambda: durable.HumanNode("x", promt="?"),  # type: ignore[call-arg]
    "SagaStep": lambda: SagaStep("x", _work, retries=1),  # type: ignore[call-arg]
    "SagaConfig": lambda: durable.SagaConfig(timeout=1),  # type: ignore[call-arg]
    "OrchestratedStep": lambda: durable.OrchestratedStep("x", _work, next="y"),  # type: ignore[call-arg]
    "BulkOperation": lambda: BulkOperation(_work, on_done=print),  # type: ignore[call-arg]
    "BulkOperationConfig": lambda: durable.BulkOperationConfig(batchsize=1),  # type: ignore[call-arg]
    "StateMachine": lambda: StateMachine("a", {"a": {}}, id="x"),  # type: ignore[call-arg]
    "Transition": lambda: durable.Transition("e", "a", gard=bool),  # type: ignore[call-arg]
    "Retry": lambda: Retry(attempts=1),  # type: ignore[call-arg]
    "configure": lambda: durable.configure(urll="x"),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_symbol_takes_what_is_documented(name: str) -> None:
    """Flat in `durable`, these parameters in this order, these defaults."""
    owner, _, method = name.partition(".")
    what = getattr(durable, owner)
    given = dict(inspect.signature(getattr(what, method) if method else what).parameters)
    given.pop("self", None)
    documented = SIGNATURES[name]
    by_name = list(documented)[list(documented).index("*") + 1 :] if "*" in documented else []

    names = [known for known in documented if known != "*"]
    assert list(given)[: len(names)] == names
    assert {known: given[known].default for known in names} == {known: documented[known] for known in names}
    assert all(given[known].kind is inspect.Parameter.KEYWORD_ONLY for known in by_name)


@pytest.mark.parametrize("what", MISSPELT)
def test_a_misspelt_option_is_a_type_error(what: str) -> None:
    """Where it is written, not where it would have been used."""
    with pytest.raises(TypeError):
        MISSPELT[what]()


@pytest.mark.parametrize("what", DURATIONS)
def test_a_duration_is_seconds_or_a_timedelta(what: str) -> None:
    """Whole or not, everywhere. What is none is refused where it is said, and not in the middle of a run."""
    for given in (2, 2.5, timedelta(seconds=2)):
        DURATIONS[what](given)
    for wrong in (-1, "2s", True, float("nan"), timedelta(seconds=-1)):
        with pytest.raises((ValueError, DefinitionError)):
            DURATIONS[what](wrong)


def test_a_sagas_configuration_keeps_durations_in_the_units_of_their_names() -> None:
    """So that whoever reads it need not ask which of the two was given."""
    config = durable.SagaConfig(
        default_timeout_seconds=timedelta(minutes=2), cleanup_completed_after_hours=timedelta(days=2)
    )

    assert (config.default_timeout_seconds, config.cleanup_completed_after_hours) == (120.0, 48.0)
    assert config == durable.SagaConfig(default_timeout_seconds=120, cleanup_completed_after_hours=48)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_of_the_classes_that_people_catch(name: str) -> None:
    """And all of them are ours."""
    error = getattr(durable, name)

    assert issubclass(error, (durable.DurableError,))
    assert all(issubclass(error, base) for base in ERRORS[name])


def test_step_and_activity_make_the_same_thing() -> None:
    """Two spellings; `step("x", fn)` too. Retries are attempts but the first; durations are seconds or timedelta."""
    made: list[Activity[..., Any]] = [
        step(_work),
        step(retries=3)(_work),
        step("other", _work),
        activity(_work),
        activity(name="x", retry=Retry(max_attempts=4))(_work),
    ]
    assert {type(one) for one in made} == {Activity}
    assert [one.name for one in made] == ["_work", "_work", "other", "_work", "x"]
    assert {repr(one.definition.retry) for one in made} == {repr(Retry())}
    assert (
        step(retry_delay=timedelta(seconds=2), timeout=timedelta(minutes=1))(_work).definition.timeout_us
        == 60_000_000
    )
    assert durable.StepTimeoutError is durable.ActivityTimeoutError


async def test_outside_of_runs_an_activity_is_its_function() -> None:
    """A coroutine in any case; `fn` is the plain function."""

    @step
    def plain(ctx: dict[str, int]) -> int:
        return ctx["n"] + 1

    assert await plain({"n": 1}) == 2
    assert plain.fn({"n": 1}) == 2


def test_statuses_are_texts() -> None:
    """Equal to them, and printed as them."""
    assert RunStatus.COMPLETED == "completed"
    assert f"{SagaState.COMPENSATED}" == "compensated"
    assert [state.value for state in SagaState] == [
        "pending",
        "running",
        "compensating",
        "completed",
        "failed",
        "compensated",
    ]
    assert {one.name for one in NodeType} == {
        "TASK",
        "GATE",
        "HUMAN",
        "LLM",
        "AGENT",
        "TOOL",
        "SUBWORKFLOW",
        "CUSTOM",
    }
    assert AbstractWorkflowNode.node_type is NodeType.TASK


def test_results_are_a_type_and_no_truth() -> None:
    """`Result[T, E]` can be written at run time; `bool()` of one is a mistake."""
    assert Result[int, str] == Ok[int] | Err[str]
    with pytest.raises(TypeError, match="ambiguous"):
        bool(Err("no"))
    with pytest.raises(durable.UnwrapError) as e:
        Err(ValueError("why")).unwrap()
    assert isinstance(e.value.__cause__, ValueError)


def test_names_of_the_standard_library_stay_what_they_are() -> None:
    """`from durable import *` shadows nothing: `random`, `signal` and the like are asked for by name."""
    import sys

    assert not set(durable.__all__) & (set(sys.stdlib_module_names) | set(dir(__import__("builtins"))))


def test_a_workflow_has_no_parameter_run_id() -> None:
    """It names the run at every call."""

    async def wrong(run_id: str) -> None: ...

    with pytest.raises(DefinitionError, match="run_id"):
        workflow(wrong)
