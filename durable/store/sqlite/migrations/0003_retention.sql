-- Retention: the one way by which rows leave the journal. A run is marked and deleted in one transaction, and the mark is gone
-- before the commit, so that nobody ever sees it; only closed runs can be marked, under a row of the audit.

CREATE TABLE retention (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_us INTEGER NOT NULL,
    before_us INTEGER NOT NULL,
    statuses TEXT,
    who TEXT NOT NULL,
    runs INTEGER NOT NULL DEFAULT 0,
    journal_rows INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE retention_run (
    run INTEGER PRIMARY KEY,
    retention INTEGER NOT NULL
) STRICT;

CREATE TRIGGER retention_takes_closed_runs_only BEFORE INSERT ON retention_run
WHEN NOT EXISTS (SELECT 1 FROM run WHERE id = NEW.run AND status >= 10)
    OR NOT EXISTS (SELECT 1 FROM retention WHERE id = NEW.retention)
BEGIN
    SELECT RAISE(ABORT, 'retention deletes closed runs only, under a row of the audit');
END;

DROP TRIGGER journal_is_never_deleted;

CREATE TRIGGER journal_is_deleted_by_retention_only BEFORE DELETE ON journal
WHEN NOT EXISTS (SELECT 1 FROM retention_run WHERE run = OLD.run)
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only: no row may be deleted');
END;

-- Request ids of a run are found by the run when it is deleted; keys rise, so an insert touches the last page only.
CREATE INDEX request_run ON request (run);
