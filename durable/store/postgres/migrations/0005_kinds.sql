-- What a run is, in the words of patterns ("pipeline", "saga"), known before anybody has driven it. Of older runs their journals tell.
ALTER TABLE durable.run ADD COLUMN kind text NOT NULL DEFAULT '';

-- What readers see of the latest generation of each run.
CREATE OR REPLACE VIEW durable.run_seen AS
SELECT
    run.id, run.run_id, run.generation, run.epoch, run.workflow, run.version, run.task_queue, run.status,
    run.attempt, run.created_at_us, run.started_at_us, run.closed_at_us, run.deadline_us, run.due_at_us,
    run.ready_at_us, run.owner, worker.name AS owner_name, worker.is_alive AS owner_is_alive, run.reason,
    run_payload.input, run_payload.result, run_payload.failure,
    (SELECT count(*) FROM durable.inbox WHERE inbox.run = run.id) AS unread,
    run.paused_at_us, run.pause_reason, run.kind, run.parent
FROM durable.run
LEFT JOIN durable.run_payload ON run_payload.run = run.id AND run_payload.generation = run.generation
LEFT JOIN durable.worker ON worker.id = run.owner;
