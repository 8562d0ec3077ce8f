"""From durable's errors to problems: which exit code, which hint. The one table of it."""

from __future__ import annotations

from typing import Final

from durable import (
    ArgumentsError,
    DefinitionError,
    DurableError,
    InboxFullError,
    InternalError,
    LeaseLostError,
    NotADatabaseError,
    PayloadError,
    PlatformFault,
    RunCancelledError,
    RunConflictError,
    RunNotFoundError,
    RunParkedError,
    SchemaVersionError,
    StoreBusyError,
    StoreError,
    UndecodableError,
    UnknownWorkflowError,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowTimeoutError,
    WorkflowVersionMismatchError,
)
from durable_cli.problems import (
    CONFLICT,
    DATABASE,
    NOT_FOUND,
    RUN_FAILED,
    TIMED_OUT,
    USAGE,
    Problem,
    near_ones,
    quoted,
    shell_word,
)

# The first class that fits decides: subclasses stand before their bases.
_CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (RunNotFoundError, NOT_FOUND),
    (UnknownWorkflowError, NOT_FOUND),
    (RunConflictError, CONFLICT),
    (WorkflowStateError, CONFLICT),
    (InboxFullError, CONFLICT),
    (WorkflowVersionMismatchError, CONFLICT),
    (RunParkedError, RUN_FAILED),
    (PlatformFault, RUN_FAILED),
    (WorkflowFailedError, RUN_FAILED),
    (RunCancelledError, RUN_FAILED),
    (WorkflowTimeoutError, RUN_FAILED),
    (ArgumentsError, USAGE),
    (PayloadError, USAGE),
    (DefinitionError, USAGE),
    (StoreError, DATABASE),
    (LeaseLostError, RUN_FAILED),
    (InternalError, RUN_FAILED),
    (TimeoutError, TIMED_OUT),
)

LIST_HINT: Final = "durable list --since 1h"


def explain(error: BaseException) -> Problem:
    """Return the problem to show for an error that reached the top."""
    if isinstance(error, Problem):
        return error
    code = next((code for cls, code in _CODES if isinstance(error, cls)), None)
    if code is None:
        return Problem(
            f"unexpected {type(error).__name__}: {error}",
            code=RUN_FAILED,
            hint="this is a fault of ours or of the system: --debug shows where",
        )
    return Problem(_message(error), code=code, hint=_hint(error))


def _message(error: BaseException) -> str:
    if isinstance(error, RunNotFoundError):
        return f"no run {quoted(error.run_id)}"
    return str(error) or type(error).__name__


def _hint(error: BaseException) -> str | None:
    match error:
        case RunNotFoundError():
            return near_ones(error.suggestions) or LIST_HINT
        case WorkflowStateError() | InboxFullError():
            return f"durable show {shell_word(error.run_id)}"
        case RunConflictError():
            return f"durable show {shell_word(error.run_id)}; another --id starts another run, --if-closed new starts a closed one anew"
        case WorkflowFailedError() | RunParkedError() | WorkflowTimeoutError():
            return f"durable show {shell_word(error.run_id)}"
        case RunCancelledError():
            return f"durable show {shell_word(error.run_id)}"
        case SchemaVersionError():
            return "upgrade: pip install --upgrade durable-sdk"
        case NotADatabaseError():
            return "name another file with --db or DURABLE_DB"
        case StoreBusyError():
            return "try again: another process holds the database, or its server is away"
        case StoreError():
            return "name the database with --db or DURABLE_DB; durable run and durable worker create it"
        case UndecodableError():
            return "encrypted payloads need their key: --key-file FILE or --codec TARGET"
        case InternalError():
            return "please report it; --debug shows where"
        case DurableError():
            return None
    return None
