"""Durable execution for Python, without a server: public names, and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from durable.activities import (
    Activity,
    ActivityInfo,
    activity,
    activity_info,
    derived_run_id,
    heartbeat,
    make_activity,
    raise_complete_async,
    step,
)
from durable.errors import (
    ActivityClosedError,
    ActivityError,
    ActivityTimeoutError,
    ArgumentsError,
    BlockedLoopError,
    CodecError,
    DefinitionError,
    DurableError,
    InboxFullError,
    InternalError,
    JournalLimitError,
    LeaseLostError,
    LivelockError,
    NonDeterminismError,
    NonRetryableError,
    NotADatabaseError,
    PayloadError,
    PayloadTooLargeError,
    PlatformFault,
    PoisonError,
    RunCancelledError,
    RunConflictError,
    RunNotFoundError,
    RunParkedError,
    RunTerminatedError,
    SagaError,
    SagaVersionMismatchError,
    SchemaVersionError,
    StoreBusyError,
    StoreError,
    StuckWorkflowError,
    UndecodableError,
    UnknownWorkflowError,
    WorkerLostError,
    WorkflowCompensationError,
    WorkflowFailedError,
    WorkflowGuardError,
    WorkflowStateError,
    WorkflowTimeoutError,
    WorkflowVersionMismatchError,
)
from durable.in_workflow import (
    RunInfo,
    as_completed,
    deprecate_patch,
    info,
    is_evicting,
    is_replaying,
    logger,
    note,
    now,
    patched,
    scope,
    sleep,
    unguarded,
    uuid4,
    wait_condition,
    wait_signal,
)
from durable.in_workflow import (
    random as random,
)
from durable.journal.lifecycle import RunStatus
from durable.limits import Limits
from durable.result import Err, Ok, Result, UnwrapError
from durable.retry import Retry, RetryAfter, Seconds
from durable.workflows import Signal, Workflow, WorkflowContext, make_workflow, workflow

if TYPE_CHECKING:
    from durable.client import Backup as Backup
    from durable.client import Client as Client
    from durable.client import Pruned as Pruned
    from durable.client import Reopened as Reopened
    from durable.client import connect as connect
    from durable.default import cancel as cancel
    from durable.default import configure as configure
    from durable.default import delete_run as delete_run
    from durable.default import get_handle as get_handle
    from durable.default import get_run as get_run
    from durable.default import list_runs as list_runs
    from durable.default import recover as recover
    from durable.default import signal as signal
    from durable.default import using as using
    from durable.journal.view import Blocker as Blocker
    from durable.journal.view import Entry as Entry
    from durable.journal.why import Why as Why
    from durable.journal.why import WhyReason as WhyReason
    from durable.patterns.calling import StepAnswerError as StepAnswerError
    from durable.patterns.calling import StepContext as StepContext
    from durable.patterns.pipeline import Pipeline as Pipeline
    from durable.patterns.pipeline_steps import ConditionalStep as ConditionalStep
    from durable.patterns.pipeline_steps import FunctionStep as FunctionStep
    from durable.patterns.pipeline_steps import ParallelStep as ParallelStep
    from durable.patterns.pipeline_steps import PipelineStepError as PipelineStepError
    from durable.patterns.pipeline_steps import conditional as conditional
    from durable.patterns.pipeline_steps import parallel as parallel
    from durable.patterns.saga.abstract import AbstractSaga as AbstractSaga
    from durable.patterns.saga.abstract import SagaStep as SagaStep
    from durable.patterns.saga.base import SagaBase as SagaBase
    from durable.patterns.saga.config import SagaConfig as SagaConfig
    from durable.patterns.saga.context import SagaContext as SagaContext
    from durable.patterns.saga.manager import SagaManager as SagaManager
    from durable.patterns.saga.mirror import SagaStoreProtocol as SagaStoreProtocol
    from durable.patterns.saga.noticing import LostStateWarning as LostStateWarning
    from durable.patterns.saga.orchestrator import OrchestratedStep as OrchestratedStep
    from durable.patterns.saga.orchestrator import SagaOrchestrator as SagaOrchestrator
    from durable.patterns.saga.records import SagaRecord as SagaRecord
    from durable.patterns.saga.records import SagaStepRecord as SagaStepRecord
    from durable.patterns.saga.states import SagaState as SagaState
    from durable.patterns.saga.steps import SagaStepActivity as SagaStepActivity
    from durable.patterns.saga.steps import SagaStepError as SagaStepError
    from durable.patterns.saga.steps import SagaStepResult as SagaStepResult
    from durable.patterns.saga.steps import saga_step as saga_step
    from durable.patterns.saga.stores import InMemorySagaStore as InMemorySagaStore
    from durable.patterns.saga.stores import SagaStore as SagaStore
    from durable.patterns.saga.stores import SqlSagaStore as SqlSagaStore
    from durable.payloads.codec import PayloadCodec as PayloadCodec
    from durable.payloads.encryption import Encryption as Encryption
    from durable.run_handle import Run as Run
    from durable.run_handle import RunHandle as RunHandle
    from durable.sagas import SagaScope as SagaScope
    from durable.sagas import saga as saga
    from durable.stacks import Stack as Stack
    from durable.stacks import StackFrame as StackFrame
    from durable.stacks import Standpoint as Standpoint
    from durable.worker.worker import Worker as Worker

__version__: Final = "0.1.0"

# Everything that needs the client or a worker is resolved at first use: `import durable` stays quick.
_LAZY: Final = {
    "AbstractSaga": "durable.patterns.saga.abstract",
    "Backup": "durable.client",
    "Blocker": "durable.journal.view",
    "Client": "durable.client",
    "ConditionalStep": "durable.patterns.pipeline_steps",
    "Encryption": "durable.payloads.encryption",
    "Entry": "durable.journal.view",
    "FunctionStep": "durable.patterns.pipeline_steps",
    "InMemorySagaStore": "durable.patterns.saga.stores",
    "LostStateWarning": "durable.patterns.saga.noticing",
    "OrchestratedStep": "durable.patterns.saga.orchestrator",
    "ParallelStep": "durable.patterns.pipeline_steps",
    "PayloadCodec": "durable.payloads.codec",
    "Pipeline": "durable.patterns.pipeline",
    "PipelineStepError": "durable.patterns.pipeline_steps",
    "Pruned": "durable.client",
    "Reopened": "durable.client",
    "Run": "durable.run_handle",
    "RunHandle": "durable.run_handle",
    "SagaBase": "durable.patterns.saga.base",
    "SagaConfig": "durable.patterns.saga.config",
    "SagaContext": "durable.patterns.saga.context",
    "SagaManager": "durable.patterns.saga.manager",
    "SagaOrchestrator": "durable.patterns.saga.orchestrator",
    "SagaRecord": "durable.patterns.saga.records",
    "SagaScope": "durable.sagas",
    "SagaState": "durable.patterns.saga.states",
    "SagaStep": "durable.patterns.saga.abstract",
    "SagaStepActivity": "durable.patterns.saga.steps",
    "SagaStepError": "durable.patterns.saga.steps",
    "SagaStepRecord": "durable.patterns.saga.records",
    "SagaStepResult": "durable.patterns.saga.steps",
    "SagaStore": "durable.patterns.saga.stores",
    "SagaStoreProtocol": "durable.patterns.saga.mirror",
    "SqlSagaStore": "durable.patterns.saga.stores",
    "Stack": "durable.stacks",
    "StackFrame": "durable.stacks",
    "Standpoint": "durable.stacks",
    "StepAnswerError": "durable.patterns.calling",
    "StepContext": "durable.patterns.calling",
    "Why": "durable.journal.why",
    "WhyReason": "durable.journal.why",
    "Worker": "durable.worker.worker",
    "cancel": "durable.default",
    "conditional": "durable.patterns.pipeline_steps",
    "configure": "durable.default",
    "connect": "durable.client",
    "delete_run": "durable.default",
    "get_handle": "durable.default",
    "get_run": "durable.default",
    "list_runs": "durable.default",
    "parallel": "durable.patterns.pipeline_steps",
    "recover": "durable.default",
    "saga": "durable.sagas",
    "saga_step": "durable.patterns.saga.steps",
    "signal": "durable.default",
    "using": "durable.default",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'durable' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


StepTimeoutError = ActivityTimeoutError  # the word of pipelines for it

# Names that shadow the standard library (random, signal) are importable, but not part of `*`.
__all__ = [
    "AbstractSaga",
    "Activity",
    "ActivityClosedError",
    "ActivityError",
    "ActivityInfo",
    "ActivityTimeoutError",
    "ArgumentsError",
    "Backup",
    "BlockedLoopError",
    "Blocker",
    "Client",
    "CodecError",
    "ConditionalStep",
    "DefinitionError",
    "DurableError",
    "Encryption",
    "Entry",
    "Err",
    "FunctionStep",
    "InMemorySagaStore",
    "InboxFullError",
    "InternalError",
    "JournalLimitError",
    "LeaseLostError",
    "Limits",
    "LivelockError",
    "LostStateWarning",
    "NonDeterminismError",
    "NonRetryableError",
    "NotADatabaseError",
    "Ok",
    "OrchestratedStep",
    "ParallelStep",
    "PayloadCodec",
    "PayloadError",
    "PayloadTooLargeError",
    "Pipeline",
    "PipelineStepError",
    "PlatformFault",
    "PoisonError",
    "Pruned",
    "Reopened",
    "Result",
    "Retry",
    "RetryAfter",
    "Run",
    "RunCancelledError",
    "RunConflictError",
    "RunHandle",
    "RunInfo",
    "RunNotFoundError",
    "RunParkedError",
    "RunStatus",
    "RunTerminatedError",
    "SagaBase",
    "SagaConfig",
    "SagaContext",
    "SagaError",
    "SagaManager",
    "SagaOrchestrator",
    "SagaRecord",
    "SagaScope",
    "SagaState",
    "SagaStep",
    "SagaStepActivity",
    "SagaStepError",
    "SagaStepRecord",
    "SagaStepResult",
    "SagaStore",
    "SagaStoreProtocol",
    "SagaVersionMismatchError",
    "SchemaVersionError",
    "Seconds",
    "Signal",
    "SqlSagaStore",
    "Stack",
    "StackFrame",
    "Standpoint",
    "StepAnswerError",
    "StepContext",
    "StepTimeoutError",
    "StoreBusyError",
    "StoreError",
    "StuckWorkflowError",
    "UndecodableError",
    "UnknownWorkflowError",
    "UnwrapError",
    "Why",
    "WhyReason",
    "Worker",
    "WorkerLostError",
    "Workflow",
    "WorkflowCompensationError",
    "WorkflowContext",
    "WorkflowFailedError",
    "WorkflowGuardError",
    "WorkflowStateError",
    "WorkflowTimeoutError",
    "WorkflowVersionMismatchError",
    "activity",
    "activity_info",
    "as_completed",
    "cancel",
    "conditional",
    "configure",
    "connect",
    "delete_run",
    "deprecate_patch",
    "derived_run_id",
    "get_handle",
    "get_run",
    "heartbeat",
    "info",
    "is_evicting",
    "is_replaying",
    "list_runs",
    "logger",
    "make_activity",
    "make_workflow",
    "note",
    "now",
    "parallel",
    "patched",
    "raise_complete_async",
    "recover",
    "saga",
    "saga_step",
    "scope",
    "sleep",
    "step",
    "unguarded",
    "using",
    "uuid4",
    "wait_condition",
    "wait_signal",
    "workflow",
]
