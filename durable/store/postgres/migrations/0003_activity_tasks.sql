-- Activities for the workers of another queue. A row is there from the turn that asks for one to its outcome; `attempt` has a row
-- beside it (completion 'remote') as long as the run waits for it. 9223372036854775807 stands for never.
CREATE TABLE durable.activity_task (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run bigint NOT NULL,
    generation integer NOT NULL,
    op integer NOT NULL,
    task_queue text COLLATE "C" NOT NULL,
    activity text COLLATE "C" NOT NULL,
    name text NOT NULL,
    key text NOT NULL,
    args bytea NOT NULL,
    policy text NOT NULL,
    start_to_close_us bigint,
    schedule_to_start_us bigint,
    schedule_to_close_us bigint,
    heartbeat_us bigint,
    scheduled_at_us bigint NOT NULL,
    state text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'started', 'lost')),
    ready_at_us bigint NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    claim_no bigint NOT NULL DEFAULT 0,
    owner bigint,
    started_at_us bigint,
    care_at_us bigint NOT NULL,
    is_lost boolean NOT NULL DEFAULT false,
    failure bytea,
    details bytea,
    closing text NOT NULL DEFAULT '',
    close_reason text,
    CONSTRAINT activity_task_key UNIQUE (run, generation, op)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

CREATE INDEX activity_task_ready ON durable.activity_task (task_queue, activity, ready_at_us, id) WHERE state = 'ready';
CREATE INDEX activity_task_owned ON durable.activity_task (owner) WHERE owner IS NOT NULL;
CREATE INDEX activity_task_care ON durable.activity_task (care_at_us);

-- What a worker serves besides `task_queue` and `definitions`: more queues, and activities whose tasks it takes.
ALTER TABLE durable.worker ADD COLUMN more_queues text NOT NULL DEFAULT '[]';
ALTER TABLE durable.worker ADD COLUMN activities text NOT NULL DEFAULT '[]';
