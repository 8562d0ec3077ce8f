-- What operators hold back. A pause of a run stands on its row: whoever would set the run ready sets it held (status 4)
-- instead, in the same statement, so no claim ever meets a paused run.
ALTER TABLE run ADD COLUMN paused_at_us INTEGER;
ALTER TABLE run ADD COLUMN pause_reason TEXT;

CREATE INDEX run_paused ON run (owner) WHERE paused_at_us IS NOT NULL;

-- Pauses of task queues and of workers, by name: a worker's next incarnation is still paused.
CREATE TABLE pause (
    kind TEXT NOT NULL CHECK (kind IN ('task_queue', 'worker')),
    name TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    reason TEXT,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- What readers see of the latest generation of each run. The view `run_record` stays as it is for workers of the schema before.
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

-- Work that one worker does for all: who does it, by name of the work. A dead worker's role is anybody's.
CREATE TABLE role (
    name TEXT NOT NULL PRIMARY KEY,
    worker INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
