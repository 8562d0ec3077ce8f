-- Large payloads leave the rows that are read often: lists need not read them, and a retry copies their number, not them.
-- In their place stands a short note of their size, beside it the number of the row that holds them.

CREATE TABLE payload (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;

CREATE INDEX payload_run ON payload (run);

ALTER TABLE run_payload ADD COLUMN input_payload INTEGER;
ALTER TABLE run_payload ADD COLUMN result_payload INTEGER;
ALTER TABLE run_payload ADD COLUMN failure_payload INTEGER;
ALTER TABLE journal ADD COLUMN payload INTEGER;

-- Several generations of a run may share one, and so may rows of the journal: they go when the run goes, and not before.
CREATE TRIGGER payload_is_never_updated BEFORE UPDATE ON payload
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only: no payload of it may be updated');
END;

CREATE TRIGGER payload_is_deleted_by_retention_only BEFORE DELETE ON payload
WHEN NOT EXISTS (SELECT 1 FROM retention_run WHERE run = OLD.run)
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only: no payload of it may be deleted');
END;

-- The last turn that was written when the run last changed hands: a journal that ends before it has lost rows.
ALTER TABLE run ADD COLUMN last_turn INTEGER NOT NULL DEFAULT 0;

-- Payloads with the large ones in their places.
CREATE VIEW whole_payload AS
SELECT
    run, generation,
    coalesce((SELECT data FROM payload WHERE payload.id = run_payload.input_payload), input) AS input,
    coalesce((SELECT data FROM payload WHERE payload.id = run_payload.result_payload), result) AS result,
    coalesce((SELECT data FROM payload WHERE payload.id = run_payload.failure_payload), failure) AS failure
FROM run_payload;

-- As `run_seen`, which goes on to show what is in the rows themselves: of large payloads the note of their size.
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
