"""Bugs in what meets the author's code where it is no plain function: handlers of signals and updates, queries, and what code must not do."""

from __future__ import annotations

from typing import Final

from tests.planted.harness import bug

HANDLERS: Final = (
    bug(
        "first-step-before-early-signals",
        "signals that came first see the object of a class as its `__init__` made it",
        (
            "durable/worker/feeding.py",
            "            early=_leading_messages(run.inbox) if run.definition.signals or run.definition.updates else 0,\n",
            "            early=0,\n",
        ),
    ),
    bug(
        "early-signals-are-not-counted-in-a-replay",
        "a run that is rebuilt between its early signals goes on as it would have",
        (
            "durable/engine/handlers.py",
            "        if self._early == 1:\n            self.expect_no_more()\n",
            "        if self._early == 1 and not self._loop.runtime.is_replaying:\n            self.expect_no_more()\n",
        ),
    ),
    bug(
        "given-to-a-handler-is-read",
        "a signal whose handler never began goes on to the next generation",
        (
            "durable/engine/handlers.py",
            "        self.open[signal.msg] = signal.name\n",
            "        self.open[signal.msg] = signal.name\n        self._unread.pop(signal.msg, None)\n",
        ),
    ),
    bug(
        "handlers-error-ends-the-run-at-once",
        "what a handler raises fails the run through its body: steps of its saga are undone",
        (
            "durable/engine/course.py",
            "                self._main.cancel()\n\n    def _handler_error_behind(",
            "                self._fail(error)\n\n    def _handler_error_behind(",
        ),
    ),
    bug(
        "handlers-error-is-forgotten",
        "a run whose body does not heed its handler's error fails all the same",
        (
            "durable/engine/course.py",
            "                if self._handler_error is not None:\n                    raise self._handler_error\n",
            "",
        ),
    ),
    bug(
        "queries-may-ask",
        "a query that asks for something is refused",
        (
            "durable/engine/queries.py",
            "    if asked or loop.ready != before[0]:\n",
            "    if loop.ready != before[0]:\n",
        ),
    ),
)

CHEATS: Final = (
    bug(
        "network-unguarded",
        "what reaches for the network inside a workflow is refused",
        ("durable/engine/guards.py", '            "socket.getaddrinfo",\n', ""),
    ),
    bug(
        "swallowed-guard-is-forgotten",
        "a guard that the author's code swallows parks the run all the same",
        (
            "durable/engine/guards.py",
            "    loop.on_guard(fault)  # also if the author's code swallows it\n",
            "",
        ),
    ),
)

UPDATES: Final = (
    bug(
        "validators-are-asked-again",
        "what the journal let in is in: a replay asks no validator",
        (
            "durable/engine/updates.py",
            "        if is_refused is None and not update.accepted and handler.validator is not None:\n",
            "        if not update.accepted and handler.validator is not None:\n",
        ),
        tests=("tests/unit/engine/test_updates.py", "-k", "no_replay_asks"),
    ),
    bug(
        "acknowledged-updates-are-asked-about-again",
        "an update that was answered is in the final state, whatever life that is of",
        (
            "durable/worker/reading.py",
            '            accepted=message.kind != "update",\n',
            '            accepted=message.kind == "accepted",\n',
        ),
        tests=("tests/worker/test_updates.py", "-k", "sqlite and life_from_the_beginning"),
    ),
    bug(
        "what-was-answered-is-given-up",
        "no run ends well before what it has answered in a former life is handled again",
        (
            "durable/engine/course.py",
            "        return self.updates is not None and self.updates.owes\n",
            "        return False\n",
        ),
    ),
    bug(
        "kept-without-its-answer",
        "a life that keeps an update, and not its answer, knows that this was given",
        (
            "durable/worker/leaving.py",
            "        kept.append(Retried(at=now, attempt=attempt, answered=answered_before(dropped)))\n",
            "        kept.append(Retried(at=now, attempt=attempt))\n",
        ),
    ),
    bug(
        "the-last-answer-counts",
        "whoever asks again with the id of an update is given the first answer",
        (
            "durable/updating.py",
            "                if not is_later_life:\n                    break\n",
            "                break\n",
        ),
        tests=("tests/worker/test_updates.py", "-k", "sqlite and workflow_retry_keeps"),
    ),
)
