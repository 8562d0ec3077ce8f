"""What is public: the names of `durable`, and that importing them is quick and quiet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import pytest

import durable
from durable import testing

EXPORTED: Final = {
    # defining
    "Activity",
    "Retry",
    "RetryAfter",
    "heartbeat",
    "Backup",
    "Pruned",
    "RecordedRun",
    "UnreadableRun",
    "Reopened",
    "Stack",
    "StackFrame",
    "Standpoint",
    "Why",
    "WhyReason",
    "Signal",
    "Workflow",
    "WorkflowContext",
    "activity",
    "step",
    "workflow",
    "workflow_of",
    # inside a workflow
    "RunInfo",
    "all_handlers_finished",
    "as_completed",
    "continue_as_new",
    "deprecate_patch",
    "info",
    "is_evicting",
    "is_replaying",
    "logger",
    "now",
    "on_query",
    "on_signal",
    "on_update",
    "patched",
    "sleep",
    "unguarded",
    "uuid4",
    "wait_answer",
    "wait_condition",
    "wait_signal",
    # inside an activity
    "ActivityInfo",
    "activity_info",
    "raise_complete_async",
    "shield_thread",
    # outside
    "Ask",
    "answer",
    "inbox",
    "Blocker",
    "Client",
    "CodecError",
    "Encryption",
    "Entry",
    "Limits",
    "PayloadCodec",
    "Run",
    "RunHandle",
    "RunStatus",
    "Worker",
    "cancel",
    "child",
    "configure",
    "connect",
    "get_run",
    "list_runs",
    "recover",
    # building patterns
    "derived_run_id",
    "Seconds",
    "make_activity",
    "make_workflow",
    "note",
    "scope",
    # pipelines
    "ConditionalStep",
    "FunctionStep",
    "ParallelStep",
    "Pipeline",
    "PipelineStepError",
    "StepAnswerError",
    "StepContext",
    "StepTimeoutError",
    "conditional",
    "parallel",
    "SagaScope",
    "saga",
    "SagaError",
    "WorkflowCompensationError",
    "SagaVersionMismatchError",
    "saga_step",
    "SagaStepResult",
    "SagaStepError",
    "SagaStepActivity",
    "AbstractSaga",
    "SagaStep",
    "SagaState",
    "LostStateWarning",
    "using",
    "delete_run",
    "get_handle",
    "SagaBase",
    "SagaManager",
    "SagaOrchestrator",
    "OrchestratedStep",
    "SagaContext",
    "SagaConfig",
    "SagaStore",
    "InMemorySagaStore",
    "SqlSagaStore",
    "SagaRecord",
    "SagaStepRecord",
    "SagaStoreProtocol",
    # graphs
    "AbstractWorkflowNode",
    "FunctionNode",
    "GateNode",
    "HumanNode",
    "NodeType",
    "NodeView",
    "GraphView",
    "LLMNode",
    "AgentNode",
    "ToolNode",
    "SubworkflowNode",
    "GraphConfig",
    "GraphResult",
    "NodeResult",
    "WorkflowBuilder",
    "WorkflowEngine",
    "WorkflowRunner",
    "WorkflowGraph",
    "GraphExecutionError",
    "GraphValidationError",
    "NodeExecutionError",
    "NoRouteError",
    "CycleDetectedError",
    "StateConflictError",
    "GraphTimeoutError",
    "HumanInputRequiredError",
    # state machines
    "DatabaseProviderProtocol",
    "DatabaseStatePersistence",
    "StatePersistenceProtocol",
    "StateTransition",
    "StateMachine",
    "Transition",
    "StateError",
    "GuardRejectedError",
    "StateConcurrencyError",
    "default_client",
    "check_table_name",
    "InMemoryStatePersistence",
    # bulk operations
    "PartThread",
    "finish_part",
    "leave_part",
    "part_context",
    "start_part",
    "take_part",
    "BulkOperation",
    "BulkStream",
    "BulkOperationConfig",
    "CircuitBreakerConfig",
    "BulkResult",
    "BulkItemError",
    "BulkOperationError",
    "BulkOperationTimeoutError",
    "BulkOperationCancelledError",
    "ActivityOutcome",
    # applications
    "Application",
    "Container",
    "ContainerRegistrarProtocol",
    "Module",
    "PipelineProtocol",
    "Provider",
    "WorkflowModule",
    "WorkflowProvider",
    "module",
    "EventBus",
    "EventBusProtocol",
    # results as values
    "Err",
    "Ok",
    "Result",
    "UnwrapError",
    # errors
    "ActivityClosedError",
    "ActivityError",
    "ActivityTimeoutError",
    "ArgumentsError",
    "BlockedLoopError",
    "DefinitionError",
    "DurableError",
    "InboxFullError",
    "InternalError",
    "EndlessContinuationError",
    "JournalLimitError",
    "LeaseLostError",
    "LivelockError",
    "NonDeterminismError",
    "NonRetryableError",
    "NotADatabaseError",
    "PayloadError",
    "PayloadTooLargeError",
    "PlatformFault",
    "PoisonError",
    "RunCancelledError",
    "RunConflictError",
    "RunNotFoundError",
    "RunParkedError",
    "RunTerminatedError",
    "SchemaVersionError",
    "StoreBusyError",
    "StoreError",
    "StuckWorkflowError",
    "UndecodableError",
    "UnknownWorkflowError",
    "UpdateFailedError",
    "UpdateRejectedError",
    "WorkerLostError",
    "WorkflowFailedError",
    "WorkflowGuardError",
    "WorkflowStateError",
    "WorkflowTimeoutError",
    "WorkflowVersionMismatchError",
}

# Importable, but not part of `from durable import *`: they would shadow modules of the standard library.
NOT_IN_STAR: Final = {"random", "signal"}

# What `import durable` must not bring along: each costs start-up time, and some are only needed by workers.
NOT_IMPORTED: Final = ("anyio", "asyncpg", "click", "durable_cli", "sqlite3")


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these() -> None:
    """A name that appears or disappears does so on purpose, and in the changelog."""
    assert set(durable.__all__) == EXPORTED


def test_the_public_names_are_sorted_and_named_once() -> None:
    """So that two people who add a name do not conflict for nothing."""
    assert list(durable.__all__) == sorted(set(durable.__all__))


@pytest.mark.parametrize("name", sorted(EXPORTED | NOT_IN_STAR))
def test_every_public_name_resolves(name: str) -> None:
    """Also the ones that are imported at first use."""
    assert getattr(durable, name) is not None


def test_every_public_error_derives_from_one_base() -> None:
    """`except durable.DurableError` catches whatever this library raises."""
    errors = [
        value
        for name in durable.__all__
        if isinstance(value := getattr(durable, name), type)
        and issubclass(value, BaseException)
        and not issubclass(value, Warning)
    ]

    assert all(issubclass(error, durable.DurableError) for error in errors)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """`hasattr` and misspelt imports behave as with any module."""
    assert not hasattr(durable, "no_such_name")


def test_star_import_shadows_no_module_of_the_standard_library() -> None:
    """`import random; from durable import *` must leave `random` alone."""
    clashes = set(durable.__all__) & set(sys.stdlib_module_names)

    assert clashes == set()


def test_importing_brings_no_driver_no_anyio_and_no_command_line() -> None:
    """A script that only defines workflows starts quickly."""
    code = f"import sys, json, durable; print(json.dumps([m for m in {NOT_IMPORTED!r} if m in sys.modules]))"

    assert json.loads(in_a_fresh_process(code)) == []


def test_importing_has_no_effects() -> None:
    """No thread is started, no signal handler set, no file written."""
    code = (
        "import os, signal, threading\n"
        "before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.listdir('.')\n"
        "import durable\n"
        "after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.listdir('.')\n"
        "assert before == after\n"
        "assert threading.active_count() == 1\n"
    )

    in_a_fresh_process(code)


def test_import_time_is_reported(record_property: Callable[[str, object], None]) -> None:
    """Not asserted: machines differ. `pytest -rP -k import_time` shows it."""
    code = "import time; t = time.perf_counter(); import durable; print(time.perf_counter() - t)"
    seconds = min(float(in_a_fresh_process(code)) for _ in range(3))

    print(f"import durable: {seconds * 1000:.0f} ms, best of 3")
    record_property("import_durable_seconds", seconds)


def test_the_testing_package_needs_nothing_that_only_tests_need() -> None:
    """`pip install durable-sdk` alone must do: pytest is for the fixtures, and those are in a module of their own."""
    code = (
        "import sys\n"
        "for name in ('pytest', 'hypothesis', '_pytest', 'cryptography', 'pydantic'): sys.modules[name] = None\n"
        "import durable.testing as testing\n"
        "assert all(hasattr(testing, name) for name in testing.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names_of_the_testing_package() -> None:
    """What is public besides `durable` itself."""
    assert set(testing.__all__) == {
        "Call",
        "CrashReport",
        "Environment",
        "Finding",
        "Journals",
        "Mock",
        "NotCrashSafeError",
        "Replayed",
        "crash_everywhere",
        "replay",
    }
