-- Activities for the workers of another queue. A row is there from the turn that asks for one to its outcome; `attempt` has a row
-- beside it (completion 'remote') as long as the run waits for it. 9223372036854775807 stands for never.
CREATE TABLE activity_task (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    op INTEGER NOT NULL,
    task_queue TEXT NOT NULL,
    activity TEXT NOT NULL,
    name TEXT NOT NULL,
    key TEXT NOT NULL,
    args BLOB NOT NULL,
    policy TEXT NOT NULL,
    start_to_close_us INTEGER,
    schedule_to_start_us INTEGER,
    schedule_to_close_us INTEGER,
    heartbeat_us INTEGER,
    scheduled_at_us INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'started', 'lost')),
    ready_at_us INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    claim_no INTEGER NOT NULL DEFAULT 0,
    owner INTEGER,
    started_at_us INTEGER,
    care_at_us INTEGER NOT NULL,
    is_lost INTEGER NOT NULL DEFAULT 0,
    failure BLOB,
    details BLOB,
    closing TEXT NOT NULL DEFAULT '',
    close_reason TEXT
) STRICT;

CREATE UNIQUE INDEX activity_task_key ON activity_task (run, generation, op);
CREATE INDEX activity_task_ready ON activity_task (task_queue, activity, ready_at_us, id) WHERE state = 'ready';
CREATE INDEX activity_task_owned ON activity_task (owner) WHERE owner IS NOT NULL;
CREATE INDEX activity_task_care ON activity_task (care_at_us);

-- What a worker serves besides `task_queue` and `definitions`: more queues, and activities whose tasks it takes.
ALTER TABLE worker ADD COLUMN more_queues TEXT NOT NULL DEFAULT '[]';
ALTER TABLE worker ADD COLUMN activities TEXT NOT NULL DEFAULT '[]';
