"""Bugs that no seed can meet, since the simulation has one SQLite file and one thread: a test finds each.

Postgres decides by rows that are locked, and the guards by the thread in which a workflow's code runs.
"""

from __future__ import annotations

from typing import Final

from tests.planted.harness import bug

SQL: Final = "durable/store/postgres/queries.sql"
WORKERS: Final = "durable/store/postgres/workers.py"
CONNECTION: Final = "durable/store/postgres/connection.py"
SERVER_TESTS: Final = "tests/store/test_postgres_server.py"
GUARD_TESTS: Final = "tests/unit/engine/test_guards.py"

SERVER: Final = (
    bug(
        "callers-transaction-stalls-a-batch",
        "a run whose row somebody's open transaction holds is skipped (P5)",
        (
            SQL,
            "    WHERE run.id = ANY (:moving::bigint[]) AND EXISTS (SELECT 1 FROM fence)\n    ORDER BY run.id\n    FOR UPDATE SKIP LOCKED\n",
            "    WHERE run.id = ANY (:moving::bigint[]) AND EXISTS (SELECT 1 FROM fence)\n    ORDER BY run.id\n    FOR UPDATE NOWAIT\n",
        ),
        tests=(SERVER_TESTS, "-k", "callers_transaction_stalls_no_batch"),
    ),
    bug(
        "takeover-looks-before-it-locks",
        "a takeover waits for what the worker is writing, then looks at its beat again (P9)",
        (
            WORKERS,
            '    await db.fetch("lock_fences", worker=worker)\n    if not await db.fetch("stop_silent_heartbeat", worker=worker, lease_us=lease_us):\n        return None\n',
            '    if not await db.fetch("stop_silent_heartbeat", worker=worker, lease_us=lease_us):\n        return None\n    await db.fetch("lock_fences", worker=worker)\n',
        ),
        tests=(SERVER_TESTS, "-k", "beat_during_the_takeover_wins"),
    ),
    bug(
        "journal-read-too-early",
        "what a lost reply has left is read once the server is done with it (P16)",
        (
            SQL,
            "SELECT slot FROM durable.worker_fence WHERE worker = :worker ORDER BY slot FOR UPDATE;",
            "SELECT slot FROM durable.worker_fence WHERE worker = :worker ORDER BY slot;",
        ),
        tests=(SERVER_TESTS, "-k", "waits_for_what_is_still_being_written"),
    ),
    bug(
        "isolation-of-the-user",
        "transactions read what is committed, whatever the user's default is (P18)",
        (
            CONNECTION,
            '    "off": "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle',
            '    "off": "BEGIN; SET LOCAL idle',
        ),
        (
            CONNECTION,
            '                "default_transaction_isolation": "read committed",\n',
            "",
        ),
        tests=(SERVER_TESTS, "-k", "whatever_the_users_default_is"),
    ),
    bug(
        "collision-is-final",
        "a function that the server undid for a collision is repeated as a whole (P18)",
        (
            "durable/store/postgres/faults.py",
            "    return sqlstate(error) in _AGAIN\n",
            "    return not _AGAIN\n",
        ),
        tests=(SERVER_TESTS, "-k", "repeated_as_a_whole"),
    ),
)

GUARDS: Final = (
    bug(
        "guard-knows-no-thread",
        "activities may touch the world while a workflow is active in another thread (P27)",
        (
            "durable/engine/guards.py",
            "    if event not in _EVENTS:\n        return\n    loop = _get_running_loop()\n    if isinstance(loop, DeterministicLoop) and not _unguarded.get():",
            '    if event not in _EVENTS:\n        return\n    loop = getattr(DeterministicLoop, "active", None)\n    if isinstance(loop, DeterministicLoop) and not _unguarded.get():',
        ),
        (
            "durable/engine/loop.py",
            "        self._running = True\n        if self._parked_rounds:",
            "        self._running = True\n        DeterministicLoop.active = self\n        if self._parked_rounds:",
        ),
        (
            "durable/engine/loop.py",
            "            self._running = False\n            _set_running_loop(outer)\n",
            "            self._running = False\n            DeterministicLoop.active = None\n            _set_running_loop(outer)\n",
        ),
        tests=(GUARD_TESTS, "-k", "activity_thread_opens_files"),
    ),
)
