"""For tests of workflows: run them in no time, mock their activities, replay what they recorded, crash them everywhere.

Needs nothing but the library itself; pytest finds its fixtures, `durable_env` and `durable_journals`, by itself.
"""

from durable.replaying import Replayed
from durable.testing.crashing import CrashReport, Finding, NotCrashSafeError, crash_everywhere
from durable.testing.environment import Environment
from durable.testing.journals import Journals
from durable.testing.mocks import Call, Mock
from durable.testing.replaying import replay

__all__ = [
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
]
