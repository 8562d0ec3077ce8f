"""Durable execution for Python, without a server: public names, and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from durable.activities import Activity, activity, make_activity, step
from durable.definitions import check_table_name
from durable.errors import (
    ActivityClosedError,
    ActivityError,
    ActivityTimeoutError,
    ArgumentsError,
    BlockedLoopError,
    CodecError,
    DefinitionError,
    DurableError,
    EndlessContinuationError,
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
    UpdateFailedError,
    UpdateRejectedError,
    WorkerLostError,
    WorkflowCompensationError,
    WorkflowFailedError,
    WorkflowGuardError,
    WorkflowStateError,
    WorkflowTimeoutError,
    WorkflowVersionMismatchError,
)
from durable.in_activity import (
    ActivityInfo,
    PartThread,
    activity_info,
    derived_run_id,
    finish_part,
    heartbeat,
    leave_part,
    part_context,
    raise_complete_async,
    shield_thread,
    start_part,
    take_part,
)
from durable.in_workflow import (
    RunInfo,
    all_handlers_finished,
    as_completed,
    continue_as_new,
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
    wait_answer,
    wait_condition,
    wait_signal,
)
from durable.in_workflow import (
    random as random,
)
from durable.journal.lifecycle import RunStatus
from durable.limits import Limits
from durable.messages import Signal, on_query, on_signal, on_update
from durable.result import Err, Ok, Result, UnwrapError
from durable.retry import Retry, RetryAfter, Seconds
from durable.workflows import (
    Workflow,
    WorkflowContext,
    child,
    make_workflow,
    workflow,
    workflow_of,
)

if TYPE_CHECKING:
    from durable.client import Client as Client
    from durable.client import connect as connect
    from durable.default import answer as answer
    from durable.default import cancel as cancel
    from durable.default import configure as configure
    from durable.default import default_client as default_client
    from durable.default import delete_run as delete_run
    from durable.default import get_handle as get_handle
    from durable.default import get_run as get_run
    from durable.default import inbox as inbox
    from durable.default import list_runs as list_runs
    from durable.default import recover as recover
    from durable.default import signal as signal
    from durable.default import using as using
    from durable.journal.view import Ask as Ask
    from durable.journal.view import Blocker as Blocker
    from durable.journal.view import Entry as Entry
    from durable.journal.why import Why as Why
    from durable.journal.why import WhyReason as WhyReason
    from durable.operating import Backup as Backup
    from durable.operating import Pruned as Pruned
    from durable.operating import Reopened as Reopened
    from durable.patterns.bulk import BulkOperation as BulkOperation
    from durable.patterns.bulk import BulkStream as BulkStream
    from durable.patterns.bulk_config import BulkItemError as BulkItemError
    from durable.patterns.bulk_config import BulkOperationCancelledError as BulkOperationCancelledError
    from durable.patterns.bulk_config import BulkOperationConfig as BulkOperationConfig
    from durable.patterns.bulk_config import BulkOperationError as BulkOperationError
    from durable.patterns.bulk_config import BulkOperationTimeoutError as BulkOperationTimeoutError
    from durable.patterns.bulk_config import BulkResult as BulkResult
    from durable.patterns.bulk_config import CircuitBreakerConfig as CircuitBreakerConfig
    from durable.patterns.calling import StepAnswerError as StepAnswerError
    from durable.patterns.calling import StepContext as StepContext
    from durable.patterns.graph.builder import WorkflowBuilder as WorkflowBuilder
    from durable.patterns.graph.config import GraphConfig as GraphConfig
    from durable.patterns.graph.definition import WorkflowGraph as WorkflowGraph
    from durable.patterns.graph.drawing import GraphView as GraphView
    from durable.patterns.graph.drawing import NodeView as NodeView
    from durable.patterns.graph.engine import WorkflowEngine as WorkflowEngine
    from durable.patterns.graph.engine import WorkflowRunner as WorkflowRunner
    from durable.patterns.graph.errors import CycleDetectedError as CycleDetectedError
    from durable.patterns.graph.errors import GraphExecutionError as GraphExecutionError
    from durable.patterns.graph.errors import GraphTimeoutError as GraphTimeoutError
    from durable.patterns.graph.errors import GraphValidationError as GraphValidationError
    from durable.patterns.graph.errors import HumanInputRequiredError as HumanInputRequiredError
    from durable.patterns.graph.errors import NodeExecutionError as NodeExecutionError
    from durable.patterns.graph.errors import NoRouteError as NoRouteError
    from durable.patterns.graph.errors import StateConflictError as StateConflictError
    from durable.patterns.graph.nodes import AbstractWorkflowNode as AbstractWorkflowNode
    from durable.patterns.graph.nodes import FunctionNode as FunctionNode
    from durable.patterns.graph.nodes import GateNode as GateNode
    from durable.patterns.graph.nodes import HumanNode as HumanNode
    from durable.patterns.graph.nodes import NodeType as NodeType
    from durable.patterns.graph.results import GraphResult as GraphResult
    from durable.patterns.graph.results import NodeResult as NodeResult
    from durable.patterns.graph.services import AgentNode as AgentNode
    from durable.patterns.graph.services import LLMNode as LLMNode
    from durable.patterns.graph.services import ToolNode as ToolNode
    from durable.patterns.graph.subgraph import SubworkflowNode as SubworkflowNode
    from durable.patterns.module import Application as Application
    from durable.patterns.module import Container as Container
    from durable.patterns.module import ContainerRegistrarProtocol as ContainerRegistrarProtocol
    from durable.patterns.module import Module as Module
    from durable.patterns.module import PipelineProtocol as PipelineProtocol
    from durable.patterns.module import Provider as Provider
    from durable.patterns.module import WorkflowModule as WorkflowModule
    from durable.patterns.module import WorkflowProvider as WorkflowProvider
    from durable.patterns.module import module as module
    from durable.patterns.module_events import EventBus as EventBus
    from durable.patterns.module_events import EventBusProtocol as EventBusProtocol
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
    from durable.patterns.state_machine import GuardRejectedError as GuardRejectedError
    from durable.patterns.state_machine import StateConcurrencyError as StateConcurrencyError
    from durable.patterns.state_machine import StateError as StateError
    from durable.patterns.state_machine import StateMachine as StateMachine
    from durable.patterns.state_machine import Transition as Transition
    from durable.patterns.state_records import DatabaseProviderProtocol as DatabaseProviderProtocol
    from durable.patterns.state_records import DatabaseStatePersistence as DatabaseStatePersistence
    from durable.patterns.state_records import InMemoryStatePersistence as InMemoryStatePersistence
    from durable.patterns.state_records import StatePersistenceProtocol as StatePersistenceProtocol
    from durable.patterns.state_records import StateTransition as StateTransition
    from durable.payloads.codec import PayloadCodec as PayloadCodec
    from durable.payloads.encryption import Encryption as Encryption
    from durable.recorded import RecordedRun as RecordedRun
    from durable.recorded import UnreadableRun as UnreadableRun
    from durable.run_handle import ActivityOutcome as ActivityOutcome
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
    "AbstractWorkflowNode": "durable.patterns.graph.nodes",
    "ActivityOutcome": "durable.run_handle",
    "AgentNode": "durable.patterns.graph.services",
    "Application": "durable.patterns.module",
    "Ask": "durable.journal.view",
    "Backup": "durable.operating",
    "Blocker": "durable.journal.view",
    "BulkItemError": "durable.patterns.bulk_config",
    "BulkOperation": "durable.patterns.bulk",
    "BulkOperationCancelledError": "durable.patterns.bulk_config",
    "BulkOperationConfig": "durable.patterns.bulk_config",
    "BulkOperationError": "durable.patterns.bulk_config",
    "BulkOperationTimeoutError": "durable.patterns.bulk_config",
    "BulkResult": "durable.patterns.bulk_config",
    "BulkStream": "durable.patterns.bulk",
    "CircuitBreakerConfig": "durable.patterns.bulk_config",
    "Client": "durable.client",
    "ConditionalStep": "durable.patterns.pipeline_steps",
    "Container": "durable.patterns.module",
    "ContainerRegistrarProtocol": "durable.patterns.module",
    "CycleDetectedError": "durable.patterns.graph.errors",
    "DatabaseProviderProtocol": "durable.patterns.state_records",
    "DatabaseStatePersistence": "durable.patterns.state_records",
    "Encryption": "durable.payloads.encryption",
    "Entry": "durable.journal.view",
    "EventBus": "durable.patterns.module_events",
    "EventBusProtocol": "durable.patterns.module_events",
    "FunctionNode": "durable.patterns.graph.nodes",
    "FunctionStep": "durable.patterns.pipeline_steps",
    "GateNode": "durable.patterns.graph.nodes",
    "GraphConfig": "durable.patterns.graph.config",
    "GraphExecutionError": "durable.patterns.graph.errors",
    "GraphResult": "durable.patterns.graph.results",
    "GraphTimeoutError": "durable.patterns.graph.errors",
    "GraphValidationError": "durable.patterns.graph.errors",
    "GraphView": "durable.patterns.graph.drawing",
    "GuardRejectedError": "durable.patterns.state_machine",
    "HumanInputRequiredError": "durable.patterns.graph.errors",
    "HumanNode": "durable.patterns.graph.nodes",
    "InMemorySagaStore": "durable.patterns.saga.stores",
    "InMemoryStatePersistence": "durable.patterns.state_records",
    "LLMNode": "durable.patterns.graph.services",
    "LostStateWarning": "durable.patterns.saga.noticing",
    "Module": "durable.patterns.module",
    "NoRouteError": "durable.patterns.graph.errors",
    "NodeExecutionError": "durable.patterns.graph.errors",
    "NodeResult": "durable.patterns.graph.results",
    "NodeType": "durable.patterns.graph.nodes",
    "NodeView": "durable.patterns.graph.drawing",
    "OrchestratedStep": "durable.patterns.saga.orchestrator",
    "ParallelStep": "durable.patterns.pipeline_steps",
    "PayloadCodec": "durable.payloads.codec",
    "Pipeline": "durable.patterns.pipeline",
    "PipelineProtocol": "durable.patterns.module",
    "PipelineStepError": "durable.patterns.pipeline_steps",
    "Provider": "durable.patterns.module",
    "Pruned": "durable.operating",
    "Reopened": "durable.operating",
    "RecordedRun": "durable.recorded",
    "UnreadableRun": "durable.recorded",
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
    "StateConcurrencyError": "durable.patterns.state_machine",
    "StateConflictError": "durable.patterns.graph.errors",
    "StateError": "durable.patterns.state_machine",
    "StateMachine": "durable.patterns.state_machine",
    "StatePersistenceProtocol": "durable.patterns.state_records",
    "StateTransition": "durable.patterns.state_records",
    "StepAnswerError": "durable.patterns.calling",
    "StepContext": "durable.patterns.calling",
    "SubworkflowNode": "durable.patterns.graph.subgraph",
    "ToolNode": "durable.patterns.graph.services",
    "Transition": "durable.patterns.state_machine",
    "Why": "durable.journal.why",
    "WhyReason": "durable.journal.why",
    "Worker": "durable.worker.worker",
    "WorkflowBuilder": "durable.patterns.graph.builder",
    "WorkflowEngine": "durable.patterns.graph.engine",
    "WorkflowGraph": "durable.patterns.graph.definition",
    "WorkflowModule": "durable.patterns.module",
    "WorkflowProvider": "durable.patterns.module",
    "WorkflowRunner": "durable.patterns.graph.engine",
    "answer": "durable.default",
    "cancel": "durable.default",
    "conditional": "durable.patterns.pipeline_steps",
    "configure": "durable.default",
    "connect": "durable.client",
    "default_client": "durable.default",
    "delete_run": "durable.default",
    "get_handle": "durable.default",
    "get_run": "durable.default",
    "inbox": "durable.default",
    "list_runs": "durable.default",
    "module": "durable.patterns.module",
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
    "AbstractWorkflowNode",
    "Activity",
    "ActivityClosedError",
    "ActivityError",
    "ActivityInfo",
    "ActivityOutcome",
    "ActivityTimeoutError",
    "AgentNode",
    "Application",
    "ArgumentsError",
    "Ask",
    "Backup",
    "BlockedLoopError",
    "Blocker",
    "BulkItemError",
    "BulkOperation",
    "BulkOperationCancelledError",
    "BulkOperationConfig",
    "BulkOperationError",
    "BulkOperationTimeoutError",
    "BulkResult",
    "BulkStream",
    "CircuitBreakerConfig",
    "Client",
    "CodecError",
    "ConditionalStep",
    "Container",
    "ContainerRegistrarProtocol",
    "CycleDetectedError",
    "DatabaseProviderProtocol",
    "DatabaseStatePersistence",
    "DefinitionError",
    "DurableError",
    "Encryption",
    "EndlessContinuationError",
    "Entry",
    "Err",
    "EventBus",
    "EventBusProtocol",
    "FunctionNode",
    "FunctionStep",
    "GateNode",
    "GraphConfig",
    "GraphExecutionError",
    "GraphResult",
    "GraphTimeoutError",
    "GraphValidationError",
    "GraphView",
    "GuardRejectedError",
    "HumanInputRequiredError",
    "HumanNode",
    "InMemorySagaStore",
    "InMemoryStatePersistence",
    "InboxFullError",
    "InternalError",
    "JournalLimitError",
    "LLMNode",
    "LeaseLostError",
    "Limits",
    "LivelockError",
    "LostStateWarning",
    "Module",
    "NoRouteError",
    "NodeExecutionError",
    "NodeResult",
    "NodeType",
    "NodeView",
    "NonDeterminismError",
    "NonRetryableError",
    "NotADatabaseError",
    "Ok",
    "OrchestratedStep",
    "ParallelStep",
    "PartThread",
    "PayloadCodec",
    "PayloadError",
    "PayloadTooLargeError",
    "Pipeline",
    "PipelineProtocol",
    "PipelineStepError",
    "PlatformFault",
    "PoisonError",
    "Provider",
    "Pruned",
    "RecordedRun",
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
    "StateConcurrencyError",
    "StateConflictError",
    "StateError",
    "StateMachine",
    "StatePersistenceProtocol",
    "StateTransition",
    "StepAnswerError",
    "StepContext",
    "StepTimeoutError",
    "StoreBusyError",
    "StoreError",
    "StuckWorkflowError",
    "SubworkflowNode",
    "ToolNode",
    "Transition",
    "UndecodableError",
    "UnknownWorkflowError",
    "UnreadableRun",
    "UnwrapError",
    "UpdateFailedError",
    "UpdateRejectedError",
    "Why",
    "WhyReason",
    "Worker",
    "WorkerLostError",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowCompensationError",
    "WorkflowContext",
    "WorkflowEngine",
    "WorkflowFailedError",
    "WorkflowGraph",
    "WorkflowGuardError",
    "WorkflowModule",
    "WorkflowProvider",
    "WorkflowRunner",
    "WorkflowStateError",
    "WorkflowTimeoutError",
    "WorkflowVersionMismatchError",
    "activity",
    "activity_info",
    "all_handlers_finished",
    "answer",
    "as_completed",
    "cancel",
    "check_table_name",
    "child",
    "conditional",
    "configure",
    "connect",
    "continue_as_new",
    "default_client",
    "delete_run",
    "deprecate_patch",
    "derived_run_id",
    "finish_part",
    "get_handle",
    "get_run",
    "heartbeat",
    "inbox",
    "info",
    "is_evicting",
    "is_replaying",
    "leave_part",
    "list_runs",
    "logger",
    "make_activity",
    "make_workflow",
    "module",
    "note",
    "now",
    "on_query",
    "on_signal",
    "on_update",
    "parallel",
    "part_context",
    "patched",
    "raise_complete_async",
    "recover",
    "saga",
    "saga_step",
    "scope",
    "shield_thread",
    "sleep",
    "start_part",
    "step",
    "take_part",
    "unguarded",
    "using",
    "uuid4",
    "wait_answer",
    "wait_condition",
    "wait_signal",
    "workflow",
    "workflow_of",
]
