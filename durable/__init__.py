"""Durable execution for Python, without a server: public names, and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from durable.activities import (
    Activity,
    ActivityInfo,
    activity,
    activity_info,
    heartbeat,
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
    SchemaVersionError,
    StoreBusyError,
    StoreError,
    StuckWorkflowError,
    UndecodableError,
    UnknownWorkflowError,
    WorkerLostError,
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
    now,
    patched,
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
from durable.retry import Retry, RetryAfter
from durable.workflows import Signal, Workflow, workflow

if TYPE_CHECKING:
    from durable.client import Backup as Backup
    from durable.client import Client as Client
    from durable.client import Pruned as Pruned
    from durable.client import Reopened as Reopened
    from durable.client import connect as connect
    from durable.default import cancel as cancel
    from durable.default import configure as configure
    from durable.default import get_run as get_run
    from durable.default import list_runs as list_runs
    from durable.default import recover as recover
    from durable.default import signal as signal
    from durable.journal.view import Blocker as Blocker
    from durable.journal.view import Entry as Entry
    from durable.journal.why import Why as Why
    from durable.journal.why import WhyReason as WhyReason
    from durable.payloads.codec import PayloadCodec as PayloadCodec
    from durable.payloads.encryption import Encryption as Encryption
    from durable.run_handle import Run as Run
    from durable.run_handle import RunHandle as RunHandle
    from durable.stacks import Stack as Stack
    from durable.stacks import StackFrame as StackFrame
    from durable.stacks import Standpoint as Standpoint
    from durable.worker.worker import Worker as Worker

__version__: Final = "0.1.0"

# Everything that needs the client or a worker is resolved at first use: `import durable` stays quick.
_LAZY: Final = {
    "Backup": "durable.client",
    "Blocker": "durable.journal.view",
    "Client": "durable.client",
    "Encryption": "durable.payloads.encryption",
    "Entry": "durable.journal.view",
    "PayloadCodec": "durable.payloads.codec",
    "Pruned": "durable.client",
    "Reopened": "durable.client",
    "Run": "durable.run_handle",
    "RunHandle": "durable.run_handle",
    "Stack": "durable.stacks",
    "StackFrame": "durable.stacks",
    "Standpoint": "durable.stacks",
    "Why": "durable.journal.why",
    "WhyReason": "durable.journal.why",
    "Worker": "durable.worker.worker",
    "cancel": "durable.default",
    "configure": "durable.default",
    "connect": "durable.client",
    "get_run": "durable.default",
    "list_runs": "durable.default",
    "recover": "durable.default",
    "signal": "durable.default",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'durable' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


# Names that shadow the standard library (random, signal) are importable, but not part of `*`.
__all__ = [
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
    "DefinitionError",
    "DurableError",
    "Encryption",
    "Entry",
    "Err",
    "InboxFullError",
    "InternalError",
    "JournalLimitError",
    "LeaseLostError",
    "Limits",
    "LivelockError",
    "NonDeterminismError",
    "NonRetryableError",
    "NotADatabaseError",
    "Ok",
    "PayloadCodec",
    "PayloadError",
    "PayloadTooLargeError",
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
    "SchemaVersionError",
    "Signal",
    "Stack",
    "StackFrame",
    "Standpoint",
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
    "WorkflowFailedError",
    "WorkflowGuardError",
    "WorkflowStateError",
    "WorkflowTimeoutError",
    "WorkflowVersionMismatchError",
    "activity",
    "activity_info",
    "as_completed",
    "cancel",
    "configure",
    "connect",
    "deprecate_patch",
    "get_run",
    "heartbeat",
    "info",
    "is_evicting",
    "is_replaying",
    "list_runs",
    "logger",
    "now",
    "patched",
    "raise_complete_async",
    "recover",
    "sleep",
    "step",
    "unguarded",
    "uuid4",
    "wait_condition",
    "wait_signal",
    "workflow",
]
