-- Attempts that are completed from outside: whether one is open, answered or expired, and when it expires.
ALTER TABLE attempt ADD COLUMN completion TEXT NOT NULL DEFAULT '';
ALTER TABLE attempt ADD COLUMN limit_at_us INTEGER;
ALTER TABLE attempt ADD COLUMN heartbeat_us INTEGER;

-- Their answers are messages. A constraint can only be dropped with its table; ids go on where they were (P3).
DROP VIEW run_record;

DROP VIEW run_seen;

DROP VIEW run_whole;

CREATE TABLE inbox_of_any_kind (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    msg INTEGER NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    data BLOB NOT NULL,
    message_id TEXT,
    sent_at_us INTEGER NOT NULL
) STRICT;

INSERT INTO inbox_of_any_kind (id, run, msg, kind, name, data, message_id, sent_at_us)
SELECT id, run, msg, kind, name, data, message_id, sent_at_us FROM inbox;

-- An insert of 0 rows leaves no sequence to update.
DELETE FROM sqlite_sequence WHERE name = 'inbox_of_any_kind';

INSERT INTO sqlite_sequence (name, seq)
SELECT 'inbox_of_any_kind', seq FROM sqlite_sequence WHERE name = 'inbox';

DROP TABLE inbox;

ALTER TABLE inbox_of_any_kind RENAME TO inbox;

CREATE UNIQUE INDEX inbox_key ON inbox (run, msg);

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

CREATE VIEW run_seen AS
SELECT
    run.id, run.run_id, run.generation, run.epoch, run.workflow, run.version, run.task_queue, run.status,
    run.attempt, run.created_at_us, run.started_at_us, run.closed_at_us, run.deadline_us, run.due_at_us,
    run.ready_at_us, run.owner, worker.name AS owner_name, worker.is_alive AS owner_is_alive, run.reason,
    run_payload.input, run_payload.result, run_payload.failure,
    (SELECT count(*) FROM inbox WHERE inbox.run = run.id) AS unread,
    run.paused_at_us, run.pause_reason
FROM run
LEFT JOIN run_payload ON run_payload.run = run.id AND run_payload.generation = run.generation
LEFT JOIN worker ON worker.id = run.owner;

CREATE VIEW run_whole AS
SELECT
    run.id, run.run_id, run.generation, run.epoch, run.workflow, run.version, run.task_queue, run.status,
    run.attempt, run.created_at_us, run.started_at_us, run.closed_at_us, run.deadline_us, run.due_at_us,
    run.ready_at_us, run.owner, worker.name AS owner_name, worker.is_alive AS owner_is_alive, run.reason,
    whole_payload.input, whole_payload.result, whole_payload.failure,
    (SELECT count(*) FROM inbox WHERE inbox.run = run.id) AS unread,
    run.paused_at_us, run.pause_reason
FROM run
LEFT JOIN whole_payload ON whole_payload.run = run.id AND whole_payload.generation = run.generation
LEFT JOIN worker ON worker.id = run.owner;
