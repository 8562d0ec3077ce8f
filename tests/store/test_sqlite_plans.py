"""How SQLite finds rows: what workers ask again and again must not read every run there is."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from durable.store.contract import Store
from durable.store.sqlite.schema import PACKAGE
from durable.store.statements import load_statements

pytestmark = pytest.mark.stores("sqlite")

BY_INDEX = {  # the one that must find the rows, where another would do worse
    "find_expired_runs": "run_expiring",
    "list_troubled_runs": "run_troubled",
    "list_troubled_runs_without_large_payloads": "run_troubled",
}
ASKED_OFTEN = (
    "claim_parked_run",
    "count_message",
    "find_parked_runs",
    "find_ready_runs",
    "find_ready_runs_among",
    "has_backlog",
    *BY_INDEX,
    "live_workers",
    "next_deadline",
    "next_due",
    "overdue_runs",
    "owned_runs",
    "read_ended",
    "read_inbox_of_worker",
    "read_owned_attempts",
    "read_owned_inboxes",
    "read_owned_journals",
    "read_owned_runs",
    "read_paused_runs",
    "wake_addresses",
    "wake_due_runs",
)
BIG_TABLES = ("run", "candidate", "journal", "inbox", "attempt", "run_payload", "worker")


@pytest.mark.parametrize("name", ASKED_OFTEN)
def test_what_is_asked_often_reads_no_table_from_end_to_end(store: Store, database: Path, name: str) -> None:
    """A hundred thousand runs that sleep, or are closed, cost an idle worker nothing. Partial indexes may be read whole."""
    statement = load_statements(PACKAGE)[name]
    parameters = dict.fromkeys(re.findall(r":(\w+)", statement), "[]")
    with sqlite3.connect(database) as reader:
        plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    reader.close()

    whole = [step for step in plan if re.fullmatch(rf"SCAN ({'|'.join(BIG_TABLES)})", step)]

    assert not whole, f"{name} reads a whole table:\n" + "\n".join(plan)
    assert BY_INDEX.get(name, "") in "\n".join(plan)
