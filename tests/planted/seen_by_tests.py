"""Bugs that no seed can meet, since the simulation has one SQLite file and no author's code that cheats: a test finds each.

Postgres decides by rows that are locked, and the guards by what the interpreter tells of a workflow's code.
"""

from __future__ import annotations

from typing import Final

from tests.planted.harness import bug

SQL: Final = "durable/store/postgres/queries.sql"
WORKERS: Final = "durable/store/postgres/workers.py"
CONNECTION: Final = "durable/store/postgres/connection.py"
SERVER_TESTS: Final = "tests/store/test_postgres_server.py"
HANDLER_TESTS: Final = "tests/worker/test_signal_handlers.py"
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
        "network-unguarded",
        "what reaches for the network inside a workflow is refused",
        ("durable/engine/guards.py", '            "socket.getaddrinfo",\n', ""),
        tests=(GUARD_TESTS, "-k", "the_world_is_refused"),
    ),
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
    bug(
        "swallowed-guard-is-forgotten",
        "a guard that the author's code swallows parks the run all the same",
        (
            "durable/engine/guards.py",
            "    loop.on_guard(fault)  # also if the author's code swallows it\n",
            "",
        ),
        tests=(GUARD_TESTS, "-k", "swallowed"),
    ),
)

HANDLERS: Final = (
    bug(
        "first-step-before-early-signals",
        "signals that came first see the object of a class as its `__init__` made it",
        (
            "durable/worker/feeding.py",
            "            early=_leading_signals(run.inbox) if run.definition.signals else 0,\n",
            "            early=0,\n",
        ),
        tests=(HANDLER_TESTS, "-k", "that_came_first_see_the_object"),
    ),
    bug(
        "early-signals-are-not-counted-in-a-replay",
        "a run that is rebuilt between its early signals goes on as it would have",
        (
            "durable/engine/handlers.py",
            "        if self._early == 1:\n            self.expect_no_more()\n",
            "        if self._early == 1 and not self._loop.runtime.is_replaying:\n            self.expect_no_more()\n",
        ),
        tests=(HANDLER_TESTS, "-k", "that_came_first_see_the_object"),
    ),
    bug(
        "given-to-a-handler-is-read",
        "a signal whose handler never began goes on to the next generation",
        (
            "durable/engine/handlers.py",
            "        self.open[signal.msg] = signal.name\n",
            "        self.open[signal.msg] = signal.name\n        self._unread.pop(signal.msg, None)\n",
        ),
        tests=("tests/unit/engine/test_handlers.py", "-k", "never_began_are_unread"),
    ),
    bug(
        "handlers-error-ends-the-run-at-once",
        "what a handler raises fails the run through its body: steps of its saga are undone",
        (
            "durable/engine/instance.py",
            "                self._main.cancel()\n\n    def _handler_error_behind(",
            "                self._fail(error)\n\n    def _handler_error_behind(",
        ),
        tests=(HANDLER_TESTS, "-k", "what_a_handler_raises_fails_the_run"),
    ),
    bug(
        "handlers-error-is-forgotten",
        "a run whose body does not heed its handler's error fails all the same",
        (
            "durable/engine/instance.py",
            "                if self._handler_error is not None:\n                    raise self._handler_error\n",
            "",
        ),
        tests=(HANDLER_TESTS, "-k", "does_not_heed"),
    ),
    bug(
        "queries-may-ask",
        "a query that asks for something is refused",
        (
            "durable/engine/queries.py",
            "    if asked or loop.ready != before[0]:\n",
            "    if loop.ready != before[0]:\n",
        ),
        tests=("tests/client/test_queries.py", "-k", "does_more_than_look"),
    ),
)
