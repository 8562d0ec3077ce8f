-- Instants are microseconds UTC. Status numbers: durable/store/sqlite/codes.py.
-- Rows of a run are keyed by its small integer id; the text id is for people and stands in `run` only.

-- Marks the file as ours ("durb"), so that another program's database is refused untouched.
PRAGMA application_id = 1685418594;

CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- AUTOINCREMENT: the number of an incarnation is never used again (P8).
CREATE TABLE worker (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    task_queue TEXT NOT NULL,
    definitions TEXT NOT NULL,
    is_embedded INTEGER NOT NULL,
    is_alive INTEGER NOT NULL DEFAULT 1,
    wake_addr TEXT,
    started_at_us INTEGER NOT NULL,
    stopped_at_us INTEGER
) STRICT;

CREATE INDEX worker_alive ON worker (id) WHERE is_alive = 1;

-- Apart from `worker`, so that beats leave the fence row alone. `proof` is raised by observers: writing it shows that
-- they could write, and so that the silent worker could have, too (P10).
CREATE TABLE worker_heartbeat (
    worker INTEGER PRIMARY KEY,
    beat INTEGER NOT NULL DEFAULT 0,
    beat_at_us INTEGER NOT NULL,
    proof INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One narrow row per run id: the run's permanent address (P1). `generation` is the latest; closed ones go to the table
-- of that name. `is_delayed` marks a ready run with a `ready_at_us` ahead when it was written.
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    workflow TEXT NOT NULL,
    version INTEGER NOT NULL,
    task_queue TEXT NOT NULL,
    status INTEGER NOT NULL,
    generation INTEGER NOT NULL DEFAULT 1,
    epoch INTEGER NOT NULL DEFAULT 1,
    claim_no INTEGER NOT NULL DEFAULT 0,
    msg_seq INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 1,
    owner INTEGER,
    ready_at_us INTEGER NOT NULL,
    is_delayed INTEGER NOT NULL DEFAULT 0,
    due_at_us INTEGER,
    deadline_us INTEGER,
    created_at_us INTEGER NOT NULL,
    started_at_us INTEGER,
    closed_at_us INTEGER,
    reason TEXT,
    parent TEXT
) STRICT;

-- Claims seek (task_queue, workflow, version): runs that nobody serves do not slow down those that somebody does.
CREATE INDEX run_ready ON run (task_queue, workflow, version, ready_at_us, id) WHERE status = 0 AND is_delayed = 0;
CREATE INDEX run_delayed ON run (ready_at_us) WHERE status = 0 AND is_delayed = 1;
CREATE INDEX run_due ON run (due_at_us) WHERE status = 2 AND due_at_us IS NOT NULL;
CREATE INDEX run_owned ON run (owner) WHERE owner IS NOT NULL;
CREATE INDEX run_deadline ON run (deadline_us) WHERE status < 10 AND deadline_us IS NOT NULL;
CREATE INDEX run_resting ON run (workflow, version, task_queue, status, due_at_us) WHERE status IN (2, 3);
CREATE INDEX run_created ON run (created_at_us);

CREATE TABLE generation (
    run INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    workflow TEXT NOT NULL,
    version INTEGER NOT NULL,
    task_queue TEXT NOT NULL,
    status INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    deadline_us INTEGER,
    created_at_us INTEGER NOT NULL,
    started_at_us INTEGER,
    closed_at_us INTEGER NOT NULL,
    reason TEXT,
    PRIMARY KEY (run, generation)
) STRICT, WITHOUT ROWID;

CREATE TABLE run_payload (
    run INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    input BLOB NOT NULL,
    result BLOB,
    failure BLOB,
    PRIMARY KEY (run, generation)
) STRICT, WITHOUT ROWID;

-- A rowid table with an index beside it: turns of many runs share pages at the end of the file, only the small index
-- scatters (measured: twice the rows per second of a clustered key).
CREATE TABLE journal (
    run INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    part INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX journal_key ON journal (run, generation, turn, part);

CREATE TRIGGER journal_is_never_updated BEFORE UPDATE ON journal
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only: no row may be updated');
END;

CREATE TRIGGER journal_is_never_deleted BEFORE DELETE ON journal
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only: no row may be deleted');
END;

-- AUTOINCREMENT: rows are consumed by id (P3), so an id must never come back.
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    msg INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('signal', 'cancel')),
    name TEXT NOT NULL,
    data BLOB NOT NULL,
    message_id TEXT,
    sent_at_us INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX inbox_key ON inbox (run, msg);

-- Outlives consumption: a sender that tries again a week later is still recognised (P4).
CREATE TABLE message_id (
    run INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    msg INTEGER NOT NULL,
    PRIMARY KEY (run, message_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE request (
    request_id TEXT NOT NULL PRIMARY KEY,
    run INTEGER NOT NULL,
    generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE attempt (
    run INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    op INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('started', 'backoff', 'handed_back')),
    due_at_us INTEGER,
    failure BLOB,
    PRIMARY KEY (run, generation, op)
) STRICT, WITHOUT ROWID;

-- What readers see of the latest generation of each run.
CREATE VIEW run_record AS
SELECT
    run.id, run.run_id, run.generation, run.epoch, run.workflow, run.version, run.task_queue, run.status,
    run.attempt, run.created_at_us, run.started_at_us, run.closed_at_us, run.deadline_us, run.due_at_us,
    run.ready_at_us, run.owner, worker.name AS owner_name, worker.is_alive AS owner_is_alive, run.reason,
    run_payload.input, run_payload.result, run_payload.failure,
    (SELECT count(*) FROM inbox WHERE inbox.run = run.id) AS unread
FROM run
LEFT JOIN run_payload ON run_payload.run = run.id AND run_payload.generation = run.generation
LEFT JOIN worker ON worker.id = run.owner;
