-- Every statement of the Postgres store. Named parameters; `durable` stands for the schema in the URL. Names are those of the
-- SQLite store where the statement does the same; a comment says where and why the two differ. Statuses: 0 ready, 1 owned,
-- 2 waiting, 3 parked, 4 held (it would be ready, but is paused), 10 and above closed. `:now_us` is null but for tests: the server's clock decides.
--
-- READ COMMITTED throughout: a statement sees what was committed when it began, and rows that it locks as they are now.
-- So whatever must be seen *after* a lock was waited for stands in a statement of its own.
--
-- Where a row is found by its id, its owner is compared with IS NOT DISTINCT FROM, which no index serves: a planner that believes that few
-- runs are owned would walk the index of owners, and past all that it keeps while somebody holds an old snapshot.

-- ─ schema ──

-- name: look_at_server
SELECT pg_backend_pid() AS pid, pg_is_in_recovery() AS is_standby;

-- name: look_at_schema
-- Is it ours, is it anybody's: as of one moment, for somebody may be making it right now.
SELECT coalesce(bool_or(pg_class.relname = 'migration'), false) AS is_ours, count(*) > 0 AS is_used
FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_namespace.nspname = :schema AND pg_class.relkind IN ('r', 'p', 'v', 'm', 'f');

-- name: lock_migrations
-- One migrator per database at a time, whatever the schema. Released with the transaction, so it works through a pooler, too.
SELECT pg_advisory_xact_lock(7166182714229055074);

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS "durable";

-- name: create_migration_table
CREATE TABLE IF NOT EXISTS durable.migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    applied_at_us bigint NOT NULL
);

-- name: read_schema_version
SELECT coalesce(max(number), 0) FROM durable.migration;

-- name: record_migration
INSERT INTO durable.migration (number, name, applied_at_us)
VALUES (:number, :name, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);

-- name: write_meta
INSERT INTO durable.meta (key, value) VALUES (:key, :value);

-- name: read_meta
SELECT value FROM durable.meta WHERE key = :key;

-- ─ workers ──

-- name: insert_worker
WITH new_worker AS (
    INSERT INTO durable.worker (name, host, pid, task_queue, definitions, is_embedded, started_at_us, more_queues, activities, lease_us)
    VALUES (:name, :host, :pid, :task_queue, :definitions, :is_embedded, durable.instant(:now_us), :more_queues, :activities, :lease_us)
    RETURNING id
), beating AS (
    INSERT INTO durable.worker_heartbeat (worker, beat_at_us) SELECT id, durable.instant(NULL) FROM new_worker
), fenced AS (
    INSERT INTO durable.worker_fence (worker, slot) SELECT id, slot FROM new_worker, generate_series(0, :slots::integer - 1) AS slot
)
SELECT id FROM new_worker;

-- name: beat
-- Leases live by the server's clock, also in tests. The takeover changes `is_alive` of this very row, so whoever comes
-- second sees what the first one did.
UPDATE durable.worker_heartbeat SET beat_at_us = durable.instant(NULL) WHERE worker = :worker AND is_alive RETURNING beat_at_us;

-- name: expire_beat
UPDATE durable.worker_heartbeat SET beat_at_us = 0 WHERE worker = ANY (:workers::bigint[]) AND is_alive;

-- name: silent_workers
SELECT worker.id, worker.name
FROM durable.worker
JOIN durable.worker_heartbeat ON worker_heartbeat.worker = worker.id
WHERE worker.is_alive AND worker_heartbeat.beat_at_us <= durable.instant(NULL) - greatest(:lease_us::bigint, worker.lease_us)
ORDER BY worker.id;

-- name: lost_workers
-- Those that did not beat for their own lease, whoever asks; `unsaid_us` for one that did not say how long that is.
SELECT worker.id
FROM durable.worker
JOIN durable.worker_heartbeat ON worker_heartbeat.worker = worker.id
WHERE worker.is_alive
    AND worker_heartbeat.beat_at_us <= durable.instant(NULL) - CASE worker.lease_us WHEN 0 THEN :unsaid_us::bigint ELSE worker.lease_us END
ORDER BY worker.id;

-- name: lock_worker
-- Somebody else at it takes it over; we need not wait.
SELECT 1 FROM durable.worker WHERE id = :worker AND is_alive FOR UPDATE SKIP LOCKED;

-- name: wait_for_worker
SELECT 1 FROM durable.worker WHERE id = :worker AND is_alive FOR UPDATE;

-- name: lock_fences
-- Waits for every fenced statement of this incarnation that the server is still executing (P9, P16).
SELECT slot FROM durable.worker_fence WHERE worker = :worker ORDER BY slot FOR UPDATE;

-- name: stop_heartbeat
UPDATE durable.worker_heartbeat SET is_alive = false WHERE worker = :worker;

-- name: stop_silent_heartbeat
-- A beat that was on its way when the fences were locked wins: the condition is looked at again once its row is free.
UPDATE durable.worker_heartbeat SET is_alive = false
WHERE worker = :worker AND is_alive
    AND beat_at_us <= durable.instant(NULL) - greatest(:lease_us::bigint, (SELECT lease_us FROM durable.worker WHERE id = :worker))
RETURNING worker;

-- name: stop_worker
WITH unfenced AS (DELETE FROM durable.worker_fence WHERE worker = :worker)
UPDATE durable.worker SET is_alive = false, stopped_at_us = durable.instant(:now_us) WHERE id = :worker AND is_alive;

-- name: suspects_of_worker
-- The run that a worker drove alone when it died (P14).
SELECT id, run_id FROM durable.run WHERE owner = :worker AND suspicion >= 2;

-- name: count_crash
WITH free AS MATERIALIZED (
    SELECT id FROM durable.run WHERE id = :run AND owner IS NOT DISTINCT FROM :worker AND suspicion >= 2 FOR UPDATE SKIP LOCKED
)
-- One that has written a turn since it was driven alone got on: something else killed the worker.
UPDATE durable.run SET
    crashes = CASE
        WHEN (
            SELECT coalesce(max(turn), 0) FROM durable.journal
            WHERE journal.run = run.id AND journal.generation = run.generation
        ) > run.trial_turn THEN 0
        WHEN suspicion = 3 THEN crashes + :at_rest::integer
        ELSE crashes + :crash::integer
    END,
    suspicion = 1
FROM free WHERE run.id = free.id RETURNING run.crashes;

-- name: park_poison
UPDATE durable.run SET status = 3, owner = NULL, reason = :reason, ready_at_us = durable.instant(:now_us), is_delayed = false
WHERE id = :run;

-- name: release_runs_of_worker
-- Runs whose row somebody's open transaction holds are left for later, and the worker is marked for it (P5). `is_crash`: nobody
-- knows which of them ended the worker, so all of them are suspects (P14).
WITH free AS MATERIALIZED (
    SELECT id FROM durable.run WHERE owner = :worker ORDER BY id FOR UPDATE SKIP LOCKED
), released AS (
    UPDATE durable.run SET
        status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, owner = NULL, ready_at_us = durable.instant(:now_us),
        is_delayed = false, suspicion = greatest(least(suspicion, 1), :is_crash::boolean::integer)
    FROM free WHERE run.id = free.id
    RETURNING 1
)
SELECT count(*) FROM released;

-- name: mark_strays
UPDATE durable.worker SET
    strays = CASE WHEN EXISTS (SELECT 1 FROM durable.run WHERE run.owner = :worker) THEN 1 + :is_crash::boolean::integer ELSE 0 END
WHERE id = :worker;

-- name: workers_with_strays
SELECT id, strays = 2 AS is_crash FROM durable.worker WHERE strays > 0 AND NOT is_alive;

-- name: role_of
SELECT worker FROM durable.role WHERE name = :role;

-- name: take_role
INSERT INTO durable.role AS known (name, worker)
SELECT :role::text, worker FROM durable.worker_fence WHERE worker = :worker AND slot = 0
ON CONFLICT (name) DO UPDATE SET worker = excluded.worker
WHERE NOT EXISTS (SELECT 1 FROM durable.worker_fence WHERE worker_fence.worker = known.worker)
RETURNING worker;

-- name: worker_is_alive
SELECT EXISTS (SELECT 1 FROM durable.worker_fence WHERE worker = :worker);

-- name: list_workers
SELECT id, name, host, pid, task_queue, is_embedded, is_alive, started_at_us, stopped_at_us, definitions,
    (SELECT count(*) FROM durable.run WHERE run.owner = worker.id) AS runs,
    (SELECT beat_at_us FROM durable.worker_heartbeat WHERE worker_heartbeat.worker = worker.id) AS beat_at_us,
    more_queues, activities, (SELECT count(*) FROM durable.activity_task WHERE activity_task.owner = worker.id) AS tasks, lease_us
FROM durable.worker
WHERE is_alive OR NOT :alive_only::boolean
ORDER BY id;

-- ─ starting ──

-- name: start_run
-- A start under an id that is free, in one statement. Delay and timeout begin now, by this clock. `epoch_is_new` divides by zero, and so undoes all of it, if retention
-- deleted a run of that id while the insert waited for it: then the epoch was read too early (P6).
WITH fence AS MATERIALIZED (
    SELECT worker FROM durable.worker_fence WHERE worker = :owner::bigint AND slot = :slot::smallint FOR UPDATE
), new_run AS (
    INSERT INTO durable.run AS made (
        run_id, epoch, workflow, version, task_queue, status, claim_no, owner, ready_at_us, is_delayed, deadline_us,
        created_at_us, started_at_us, parent, kind, retention_us
    )
    SELECT :run_id::text, (SELECT last_value FROM durable.epoch_floor) + 1, :workflow::text, :version::integer, :task_queue::text,
        CASE WHEN :owner::bigint IS NULL THEN 0 ELSE 1 END, CASE WHEN :owner::bigint IS NULL THEN 0 ELSE 1 END, :owner::bigint,
        durable.instant(:now_us) + :delay_us::bigint, :owner::bigint IS NULL AND :delay_us::bigint > 0,
        durable.instant(:now_us) + :timeout_us::bigint, durable.instant(:now_us), CASE WHEN :owner::bigint IS NULL THEN NULL ELSE durable.instant(:now_us) END,
        :parent::text, :kind::text, :retention_us::bigint
    WHERE (:owner::bigint IS NULL OR EXISTS (SELECT 1 FROM fence))
        AND NOT EXISTS (SELECT 1 FROM durable.request WHERE request_id = :request_id::text)
    ON CONFLICT (run_id) DO NOTHING
    RETURNING id, epoch, ready_at_us, is_delayed, deadline_us, created_at_us,
        1 / (CASE WHEN (SELECT last_value FROM durable.epoch_floor) < made.epoch THEN 1 ELSE 0 END) AS epoch_is_new
), payload AS (
    INSERT INTO durable.run_payload (run, generation, input) SELECT id, 1, :input::bytea FROM new_run
), remembered AS (
    INSERT INTO durable.request (request_id, run, generation) SELECT :request_id::text, id, 1 FROM new_run
)
SELECT id, epoch, ready_at_us, is_delayed, deadline_us, created_at_us, epoch_is_new, (SELECT name FROM durable.worker WHERE worker.id = :owner::bigint) AS owner_name
FROM new_run;

-- name: hold_fence
-- One fence row, for a fenced transaction of several statements; no row: this incarnation is dead.
SELECT worker.name FROM durable.worker_fence
JOIN durable.worker ON worker.id = worker_fence.worker
WHERE worker_fence.worker = :worker AND worker_fence.slot = :slot
FOR UPDATE OF worker_fence;

-- name: read_instant
SELECT durable.instant(:now_us);

-- name: lock_runs_by_run_ids
-- Those that a start may end or begin anew, in one order for everybody (P18).
SELECT id FROM durable.run WHERE run_id = ANY (:run_ids::text[]) ORDER BY id FOR UPDATE;

-- name: runs_of_requests
SELECT request_id, run, generation FROM durable.request WHERE request_id = ANY (:request_ids::text[]);

-- name: runs_by_run_ids
-- With the input of its start: one that has continued as new has another by now.
SELECT run.run_id, run.id, run.generation, run.status, run.workflow, run_payload.input
FROM durable.run
JOIN durable.run_payload ON run_payload.run = run.id
    AND run_payload.generation = coalesce(run.first_generation, run.generation)
WHERE run.run_id = ANY (:run_ids::text[]);

-- name: next_runs
-- Keys for new runs, and the first epoch they may have.
SELECT nextval(pg_get_serial_sequence(:run_table, 'id')) AS id, (SELECT last_value FROM durable.epoch_floor) + 1 AS epoch
FROM generate_series(1, :count::integer);

-- name: epoch_floor
SELECT last_value FROM durable.epoch_floor;

-- name: insert_run
-- In the order of their ids, so that two bulk starts with ids in common wait for each other in one direction only.
INSERT INTO durable.run (
    id, run_id, epoch, workflow, version, task_queue, status, claim_no, owner, ready_at_us, is_delayed, deadline_us,
    created_at_us, started_at_us, parent, kind, retention_us
)
SELECT * FROM unnest(
    :ids::bigint[], :run_ids::text[], :epochs::integer[], :workflows::text[], :versions::integer[], :task_queues::text[],
    :statuses::smallint[], :claim_nos::bigint[], :owners::bigint[], :ready_ats_us::bigint[], :are_delayed::boolean[],
    :deadlines_us::bigint[], :created_ats_us::bigint[], :started_ats_us::bigint[], :parents::text[], :kinds::text[],
    :retentions_us::bigint[]
) AS new_run (id, run_id, epoch, workflow, version, task_queue, status, claim_no, owner, ready_at_us, is_delayed, deadline_us,
    created_at_us, started_at_us, parent, kind, retention_us)
ORDER BY new_run.run_id COLLATE "C";

-- name: insert_run_payload
INSERT INTO durable.run_payload (run, generation, input)
SELECT * FROM unnest(:runs::bigint[], :generations::integer[], :inputs::bytea[]);

-- name: insert_request
INSERT INTO durable.request (request_id, run, generation)
SELECT * FROM unnest(:request_ids::text[], :runs::bigint[], :generations::integer[]);

-- name: archive_generation
INSERT INTO durable.generation (
    run, generation, epoch, workflow, version, task_queue, status, attempt, deadline_us, created_at_us, started_at_us,
    closed_at_us, reason
)
SELECT id, generation, epoch, workflow, version, task_queue, status, attempt, deadline_us, created_at_us, started_at_us,
    closed_at_us, reason
FROM durable.run WHERE id = :run AND status >= 10
RETURNING run;

-- name: restart_run
UPDATE durable.run SET
    generation = generation + 1, epoch = epoch + 1, workflow = :workflow, version = :version, task_queue = :task_queue,
    status = :status, claim_no = claim_no + 1, attempt = 1, owner = :owner, ready_at_us = :ready_at_us,
    is_delayed = :is_delayed, due_at_us = NULL, deadline_us = :deadline_us, created_at_us = :now_us,
    started_at_us = :started_at_us, closed_at_us = NULL, reason = NULL, parent = :parent, kind = :kind, retention_us = :retention_us, paused_at_us = NULL,
    pause_reason = NULL, suspicion = 0, crashes = 0, tried_code = '', last_turn = 0, first_generation = NULL,
    idle_generations = 0
WHERE id = :run
RETURNING generation, epoch, claim_no, msg_seq;

-- name: lifetime_of_run
-- How long it may take. Generations that only continue another share that one's deadline.
SELECT deadline_us - created_at_us FROM (
    SELECT generation, deadline_us, created_at_us FROM durable.generation WHERE run = :run
    UNION ALL
    SELECT generation, deadline_us, created_at_us FROM durable.run WHERE id = :run
) AS life
WHERE generation > (SELECT coalesce(max(generation), 0) FROM durable.generation WHERE run = :run AND status <> 15)
ORDER BY generation LIMIT 1;

-- name: reopen_run
UPDATE durable.run SET
    generation = generation + 1, epoch = epoch + :new_epoch::boolean::integer, attempt = :attempt, status = 0, claim_no = claim_no + 1,
    ready_at_us = :now_us, is_delayed = false, due_at_us = NULL, deadline_us = :deadline_us, created_at_us = :now_us,
    started_at_us = NULL, closed_at_us = NULL, reason = NULL, paused_at_us = NULL, pause_reason = NULL, suspicion = 0,
    crashes = 0, tried_code = '', last_turn = :last_turn, idle_generations = 0
WHERE id = :run;

-- ─ claiming ──

-- name: claim_ready_runs
-- SQLite looks first and claims what it found; here both are one statement, and whoever comes second skips what the first one
-- has locked. One bounded seek per definition: runs that nobody here serves, however many and old, are never looked at (P13).
-- `since_us` spares a look the entries of runs that were claimed before, as long as an old snapshot keeps those: see claiming.py.
-- The fence row is locked only if there is something to claim: an idle claimer writes nothing. First column: is the worker alive;
-- second: has it looked, which it has not while it or the queue is paused.
WITH may_claim AS MATERIALIZED (
    SELECT NOT EXISTS (SELECT 1 FROM durable.pause WHERE kind = 'task_queue' AND name = :task_queue)
        AND NOT EXISTS (
            SELECT 1 FROM durable.pause JOIN durable.worker ON worker.name = pause.name WHERE pause.kind = 'worker' AND worker.id = :worker
        ) AS yes
), found AS MATERIALIZED (
    SELECT candidate.id, candidate.ready_at_us
    FROM unnest(:workflows::text[], :versions::integer[]) AS wanted (workflow, version)
    CROSS JOIN LATERAL (
        SELECT run.id, run.ready_at_us FROM durable.run
        WHERE run.status = 0 AND NOT run.is_delayed AND run.task_queue = :task_queue
            AND run.workflow = wanted.workflow AND run.version = wanted.version AND run.ready_at_us >= :since_us::bigint
        ORDER BY run.ready_at_us, run.id
        LIMIT :count
        FOR UPDATE SKIP LOCKED
    ) AS candidate
    WHERE (SELECT yes FROM may_claim)
    UNION ALL
    SELECT delayed.id, delayed.ready_at_us FROM (
        SELECT run.id, run.ready_at_us FROM durable.run
        WHERE run.status = 0 AND run.is_delayed AND run.ready_at_us <= durable.instant(:now_us) AND run.ready_at_us >= :since_us::bigint
            AND run.task_queue = :task_queue
            AND (run.workflow, run.version) IN (SELECT * FROM unnest(:workflows::text[], :versions::integer[]))
            AND (SELECT yes FROM may_claim)
        ORDER BY run.ready_at_us, run.id
        LIMIT :count
        FOR UPDATE SKIP LOCKED
    ) AS delayed
), chosen AS MATERIALIZED (
    SELECT id FROM found ORDER BY ready_at_us, id LIMIT :count
), fence AS MATERIALIZED (
    SELECT worker FROM durable.worker_fence
    WHERE worker = :worker AND slot = :slot::smallint AND EXISTS (SELECT 1 FROM chosen)
    FOR UPDATE
), claimed AS (
    UPDATE durable.run SET
        status = 1, owner = :worker, claim_no = claim_no + 1, due_at_us = NULL, is_delayed = false,
        started_at_us = coalesce(started_at_us, durable.instant(:now_us)), suspicion = least(suspicion, 1)
    FROM chosen WHERE run.id = chosen.id AND EXISTS (SELECT 1 FROM fence)
    RETURNING run.id, run.ready_at_us, run.generation, run.claim_no, run.msg_seq
)
SELECT alive.yes, may_claim.yes AS has_looked, claimed.id, claimed.generation, claimed.claim_no, claimed.msg_seq, claimed.ready_at_us,
    durable.instant(:now_us) AS now_us
FROM may_claim CROSS JOIN (SELECT EXISTS (SELECT 1 FROM durable.worker_fence WHERE worker = :worker) AND ((SELECT count(*) FROM chosen) = 0 OR EXISTS (SELECT 1 FROM fence)) AS yes) AS alive
LEFT JOIN claimed ON true
ORDER BY claimed.ready_at_us, claimed.id;

-- name: earliest_ready_run
-- What the looks above leave out: the earliest run that is ready, before `before_us`.
SELECT min(candidate.ready_at_us) FROM (
    SELECT late.ready_at_us
    FROM unnest(:workflows::text[], :versions::integer[]) AS wanted (workflow, version)
    CROSS JOIN LATERAL (
        SELECT run.ready_at_us FROM durable.run
        WHERE run.status = 0 AND NOT run.is_delayed AND run.task_queue = :task_queue
            AND run.workflow = wanted.workflow AND run.version = wanted.version AND run.ready_at_us < :before_us::bigint
        ORDER BY run.ready_at_us, run.id
        LIMIT 1
    ) AS late
    UNION ALL
    SELECT delayed.ready_at_us FROM (
        SELECT run.ready_at_us FROM durable.run
        WHERE run.status = 0 AND run.is_delayed AND run.ready_at_us <= durable.instant(:now_us) AND run.ready_at_us < :before_us::bigint
            AND run.task_queue = :task_queue
            AND (run.workflow, run.version) IN (SELECT * FROM unnest(:workflows::text[], :versions::integer[]))
        ORDER BY run.ready_at_us, run.id
        LIMIT 1
    ) AS delayed
) AS candidate;

-- name: claim_ready_runs_of_any_queue
WITH chosen AS MATERIALIZED (
    SELECT run.id FROM durable.run
    WHERE run.status = 0 AND (NOT run.is_delayed OR run.ready_at_us <= durable.instant(:now_us))
        AND (run.workflow, run.version) IN (SELECT * FROM unnest(:workflows::text[], :versions::integer[]))
    AND NOT EXISTS (SELECT 1 FROM durable.pause WHERE kind = 'task_queue' AND name = run.task_queue)
        AND NOT EXISTS (
            SELECT 1 FROM durable.pause JOIN durable.worker ON worker.name = pause.name WHERE pause.kind = 'worker' AND worker.id = :worker
        )
    ORDER BY run.ready_at_us, run.id
    LIMIT :count
    FOR UPDATE SKIP LOCKED
), fence AS MATERIALIZED (
    SELECT worker FROM durable.worker_fence
    WHERE worker = :worker AND slot = :slot::smallint AND EXISTS (SELECT 1 FROM chosen)
    FOR UPDATE
), claimed AS (
    UPDATE durable.run SET
        status = 1, owner = :worker, claim_no = claim_no + 1, due_at_us = NULL, is_delayed = false,
        started_at_us = coalesce(started_at_us, durable.instant(:now_us)), suspicion = least(suspicion, 1)
    FROM chosen WHERE run.id = chosen.id AND EXISTS (SELECT 1 FROM fence)
    RETURNING run.id, run.ready_at_us, run.generation, run.claim_no, run.msg_seq
)
SELECT alive.yes, claimed.id, claimed.generation, claimed.claim_no, claimed.msg_seq
FROM (SELECT EXISTS (SELECT 1 FROM durable.worker_fence WHERE worker = :worker) AND ((SELECT count(*) FROM chosen) = 0 OR EXISTS (SELECT 1 FROM fence)) AS yes) AS alive
LEFT JOIN claimed ON true
ORDER BY claimed.ready_at_us, claimed.id;

-- name: claim_ready_runs_among
WITH chosen AS MATERIALIZED (
    SELECT run.id FROM durable.run
    WHERE run.id = ANY (:runs::bigint[]) AND run.status = 0
        AND (NOT run.is_delayed OR run.ready_at_us <= durable.instant(:now_us))
        AND (:task_queue::text IS NULL OR run.task_queue = :task_queue::text)
        AND (run.workflow, run.version) IN (SELECT * FROM unnest(:workflows::text[], :versions::integer[]))
    AND NOT EXISTS (SELECT 1 FROM durable.pause WHERE kind = 'task_queue' AND name = run.task_queue)
        AND NOT EXISTS (
            SELECT 1 FROM durable.pause JOIN durable.worker ON worker.name = pause.name WHERE pause.kind = 'worker' AND worker.id = :worker
        )
    ORDER BY run.ready_at_us, run.id
    LIMIT :count
    FOR UPDATE SKIP LOCKED
), fence AS MATERIALIZED (
    SELECT worker FROM durable.worker_fence
    WHERE worker = :worker AND slot = :slot::smallint AND EXISTS (SELECT 1 FROM chosen)
    FOR UPDATE
), claimed AS (
    UPDATE durable.run SET
        status = 1, owner = :worker, claim_no = claim_no + 1, due_at_us = NULL, is_delayed = false,
        started_at_us = coalesce(started_at_us, durable.instant(:now_us)), suspicion = least(suspicion, 1)
    FROM chosen WHERE run.id = chosen.id AND EXISTS (SELECT 1 FROM fence)
    RETURNING run.id, run.ready_at_us, run.generation, run.claim_no, run.msg_seq
)
SELECT alive.yes, claimed.id, claimed.generation, claimed.claim_no, claimed.msg_seq
FROM (SELECT EXISTS (SELECT 1 FROM durable.worker_fence WHERE worker = :worker) AND ((SELECT count(*) FROM chosen) = 0 OR EXISTS (SELECT 1 FROM fence)) AS yes) AS alive
LEFT JOIN claimed ON true
ORDER BY claimed.ready_at_us, claimed.id;

-- name: claim_parked_runs
WITH chosen AS MATERIALIZED (
    SELECT run.id, wanted.code
    FROM unnest(:workflows::text[], :versions::integer[], :codes::text[]) AS wanted (workflow, version, code)
    JOIN durable.run ON run.workflow = wanted.workflow AND run.version = wanted.version
    WHERE run.task_queue = :task_queue AND run.status = 3 AND run.paused_at_us IS NULL
        AND NOT EXISTS (SELECT 1 FROM durable.pause WHERE kind = 'task_queue' AND name = :task_queue)
        AND NOT EXISTS (
            SELECT 1 FROM durable.pause JOIN durable.worker ON worker.name = pause.name WHERE pause.kind = 'worker' AND worker.id = :worker
        )
        AND strpos(' ' || run.tried_code || ' ', ' ' || wanted.code || ' ') = 0
    ORDER BY run.id
    LIMIT :count
    FOR UPDATE OF run SKIP LOCKED
), fence AS MATERIALIZED (
    SELECT worker FROM durable.worker_fence
    WHERE worker = :worker AND slot = :slot::smallint AND EXISTS (SELECT 1 FROM chosen)
    FOR UPDATE
), claimed AS (
    UPDATE durable.run SET
        status = 1, owner = :worker, claim_no = claim_no + 1, is_delayed = false, reason = NULL,
        suspicion = least(suspicion, 1), tried_code = ltrim(tried_code || ' ' || chosen.code),
        trial_turn = (SELECT coalesce(max(turn), 0) FROM durable.journal WHERE journal.run = run.id AND journal.generation = run.generation)
    FROM chosen WHERE run.id = chosen.id AND EXISTS (SELECT 1 FROM fence)
    RETURNING run.id, run.generation
), forgotten AS (
    UPDATE durable.run_payload SET failure = NULL FROM claimed
    WHERE run_payload.run = claimed.id AND run_payload.generation = claimed.generation
)
SELECT alive.yes, claimed.id
FROM (SELECT EXISTS (SELECT 1 FROM chosen) AS found, EXISTS (SELECT 1 FROM fence) AS yes) AS alive
LEFT JOIN claimed ON true
WHERE alive.found
ORDER BY claimed.id;

-- name: read_owned_runs
-- One statement, so that run, journal, inbox and attempts are of one moment; SQLite reads them one after the other in a
-- transaction. Each of the last three comes as columns. A run whose input is missing is driven like any other, and parks: left
-- out, it would be owned and never move.
SELECT run.id, run.run_id, run.generation, run.epoch, run.claim_no, run.workflow, run.version, run.task_queue,
    run.attempt, coalesce(run_payload.input, ''), run.deadline_us, run.created_at_us, run.msg_seq, run.suspicion, run.parent, run.last_turn,
    run.idle_generations,
    told.turns, told.parts, told.datas,
    unread.ids, unread.msgs, unread.kinds, unread.names, unread.datas, unread.message_ids, unread.sent_ats_us,
    tried.ops, tried.attempts, tried.states, tried.due_ats_us, tried.failures, tried.details,
    tried.completions, tried.limit_ats_us, tried.heartbeats_us
FROM unnest(:runs::bigint[]) WITH ORDINALITY AS chosen (id, place)
JOIN durable.run ON run.id = chosen.id
LEFT JOIN durable.run_payload ON run_payload.run = run.id AND run_payload.generation = run.generation
CROSS JOIN LATERAL (
    SELECT array_agg(turn ORDER BY turn, part) AS turns, array_agg(part ORDER BY turn, part) AS parts,
        array_agg(data ORDER BY turn, part) AS datas
    FROM durable.journal WHERE journal.run = run.id AND journal.generation = run.generation
) AS told
CROSS JOIN LATERAL (
    SELECT array_agg(inbox.id ORDER BY msg) AS ids, array_agg(msg ORDER BY msg) AS msgs, array_agg(kind ORDER BY msg) AS kinds,
        array_agg(name ORDER BY msg) AS names, array_agg(data ORDER BY msg) AS datas,
        array_agg(message_id ORDER BY msg) AS message_ids, array_agg(sent_at_us ORDER BY msg) AS sent_ats_us
    FROM durable.inbox WHERE inbox.run = run.id
) AS unread
CROSS JOIN LATERAL (
    SELECT array_agg(op ORDER BY op) AS ops, array_agg(attempt.attempt ORDER BY op) AS attempts, array_agg(state ORDER BY op) AS states,
        array_agg(attempt.due_at_us ORDER BY op) AS due_ats_us, array_agg(failure ORDER BY op) AS failures,
        array_agg(details ORDER BY op) AS details, array_agg(completion ORDER BY op) AS completions,
        array_agg(limit_at_us ORDER BY op) AS limit_ats_us, array_agg(heartbeat_us ORDER BY op) AS heartbeats_us
    FROM durable.attempt WHERE attempt.run = run.id AND attempt.generation = run.generation
) AS tried
WHERE run.owner IS NOT DISTINCT FROM :worker
ORDER BY chosen.place;

-- name: read_inbox_of_worker
SELECT inbox.id, inbox.run, inbox.msg, inbox.kind, inbox.name, inbox.data, inbox.message_id, inbox.sent_at_us
FROM durable.run
JOIN durable.inbox ON inbox.run = run.id
WHERE run.owner = :worker
ORDER BY inbox.run, inbox.msg;

-- name: read_inbox_of_runs
SELECT inbox.id, inbox.run, inbox.msg, inbox.kind, inbox.name, inbox.data, inbox.message_id, inbox.sent_at_us
FROM unnest(:runs::bigint[]) AS chosen (id)
JOIN durable.inbox ON inbox.run = chosen.id
JOIN durable.run ON run.id = inbox.run AND run.owner IS NOT DISTINCT FROM :worker
ORDER BY inbox.run, inbox.msg;

-- name: owned_runs
SELECT id, claim_no FROM durable.run WHERE owner = :worker;

-- ─ committing ──

-- name: commit_staying_turns
-- The hot one: runs that stay with their owner and add a turn each. Atomic: all rows whose run is still this worker's, or none.
-- A run taken away at this very moment was closed by force, which adds a journal row of its own: one of the two meets the
-- key of the journal and is undone, so reading the run's row without locking it suffices (P8).
WITH fence AS MATERIALIZED (
    SELECT worker FROM durable.worker_fence WHERE worker = :worker AND slot = :slot::smallint FOR UPDATE
), written AS (
    INSERT INTO durable.journal (run, generation, turn, part, data)
    SELECT item.pk, item.generation, item.turn, item.part, item.data
    FROM unnest(:pks::bigint[], :claim_nos::bigint[], :generations::integer[], :turns::integer[], :parts::integer[], :datas::bytea[])
        AS item (pk, claim_no, generation, turn, part, data)
    JOIN durable.run ON run.id = item.pk AND run.owner IS NOT DISTINCT FROM :worker AND run.claim_no = item.claim_no
    WHERE EXISTS (SELECT 1 FROM fence)
    RETURNING run, part
)
SELECT EXISTS (SELECT 1 FROM fence) AS alive, array(SELECT run FROM written WHERE part = 1) AS committed;

-- name: commit_turns
-- A whole batch. `after`: 0 stay, 1 wait, 2 hand back, 3 park, 4 close. Verdicts: 0 committed, 1 stayed, 2 messages, 3 lost.
-- Rows that change hands are locked in the order of their ids (P18); one that is locked by somebody's open transaction is
-- skipped: its wait is refused, its close comes back as if a message had come (P5). An item without a turn does not meet a close
-- by force in the journal's key: it meets it in the run's row, or the close would not see the attempts that it adds.
WITH fence AS MATERIALIZED (
    SELECT worker FROM durable.worker_fence WHERE worker = :worker AND slot = :slot::smallint FOR UPDATE
), item AS MATERIALIZED (
    SELECT * FROM unnest(
        :pks::bigint[], :generations::integer[], :claim_nos::bigint[], :afters::smallint[], :seens::bigint[],
        :due_ats_us::bigint[], :statuses::smallint[], :reasons::text[], :codes::text[], :turns::integer[]
    ) AS item (pk, generation, claim_no, after, seen, due_at_us, status, reason, code, turn)
    WHERE EXISTS (SELECT 1 FROM fence)
), held AS MATERIALIZED (
    SELECT run.id, run.owner, run.claim_no, run.msg_seq FROM durable.run
    WHERE run.id = ANY (:moving::bigint[]) AND EXISTS (SELECT 1 FROM fence)
    ORDER BY run.id
    FOR UPDATE SKIP LOCKED
), marked AS MATERIALIZED (
    SELECT run.id, run.owner, run.claim_no FROM durable.run
    WHERE run.id = ANY (:marking::bigint[]) AND EXISTS (SELECT 1 FROM fence)
    ORDER BY run.id
    FOR KEY SHARE SKIP LOCKED
), judged AS MATERIALIZED (
    SELECT item.*,
        CASE
            WHEN run.id IS NULL THEN 3
            WHEN item.after = 0 AND item.turn IS NOT NULL THEN 0
            WHEN item.after = 0 AND marked.id IS NULL THEN 2
            WHEN item.after = 0 AND (marked.owner IS DISTINCT FROM :worker OR marked.claim_no <> item.claim_no) THEN 3
            WHEN item.after = 0 THEN 0
            WHEN held.id IS NULL THEN CASE WHEN item.after = 1 THEN 1 ELSE 2 END
            WHEN held.owner IS DISTINCT FROM :worker OR held.claim_no <> item.claim_no THEN 3
            WHEN item.after = 1 AND held.msg_seq <> item.seen THEN 1
            WHEN item.after = 4 AND held.msg_seq <> item.seen THEN 2
            ELSE 0
        END AS verdict
    FROM item
    LEFT JOIN durable.run ON run.id = item.pk AND run.owner IS NOT DISTINCT FROM :worker AND run.claim_no = item.claim_no
    LEFT JOIN held ON held.id = item.pk
    LEFT JOIN marked ON marked.id = item.pk
), moved AS (
    -- The message count is compared on the run row itself, never by looking into the inbox (P2).
    UPDATE durable.run SET
        status = CASE judged.after
            WHEN 1 THEN 2
            WHEN 2 THEN CASE WHEN run.paused_at_us IS NULL THEN 0 ELSE 4 END
            WHEN 3 THEN 3
            ELSE judged.status
        END,
        owner = NULL,
        due_at_us = CASE judged.after WHEN 1 THEN judged.due_at_us ELSE run.due_at_us END,
        ready_at_us = CASE judged.after WHEN 2 THEN durable.instant(:now_us) ELSE run.ready_at_us END,
        is_delayed = CASE judged.after WHEN 2 THEN false ELSE run.is_delayed END,
        closed_at_us = CASE judged.after WHEN 4 THEN durable.instant(:now_us) ELSE run.closed_at_us END,
        reason = CASE WHEN judged.after IN (3, 4) THEN judged.reason ELSE run.reason END,
        -- Code that lets a run go in order fits it; and since a parked run has got on, what tried it before may try it again (P13).
        trial_turn = CASE judged.after
            WHEN 3 THEN greatest(judged.turn, (SELECT coalesce(max(turn), 0) FROM durable.journal WHERE journal.run = run.id AND journal.generation = run.generation))
            ELSE run.trial_turn
        END,
        tried_code = CASE
            WHEN judged.after <> 3 THEN ''
            WHEN greatest(judged.turn, (SELECT coalesce(max(turn), 0) FROM durable.journal WHERE journal.run = run.id AND journal.generation = run.generation)) > run.trial_turn THEN judged.code
            WHEN strpos(' ' || run.tried_code || ' ', ' ' || judged.code || ' ') > 0 THEN run.tried_code
            ELSE ltrim(run.tried_code || ' ' || judged.code)
        END,
        last_turn = greatest(run.last_turn, judged.turn)
    FROM judged WHERE run.id = judged.pk AND judged.after <> 0 AND judged.verdict = 0
), written AS (
    INSERT INTO durable.journal (run, generation, turn, part, data)
    SELECT line.pk, line.generation, line.turn, line.part, line.data
    FROM unnest(:line_pks::bigint[], :line_generations::integer[], :line_turns::integer[], :line_parts::integer[], :line_datas::bytea[])
        AS line (pk, generation, turn, part, data)
    JOIN judged ON judged.pk = line.pk AND judged.verdict <= 1
), consumed AS (
    DELETE FROM durable.inbox USING unnest(:consumed_pks::bigint[], :consumed_ids::bigint[]) AS message (pk, id), judged
    WHERE inbox.id = message.id AND inbox.run = message.pk AND judged.pk = message.pk AND judged.verdict <= 1
), counted AS (
    INSERT INTO durable.attempt AS known (
        run, generation, op, attempt, state, due_at_us, failure, details, completion, limit_at_us, heartbeat_us
    )
    SELECT mark.pk, mark.generation, mark.op, mark.attempt, mark.state, mark.due_at_us, mark.failure, mark.details,
        mark.completion, mark.limit_at_us, mark.heartbeat_us
    FROM unnest(
        :mark_pks::bigint[], :mark_generations::integer[], :mark_ops::integer[], :mark_attempts::integer[], :mark_states::text[],
        :mark_due_ats_us::bigint[], :mark_failures::bytea[], :mark_details::bytea[],
        :mark_completions::text[], :mark_limit_ats_us::bigint[], :mark_heartbeats_us::bigint[]
    ) AS mark (pk, generation, op, attempt, state, due_at_us, failure, details, completion, limit_at_us, heartbeat_us)
    JOIN judged ON judged.pk = mark.pk AND judged.verdict <= 1
    ON CONFLICT (run, generation, op) DO UPDATE SET
        attempt = excluded.attempt, state = excluded.state, due_at_us = excluded.due_at_us, failure = excluded.failure,
        details = coalesce(excluded.details, known.details), completion = excluded.completion,
        limit_at_us = excluded.limit_at_us, heartbeat_us = excluded.heartbeat_us
), done AS (
    DELETE FROM durable.attempt USING unnest(:done_pks::bigint[], :done_generations::integer[], :done_ops::integer[])
        AS mark (pk, generation, op), judged
    WHERE attempt.run = mark.pk AND attempt.generation = mark.generation AND attempt.op = mark.op
        AND judged.pk = mark.pk AND judged.verdict <= 1
), ended AS (
    DELETE FROM durable.attempt USING judged
    WHERE judged.after = 4 AND judged.verdict = 0 AND attempt.run = judged.pk AND attempt.generation = judged.generation
), outcome AS (
    UPDATE durable.run_payload SET result = made.result, failure = made.failure
    FROM unnest(:outcome_pks::bigint[], :outcome_results::bytea[], :outcome_failures::bytea[]) AS made (pk, result, failure)
    JOIN judged ON judged.pk = made.pk AND judged.after IN (3, 4) AND judged.verdict = 0
    WHERE run_payload.run = judged.pk AND run_payload.generation = judged.generation
)
SELECT EXISTS (SELECT 1 FROM fence) AS alive, array(SELECT pk FROM judged) AS pks, array(SELECT verdict FROM judged) AS verdicts;

-- name: try_suspect
-- What came of earlier suspects, and which one is driven next, alone: in one statement, before it is driven (P14).
WITH fence AS MATERIALIZED (
    SELECT worker FROM durable.worker_fence WHERE worker = :worker AND slot = :slot::smallint FOR UPDATE
), cleared AS (
    -- Whether it is still held here or has gone to rest; not if somebody else has claimed it since.
    -- What has parked it has tried it.
    UPDATE durable.run SET suspicion = 0, crashes = 0, tried_code = CASE WHEN status = 3 THEN tried_code ELSE '' END
    FROM unnest(:passed_pks::bigint[], :passed_claim_nos::bigint[]) AS passed (pk, claim_no)
    WHERE run.id = passed.pk AND run.claim_no = passed.claim_no AND run.suspicion > 0 AND EXISTS (SELECT 1 FROM fence)
), adjourned AS (
    UPDATE durable.run SET suspicion = 1
    FROM unnest(:adjourned_pks::bigint[], :adjourned_claim_nos::bigint[]) AS adjourned (pk, claim_no)
    WHERE run.id = adjourned.pk AND run.claim_no = adjourned.claim_no AND run.suspicion >= 2 AND EXISTS (SELECT 1 FROM fence)
), tried AS (
    UPDATE durable.run SET
        suspicion = 2,
        trial_turn = (
            SELECT coalesce(max(turn), 0) FROM durable.journal
            WHERE journal.run = run.id AND journal.generation = run.generation
        ),
        tried_code = CASE
            WHEN (SELECT coalesce(max(turn), 0) FROM durable.journal WHERE journal.run = run.id AND journal.generation = run.generation) > trial_turn THEN :code::text
            WHEN strpos(' ' || tried_code || ' ', ' ' || :code::text || ' ') > 0 THEN tried_code
            ELSE ltrim(tried_code || ' ' || :code::text)
        END
    WHERE id = :run::bigint AND owner IS NOT DISTINCT FROM :worker AND claim_no = :claim_no::bigint AND EXISTS (SELECT 1 FROM fence)
    RETURNING 1
)
SELECT EXISTS (SELECT 1 FROM fence) AS alive, EXISTS (SELECT 1 FROM tried) AS is_ours;

-- name: rest_suspect
-- On SQLite a file beside the database tells; here it is a statement, hence only the end of the code is told (P14).
UPDATE durable.run SET suspicion = 3 WHERE id = :run AND owner IS NOT DISTINCT FROM :worker AND claim_no = :claim_no AND suspicion = 2 RETURNING id;

-- name: hand_back_run
UPDATE durable.run SET status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, owner = NULL, ready_at_us = durable.instant(:now_us), is_delayed = false
WHERE id = :run AND owner IS NOT DISTINCT FROM :worker AND claim_no = :claim_no;

-- name: hold_run
-- The run's row, for a close that takes several statements; skipped if somebody's open transaction holds it (P5).
SELECT msg_seq FROM durable.run WHERE id = :run AND owner IS NOT DISTINCT FROM :worker AND claim_no = :claim_no FOR UPDATE SKIP LOCKED;

-- name: is_owned
SELECT EXISTS (SELECT 1 FROM durable.run WHERE id = :run AND owner IS NOT DISTINCT FROM :worker AND claim_no = :claim_no);

-- name: archive_continued
INSERT INTO durable.generation (
    run, generation, epoch, workflow, version, task_queue, status, attempt, deadline_us, created_at_us, started_at_us,
    closed_at_us, reason
)
SELECT id, generation, epoch, workflow, version, task_queue, 15, attempt, deadline_us, created_at_us, started_at_us,
    durable.instant(:now_us), :reason::text
FROM durable.run WHERE id = :run;

-- name: next_generation
UPDATE durable.run SET
    generation = generation + 1, epoch = epoch + :new_epoch::boolean::integer, attempt = :attempt, status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END,
    owner = NULL, ready_at_us = :ready_at_us, is_delayed = :ready_at_us > durable.instant(:now_us), created_at_us = durable.instant(:now_us), started_at_us = NULL,
    last_turn = :last_turn, trial_turn = 0, tried_code = '',
    first_generation = CASE WHEN :is_new::boolean THEN coalesce(first_generation, generation) ELSE first_generation END,
    idle_generations = :idle_generations
WHERE id = :run;

-- name: insert_turn
-- Only after another statement of the same transaction has proven the fence.
INSERT INTO durable.journal (run, generation, turn, part, data)
SELECT :run::bigint, :generation::integer, :turn::integer, part.number, part.data
FROM unnest(:parts::bytea[]) WITH ORDINALITY AS part (data, number);

-- name: write_outcome
WITH ended AS (DELETE FROM durable.attempt WHERE attempt.run = :run AND attempt.generation = :generation)
UPDATE durable.run_payload SET result = :result, failure = :failure WHERE run_payload.run = :run AND run_payload.generation = :generation;

-- name: insert_next_input
INSERT INTO durable.run_payload (run, generation, input) VALUES (:run, :generation, :input);

-- name: copy_input
INSERT INTO durable.run_payload (run, generation, input)
SELECT run, generation + 1, input FROM durable.run_payload WHERE run = :run AND generation = :generation;

-- name: copy_turns
INSERT INTO durable.journal (run, generation, turn, part, data)
SELECT run, generation + 1, turn, part, data FROM durable.journal
WHERE run = :run AND generation = :generation AND turn <= :copy_turns;

-- name: consume_messages
DELETE FROM durable.inbox WHERE run = :run AND id = ANY (:ids::bigint[]);

-- name: redeliver_messages
INSERT INTO durable.inbox (run, msg, kind, name, data, message_id, sent_at_us)
SELECT :run::bigint, back.msg, back.kind, back.name, back.data, back.message_id, durable.instant(:now_us)
FROM unnest(:msgs::bigint[], :kinds::text[], :names::text[], :datas::bytea[], :message_ids::text[])
    AS back (msg, kind, name, data, message_id);

-- ─ children ──

-- name: address_of_parent
SELECT run_id, epoch FROM durable.run WHERE id = :parent;

-- name: mark_parent
UPDATE durable.run SET has_children = true WHERE id = :parent AND NOT has_children;

-- name: link_children
-- One that is missing from the answer is the child of another run, and that one is open. What was said at its start holds for as
-- long as it is open.
INSERT INTO durable.child (run, parent, epoch, op, on_parent_close)
SELECT one.run, :parent::bigint, :epoch::integer, one.op, one.policy
FROM unnest(:runs::bigint[], :ops::integer[], :policies::text[]) AS one (run, op, policy)
ON CONFLICT (run) DO UPDATE SET
    parent = excluded.parent, epoch = excluded.epoch, op = excluded.op,
    on_parent_close = CASE
        WHEN child.parent = excluded.parent AND NOT excluded.run = ANY (:new_runs::bigint[]) THEN child.on_parent_close
        ELSE excluded.on_parent_close
    END
WHERE child.parent = excluded.parent
    OR NOT EXISTS (SELECT 1 FROM durable.run WHERE run.id = child.parent AND run.status < 10)
RETURNING child.run;

-- name: last_of_life
-- Of a generation that was continued (15): the first one after it that was not; at the latest, the run's own row is one.
SELECT min(generation) FROM (
    SELECT generation FROM durable.generation WHERE run = :run AND generation > :generation AND status <> 15
    UNION ALL SELECT generation FROM durable.run WHERE id = :run
) AS later;

-- name: name_parent
UPDATE durable.run SET parent = :run_id WHERE id = :run;

-- name: cancel_child
-- Once is enough: a second request would meet its cleaning up.
UPDATE durable.child SET on_parent_close = CASE WHEN on_parent_close = 'cancel' THEN 'abandon' ELSE on_parent_close END
FROM durable.run
WHERE run.id = child.run AND run.run_id = :run_id AND run.status < 10 AND child.parent = :parent
RETURNING child.run;

-- name: tell_run
-- A message of ours in a transaction of ours; that it may have been told before is no matter.
WITH counted AS (
    UPDATE durable.run SET
        msg_seq = msg_seq + 1,
        ready_at_us = CASE WHEN status = 2 THEN durable.instant(:now_us) ELSE ready_at_us END,
        due_at_us = CASE WHEN status = 2 THEN NULL ELSE due_at_us END,
        is_delayed = CASE WHEN status = 2 THEN false ELSE is_delayed END,
        status = CASE WHEN status <> 2 THEN status WHEN paused_at_us IS NULL THEN 0 ELSE 4 END
    WHERE id = :run AND status < 10
    RETURNING id, msg_seq
)
INSERT INTO durable.inbox (run, msg, kind, name, data, message_id, sent_at_us)
SELECT id, msg_seq, :kind::text, :name::text, coalesce(:data::bytea, 'null'), :message_id::text, durable.instant(:now_us) FROM counted;

-- ─ time ──

-- name: wake_due_runs
WITH due AS MATERIALIZED (
    SELECT id FROM durable.run WHERE status = 2 AND due_at_us IS NOT NULL AND due_at_us <= durable.instant(:now_us)
    ORDER BY due_at_us, id LIMIT :count
    FOR UPDATE SKIP LOCKED
), woken AS (
    UPDATE durable.run SET
        status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, ready_at_us = due_at_us, is_delayed = false, due_at_us = NULL
    FROM due WHERE run.id = due.id
    RETURNING 1
)
SELECT count(*) FROM woken;

-- name: next_due
-- Timers of waiting runs and starts of delayed ones; those already past stand in the index until somebody claims them.
SELECT
    (SELECT min(due_at_us) FROM durable.run WHERE status = 2 AND due_at_us IS NOT NULL) AS due_at_us,
    (SELECT min(ready_at_us) FROM durable.run WHERE status = 0 AND is_delayed AND ready_at_us > durable.instant(:now_us)) AS ready_at_us,
    (SELECT min(deadline_us) FROM durable.run WHERE status < 10 AND deadline_us IS NOT NULL) AS deadline_us,
    durable.instant(:now_us) AS now_us;

-- name: overdue_runs
SELECT id, generation, durable.instant(:now_us) AS now_us FROM durable.run
WHERE status < 10 AND deadline_us IS NOT NULL AND deadline_us <= durable.instant(:now_us)
ORDER BY deadline_us, id LIMIT :count
FOR UPDATE SKIP LOCKED;

-- ─ messages and control ──

-- name: address_of_run
SELECT id, generation, status, started_at_us FROM durable.run WHERE run_id = :run_id;

-- name: lock_address_of_run
SELECT id, generation, status, started_at_us, durable.instant(:now_us) AS now_us FROM durable.run WHERE run_id = :run_id FOR UPDATE;

-- name: find_message_id
SELECT msg FROM durable.message_id WHERE run = :run AND message_id = :message_id;

-- name: send_message
-- No number: unknown, closed, full, or that message id is known. With a channel the procedure ends the transaction and tells the workers.
CALL durable.send_message(
    NULL, :now_us, :run_id, :kind, :name, :data, :message_id, :unread_max, :channel, :sender
);

-- name: wait_for_disk
-- The commit after it is not over before all that was committed before is on the disk, if the session waits for that at all.
SELECT pg_logical_emit_message(true, 'wait', '');

-- name: is_unread
SELECT EXISTS (SELECT 1 FROM durable.inbox WHERE run = :run AND msg = :msg);

-- name: count_unread
SELECT count(*) FROM (SELECT 1 FROM durable.inbox WHERE run = :run LIMIT :count) AS unread;

-- name: close_run_by_force
-- The claim number rises, so that whoever owned the run can write nothing more; the journal row comes after the last one. An
-- owner's turn that is being written at this moment meets the same key: one of the two is undone and looks again.
WITH closed AS (
    UPDATE durable.run SET
        status = :status, owner = NULL, claim_no = claim_no + 1, due_at_us = NULL, closed_at_us = :now_us, reason = :reason
    WHERE id = ANY (:runs::bigint[]) AND status < 10
    RETURNING id, generation
), written AS (
    INSERT INTO durable.journal (run, generation, turn, part, data)
    SELECT closed.id, closed.generation,
        coalesce((SELECT max(turn) FROM durable.journal AS last WHERE last.run = closed.id AND last.generation = closed.generation), 0) + 1,
        part.number, part.data
    FROM closed, unnest(:parts::bytea[]) WITH ORDINALITY AS part (data, number)
), outcome AS (
    -- What a parked run stopped on is not what it ended with.
    UPDATE durable.run_payload SET failure = NULL FROM closed
    WHERE run_payload.run = closed.id AND run_payload.generation = closed.generation
), emptied AS (
    DELETE FROM durable.inbox USING closed WHERE inbox.run = closed.id
), ended AS (
    DELETE FROM durable.attempt USING closed WHERE attempt.run = closed.id AND attempt.generation = closed.generation
)
SELECT count(*) FROM closed;

-- name: has_life
-- A row: the run has, or had, this generation in this epoch. One that was deleted and begun again under its id has other epochs.
SELECT 1 FROM durable.run WHERE id = :run AND generation = :generation AND epoch = :epoch
UNION ALL SELECT 1 FROM durable.generation WHERE run = :run AND generation = :generation AND epoch = :epoch;

-- name: started_attempt
SELECT completion, due_at_us FROM durable.attempt
WHERE run = :run AND generation = :generation AND op = :op AND attempt = :attempt AND state = 'started'
FOR UPDATE;

-- name: settle_attempt
UPDATE durable.attempt SET completion = :completion WHERE run = :run AND generation = :generation AND op = :op;

-- name: beat_attempt
UPDATE durable.attempt SET
    details = :details,
    due_at_us = CASE
        WHEN completion <> 'open' OR heartbeat_us IS NULL THEN due_at_us
        ELSE least(limit_at_us, durable.instant(:now_us) + heartbeat_us)
    END
WHERE run = :run AND generation = :generation AND op = :op;

-- name: hasten_attempt
UPDATE durable.attempt SET due_at_us = least(due_at_us, durable.instant(:now_us))
WHERE run = :run AND generation = :generation AND op = :op AND attempt = :attempt AND state = 'backoff'
RETURNING op;

-- name: hasten_task
UPDATE durable.activity_task SET
    ready_at_us = durable.instant(:now_us),
    care_at_us = coalesce(
        least(durable.instant(:now_us) + schedule_to_start_us, scheduled_at_us + schedule_to_close_us), 9223372036854775807
    )
WHERE run = :run AND generation = :generation AND op = :op AND attempt = :attempt
    AND state = 'ready' AND closing = '' AND ready_at_us > durable.instant(:now_us)
RETURNING op;

-- ─ activity tasks ──

-- name: schedule_tasks
-- With its row of attempts, or not at all: a task that is written a second time is there, or was, and has its row.
WITH waiting AS (
    INSERT INTO durable.attempt (run, generation, op, attempt, state, completion)
    SELECT run, generation, op, 0, 'started', 'remote'
    FROM unnest(:runs::bigint[], :generations::integer[], :ops::integer[]) AS new (run, generation, op)
    ON CONFLICT (run, generation, op) DO NOTHING
    RETURNING run, generation, op
)
INSERT INTO durable.activity_task (
    run, generation, op, task_queue, activity, name, key, args, policy, start_to_close_us, schedule_to_start_us,
    schedule_to_close_us, heartbeat_us, scheduled_at_us, ready_at_us, care_at_us
)
SELECT new.*, durable.instant(:now_us), durable.instant(:now_us),
    coalesce(
        least(durable.instant(:now_us) + new.schedule_to_start_us, durable.instant(:now_us) + new.schedule_to_close_us), 9223372036854775807
    )
FROM unnest(
    :runs::bigint[], :generations::integer[], :ops::integer[], :task_queues::text[], :activities::text[], :names::text[],
    :keys::text[], :args::bytea[], :policies::text[], :start_to_closes_us::bigint[], :schedule_to_starts_us::bigint[],
    :schedule_to_closes_us::bigint[], :heartbeats_us::bigint[]
) AS new (
    run, generation, op, task_queue, activity, name, key, args, policy, start_to_close_us, schedule_to_start_us,
    schedule_to_close_us, heartbeat_us
)
JOIN waiting USING (run, generation, op);

-- name: close_tasks
-- One that nobody performs is to be looked at at once.
UPDATE durable.activity_task AS task SET
    closing = closed.how, close_reason = closed.reason, care_at_us = CASE WHEN task.owner IS NULL THEN 0 ELSE task.care_at_us END
FROM unnest(:runs::bigint[], :generations::integer[], :ops::integer[], :hows::text[], :reasons::text[])
    AS closed (run, generation, op, how, reason)
WHERE task.run = closed.run AND task.generation = closed.generation AND task.op = closed.op;

-- name: claim_tasks
-- SQLite looks first and claims what it found; here both are one statement, and whoever comes second skips what the first one has
-- locked. One bounded seek per queue and activity: tasks that nobody here serves are never looked at (P13). One whose time to begin has
-- passed is not begun, even if nobody has been there to say so. Tasks that are found and that nobody waits for are deleted. The attempt is charged here, before it begins (P22). First column: is the worker alive.
WITH wanted AS MATERIALIZED (
    SELECT queue.name AS task_queue, activity.name AS activity
    FROM unnest(:task_queues::text[]) AS queue (name)
    CROSS JOIN unnest(:activities::text[]) AS activity (name)
    WHERE NOT EXISTS (SELECT 1 FROM durable.pause WHERE pause.kind = 'task_queue' AND pause.name = queue.name)
        AND NOT EXISTS (
            SELECT 1 FROM durable.pause JOIN durable.worker ON worker.name = pause.name WHERE pause.kind = 'worker' AND worker.id = :worker
        )
), found AS MATERIALIZED (
    SELECT candidate.*
    FROM wanted
    CROSS JOIN LATERAL (
        SELECT task.id, task.ready_at_us, task.is_lost,
            EXISTS (
                SELECT 1 FROM durable.run
                JOIN durable.attempt ON attempt.run = run.id AND attempt.generation = run.generation AND attempt.op = task.op
                    AND attempt.completion = 'remote'
                WHERE run.id = task.run AND run.generation = task.generation AND run.status < 10
            ) AS is_awaited
        FROM durable.activity_task AS task
        WHERE task.state = 'ready' AND task.task_queue = wanted.task_queue AND task.activity = wanted.activity
            AND task.ready_at_us <= durable.instant(:now_us) AND task.care_at_us > durable.instant(:now_us)
            AND task.closing = '' AND (:lost_count::integer > 0 OR NOT task.is_lost)
            AND NOT EXISTS (SELECT 1 FROM durable.run WHERE run.id = task.run AND run.paused_at_us IS NOT NULL)
        ORDER BY task.ready_at_us, task.id
        LIMIT :count
        FOR UPDATE OF task SKIP LOCKED
    ) AS candidate
), chosen AS MATERIALIZED (
    SELECT id FROM (
        SELECT id, ready_at_us, is_lost, row_number() OVER (PARTITION BY is_lost ORDER BY ready_at_us, id) AS place
        FROM found WHERE is_awaited
    ) AS placed
    WHERE NOT is_lost OR place <= :lost_count::integer
    ORDER BY ready_at_us, id LIMIT :count
), fence AS MATERIALIZED (
    SELECT worker FROM durable.worker_fence
    WHERE worker = :worker AND slot = :slot::smallint AND EXISTS (SELECT 1 FROM chosen)
    FOR UPDATE
), orphaned AS (
    DELETE FROM durable.activity_task USING found WHERE activity_task.id = found.id AND NOT found.is_awaited
), claimed AS (
    UPDATE durable.activity_task SET
        state = 'started', owner = :worker, claim_no = claim_no + 1, attempt = attempt + 1, started_at_us = durable.instant(:now_us),
        care_at_us = coalesce(
            least(
                durable.instant(:now_us) + start_to_close_us, durable.instant(:now_us) + heartbeat_us,
                scheduled_at_us + schedule_to_close_us
            ) + :grace_us::bigint,
            9223372036854775807
        )
    FROM chosen WHERE activity_task.id = chosen.id AND EXISTS (SELECT 1 FROM fence)
    RETURNING activity_task.*
)
SELECT alive.yes, task.id, task.claim_no, task.run, task.generation, task.op, run.run_id, run.epoch, run.workflow, task.task_queue, task.activity,
    task.name, task.key, task.args, task.policy, task.start_to_close_us, task.schedule_to_start_us, task.schedule_to_close_us,
    task.heartbeat_us, task.scheduled_at_us, task.state, task.ready_at_us, task.attempt, task.owner,
    (SELECT worker.name FROM durable.worker WHERE worker.id = task.owner) AS owner_name, task.started_at_us, task.care_at_us,
    task.is_lost, task.failure, task.details, task.closing, task.close_reason, durable.instant(:now_us) AS now_us
FROM (SELECT EXISTS (SELECT 1 FROM durable.worker_fence WHERE worker = :worker) AND ((SELECT count(*) FROM chosen) = 0 OR EXISTS (SELECT 1 FROM fence)) AS yes) AS alive
LEFT JOIN (claimed AS task JOIN durable.run ON run.id = task.run) ON true
ORDER BY task.ready_at_us, task.id;

-- name: read_held_tasks
SELECT task.id, task.claim_no, task.run, task.generation,
    coalesce((SELECT addressed.run_id FROM durable.run AS addressed WHERE addressed.id = task.run), '') AS run_id,
    CASE WHEN task.closing <> '' THEN task.closing WHEN attempt.op IS NULL THEN 'try' ELSE '' END AS closing,
    task.close_reason
FROM durable.activity_task AS task
LEFT JOIN durable.run ON run.id = task.run AND run.generation = task.generation AND run.status < 10
LEFT JOIN durable.attempt ON attempt.run = run.id AND attempt.generation = run.generation AND attempt.op = task.op
    AND attempt.completion = 'remote'
WHERE task.owner = :worker;

-- name: beat_tasks
UPDATE durable.activity_task AS task SET
    details = coalesce(beat.details, task.details),
    care_at_us = coalesce(
        least(
            started_at_us + start_to_close_us, durable.instant(:now_us) + heartbeat_us, scheduled_at_us + schedule_to_close_us
        ) + :grace_us::bigint,
        9223372036854775807
    )
FROM unnest(:tasks::bigint[], :claim_nos::bigint[], :details::bytea[]) AS beat (id, claim_no, details)
WHERE task.id = beat.id AND task.claim_no = beat.claim_no AND task.owner IS NOT DISTINCT FROM :worker;

-- name: hold_tasks
-- Those of the tasks that may be ended: with a worker, what it performs under those claims; without, what is still astray.
SELECT task.id FROM durable.activity_task AS task
JOIN unnest(:tasks::bigint[], :claim_nos::bigint[]) AS ending (id, claim_no) ON ending.id = task.id AND ending.claim_no = task.claim_no
WHERE (:worker::bigint IS NOT NULL AND task.owner IS NOT DISTINCT FROM :worker::bigint)
    OR (:worker::bigint IS NULL AND task.care_at_us <= durable.instant(:now_us))
ORDER BY task.id
FOR UPDATE OF task;

-- name: hold_runs_of_tasks
-- The rows of the runs that are to get an outcome; one that somebody's open transaction holds is left for later (P5).
SELECT id, generation, status FROM durable.run WHERE id = ANY (:runs::bigint[]) ORDER BY id FOR UPDATE SKIP LOCKED;

-- name: put_tasks_back
UPDATE durable.activity_task AS task SET
    state = 'ready', owner = NULL, started_at_us = NULL, attempt = task.attempt - back.uncharged::integer,
    ready_at_us = durable.instant(:now_us) + back.delay_us,
    failure = coalesce(back.failure, task.failure), details = coalesce(back.details, task.details),
    is_lost = CASE WHEN task.state = 'lost' THEN true WHEN back.uncharged THEN task.is_lost ELSE false END,
    care_at_us = CASE WHEN task.closing <> '' THEN 0 ELSE coalesce(
        least(
            durable.instant(:now_us) + back.delay_us + task.schedule_to_start_us, task.scheduled_at_us + task.schedule_to_close_us
        ),
        9223372036854775807
    ) END
FROM unnest(:tasks::bigint[], :are_uncharged::boolean[], :delays_us::bigint[], :failures::bytea[], :details::bytea[])
    AS back (id, uncharged, delay_us, failure, details)
WHERE task.id = back.id;

-- name: finish_tasks
-- Tasks and rows of runs are held: the outcomes of those that somebody still waits for become messages, counted per run (P2).
WITH item AS MATERIALIZED (
    SELECT * FROM unnest(
        :tasks::bigint[], :runs::bigint[], :generations::integer[], :ops::integer[], :names::text[], :datas::bytea[],
        :message_ids::text[]
    ) WITH ORDINALITY AS item (id, run, generation, op, name, data, message_id, place)
), gone AS (
    DELETE FROM durable.activity_task USING item WHERE activity_task.id = item.id
), settled AS (
    UPDATE durable.attempt SET completion = 'answered'
    FROM item JOIN durable.run ON run.id = item.run AND run.generation = item.generation AND run.status < 10
    WHERE attempt.run = item.run AND attempt.generation = item.generation AND attempt.op = item.op
        AND attempt.completion = 'remote' AND item.name <> 'dropped'
    RETURNING item.*
), counted AS (
    UPDATE durable.run SET
        msg_seq = run.msg_seq + sent.messages,
        ready_at_us = CASE WHEN run.status = 2 THEN durable.instant(:now_us) ELSE run.ready_at_us END,
        due_at_us = CASE WHEN run.status = 2 THEN NULL ELSE run.due_at_us END,
        is_delayed = CASE WHEN run.status = 2 THEN false ELSE run.is_delayed END,
        status = CASE WHEN run.status <> 2 THEN run.status WHEN run.paused_at_us IS NULL THEN 0 ELSE 4 END
    FROM (SELECT settled.run, count(*) AS messages FROM settled GROUP BY settled.run) AS sent
    WHERE run.id = sent.run
    RETURNING run.id, run.msg_seq - sent.messages AS before
), numbered AS (
    SELECT settled.run, counted.before + row_number() OVER (PARTITION BY settled.run ORDER BY settled.place) AS msg, settled.name,
        settled.data, settled.message_id
    FROM settled JOIN counted ON counted.id = settled.run
), delivered AS (
    INSERT INTO durable.inbox (run, msg, kind, name, data, message_id, sent_at_us)
    SELECT run, msg, 'activity', name, data, message_id, durable.instant(:now_us) FROM numbered
), remembered AS (
    INSERT INTO durable.message_id (run, message_id, msg) SELECT run, message_id, msg FROM numbered
)
SELECT count(*) FROM settled;

-- name: lose_tasks_of_worker
-- Their attempts are charged: whoever cares for strays lets each fail, or begin again by its policy (P22).
UPDATE durable.activity_task SET state = 'lost', owner = NULL, care_at_us = 0 WHERE owner = :worker RETURNING id;

-- name: find_stray_tasks
SELECT task.id, task.claim_no, task.run, task.generation, task.op, run.run_id, run.epoch, run.workflow, task.task_queue, task.activity,
    task.name, task.key, task.args, task.policy, task.start_to_close_us, task.schedule_to_start_us, task.schedule_to_close_us,
    task.heartbeat_us, task.scheduled_at_us, task.state, task.ready_at_us, task.attempt, task.owner,
    (SELECT worker.name FROM durable.worker WHERE worker.id = task.owner) AS owner_name, task.started_at_us, task.care_at_us,
    task.is_lost, task.failure, task.details, task.closing, task.close_reason, durable.instant(:now_us) AS now_us
FROM durable.activity_task AS task
JOIN durable.run ON run.id = task.run
WHERE task.care_at_us <= durable.instant(:now_us) ORDER BY task.care_at_us, task.id LIMIT :count;

-- name: next_task_care
SELECT min(care_at_us) FROM durable.activity_task WHERE care_at_us < 9223372036854775807;

-- name: read_tasks
-- like: find_stray_tasks, with WHERE task.run = :run AND task.generation = :generation ORDER BY task.op for WHERE task.care_at_us <= durable.instant(:now_us) ORDER BY task.care_at_us, task.id LIMIT :count

-- name: unpark_run
-- One that has ended workers goes on as a suspect, with one crash to go: it had its chances.
WITH unparked AS (
    UPDATE durable.run SET
        status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, ready_at_us = durable.instant(:now_us), is_delayed = false,
        reason = NULL, suspicion = least(crashes, 1), crashes = least(crashes, :crashes_max::integer),
        idle_generations = 0
    WHERE run_id = :run_id AND status = 3
    RETURNING id, generation
), forgotten AS (
    UPDATE durable.run_payload SET failure = NULL FROM unparked
    WHERE run_payload.run = unparked.id AND run_payload.generation = unparked.generation
)
SELECT id FROM unparked;

-- name: wake_run
UPDATE durable.run SET
    status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, ready_at_us = durable.instant(:now_us), is_delayed = false,
    due_at_us = NULL
WHERE run_id = :run_id AND status = 2
RETURNING id;

-- name: pause_run
UPDATE durable.run SET
    paused_at_us = durable.instant(:now_us), pause_reason = :reason, status = CASE WHEN status = 0 THEN 4 ELSE status END
WHERE run_id = :run_id AND status < 10 AND paused_at_us IS NULL
RETURNING id;

-- name: resume_run
-- Ready from now on: looks that begin late would not see one that has been so since before its pause.
UPDATE durable.run SET
    paused_at_us = NULL, pause_reason = NULL,
    ready_at_us = CASE WHEN status = 4 THEN greatest(ready_at_us, durable.instant(:now_us)) ELSE ready_at_us END,
    status = CASE WHEN status = 4 THEN 0 ELSE status END
WHERE run_id = :run_id AND status < 10 AND paused_at_us IS NOT NULL
RETURNING id;

-- name: pause
INSERT INTO durable.pause (kind, name, at_us, reason) VALUES (:kind, :name, durable.instant(:now_us), :reason)
ON CONFLICT DO NOTHING
RETURNING kind;

-- name: resume
DELETE FROM durable.pause WHERE kind = :kind AND name = :name RETURNING kind;

-- name: list_pauses
SELECT kind, name, at_us, reason FROM durable.pause ORDER BY kind, name COLLATE "C";

-- name: read_pauses
-- Paused runs by their own index, however many others the worker owns.
SELECT
    EXISTS (
        SELECT 1 FROM durable.pause JOIN durable.worker ON worker.name = pause.name WHERE pause.kind = 'worker' AND worker.id = :worker
    ) AS is_worker_paused,
    array(SELECT name FROM durable.pause WHERE kind = 'task_queue') AS task_queues,
    array(SELECT id FROM durable.run WHERE paused_at_us IS NOT NULL AND owner = :worker) AS pks;

-- ─ reading ──

-- name: get_run
SELECT *, (SELECT retention_us FROM durable.run WHERE run.id = run_seen.id) FROM durable.run_seen WHERE run_id = :run_id;

-- name: get_run_by_pk
SELECT *, (SELECT retention_us FROM durable.run WHERE run.id = run_seen.id) FROM durable.run_seen WHERE id = :run;

-- name: get_generation
SELECT
    run.id, run.run_id, generation.generation, generation.epoch, generation.workflow, generation.version,
    generation.task_queue, generation.status, generation.attempt, generation.created_at_us, generation.started_at_us,
    generation.closed_at_us, generation.deadline_us, NULL::bigint, generation.created_at_us, NULL::bigint, NULL::text,
    NULL::boolean, generation.reason, run_payload.input, run_payload.result, run_payload.failure, 0,
    NULL::bigint, NULL::text, run.kind, run.parent, run.retention_us
FROM durable.run
JOIN durable.generation ON generation.run = run.id AND generation.generation = :generation
LEFT JOIN durable.run_payload ON run_payload.run = run.id AND run_payload.generation = generation.generation
WHERE run.run_id = :run_id;

-- name: read_ended
SELECT run_seen.*, (SELECT retention_us FROM durable.run WHERE run.id = run_seen.id)
FROM unnest(:runs::bigint[], :generations::integer[]) AS wanted (run, generation)
JOIN durable.run_seen ON run_seen.id = wanted.run AND run_seen.generation = wanted.generation
WHERE run_seen.status >= 10 OR run_seen.status = 3;

-- name: read_ended_earlier
SELECT
    run.id, run.run_id, generation.generation, generation.epoch, generation.workflow, generation.version,
    generation.task_queue, generation.status, generation.attempt, generation.created_at_us, generation.started_at_us,
    generation.closed_at_us, generation.deadline_us, NULL::bigint, generation.created_at_us, NULL::bigint, NULL::text,
    NULL::boolean, generation.reason, run_payload.input, run_payload.result, run_payload.failure, 0,
    NULL::bigint, NULL::text, run.kind, run.parent, run.retention_us
FROM unnest(:runs::bigint[], :generations::integer[]) AS wanted (run, generation)
JOIN durable.generation ON generation.run = wanted.run AND generation.generation = wanted.generation
JOIN durable.run ON run.id = generation.run
LEFT JOIN durable.run_payload ON run_payload.run = run.id AND run_payload.generation = generation.generation;

-- name: find_gone
SELECT wanted.run FROM unnest(:runs::bigint[]) AS wanted (run) WHERE NOT EXISTS (SELECT 1 FROM durable.run WHERE run.id = wanted.run);

-- name: recent_run_ids
SELECT run_id FROM durable.run ORDER BY id DESC LIMIT :count;

-- name: find_run_ids
SELECT run_id FROM durable.run
WHERE run_id LIKE :prefix OR run_id LIKE :suffix
ORDER BY created_at_us DESC, id DESC
LIMIT :count;

-- name: list_runs
-- -1 stands for "ready (or held) and never started", which people call pending.
SELECT *, (SELECT retention_us FROM durable.run WHERE run.id = run_seen.id) FROM durable.run_seen
WHERE TRUE
    AND (:statuses::integer[] IS NULL OR CASE WHEN status IN (0, 4) AND started_at_us IS NULL THEN -1 ELSE status END = ANY (:statuses::integer[]))
    AND (:workflow::text IS NULL OR workflow LIKE :workflow::text)
    AND (:task_queue::text IS NULL OR task_queue = :task_queue::text)
    AND (:run_id::text IS NULL OR run_id LIKE :run_id::text)
    AND (:since_us::bigint IS NULL OR created_at_us >= :since_us::bigint)
    AND (:until_us::bigint IS NULL OR created_at_us < :until_us::bigint)
    AND (:before_us::bigint IS NULL OR (created_at_us, id) < (:before_us::bigint, :before_run::bigint))
ORDER BY created_at_us DESC, id DESC
LIMIT :count;

-- name: list_troubled_runs
-- By the index of those, whose condition it names: a few among all the runs that did well.
-- like: list_runs, with (status = 3 OR status > 10) for TRUE

-- name: count_runs
-- Statuses by number: -1 stands for pending, as in list_runs, and 1 for all others that are not at rest.
SELECT
    CASE :by::text
        WHEN 'workflow' THEN workflow
        WHEN 'queue' THEN task_queue
        WHEN 'status' THEN CAST(
            CASE WHEN status IN (0, 4) AND started_at_us IS NULL THEN -1 WHEN status IN (0, 4) THEN 1 ELSE status END AS text
        )
        ELSE ''
    END AS name,
    count(*)
FROM durable.run
WHERE (:statuses::integer[] IS NULL OR CASE WHEN status IN (0, 4) AND started_at_us IS NULL THEN -1 ELSE status END = ANY (:statuses::integer[]))
    AND (:workflow::text IS NULL OR workflow LIKE :workflow::text)
    AND (:task_queue::text IS NULL OR task_queue = :task_queue::text)
    AND (:run_id::text IS NULL OR run_id LIKE :run_id::text)
    AND (:since_us::bigint IS NULL OR created_at_us >= :since_us::bigint)
    AND (:until_us::bigint IS NULL OR created_at_us < :until_us::bigint)
GROUP BY 1;

-- name: read_journal
SELECT turn, part, data FROM durable.journal WHERE run = :run AND generation = :generation ORDER BY turn, part;

-- name: last_turn
SELECT coalesce(max(turn), 0) FROM durable.journal WHERE run = :run AND generation = :generation;

-- name: read_journal_page
SELECT turn, part, data FROM durable.journal
WHERE run = :run AND generation = :generation AND (turn, part) > (:turn, :part)
ORDER BY turn, part
LIMIT :count;

-- name: read_attempts
SELECT op, attempt, state, due_at_us, failure, details, completion, limit_at_us, heartbeat_us
FROM durable.attempt WHERE run = :run AND generation = :generation ORDER BY op;

-- name: has_backlog
-- One bounded look for each partial index, queue and definition, however many runs rest.
SELECT EXISTS (
    SELECT 1 FROM unnest(:task_queues::text[]) AS queue (name)
    CROSS JOIN unnest(:workflows::text[], :versions::integer[]) AS wanted (workflow, version)
    WHERE EXISTS (
        SELECT 1 FROM durable.run
        WHERE run.status = 0 AND NOT run.is_delayed AND run.task_queue = queue.name
            AND run.workflow = wanted.workflow AND run.version = wanted.version
            AND NOT EXISTS (SELECT 1 FROM durable.pause WHERE pause.kind = 'task_queue' AND pause.name = queue.name)
    ) OR EXISTS (
        SELECT 1 FROM durable.run
        WHERE run.status IN (2, 3) AND run.status = 2 AND run.due_at_us IS NOT NULL AND run.paused_at_us IS NULL
            AND run.task_queue = queue.name AND run.workflow = wanted.workflow AND run.version = wanted.version
    )
) OR EXISTS (
    SELECT 1 FROM durable.run
    WHERE run.status = 0 AND run.is_delayed AND run.task_queue = ANY (:task_queues::text[])
        AND (run.workflow, run.version) IN (SELECT * FROM unnest(:workflows::text[], :versions::integer[]))
        AND NOT EXISTS (SELECT 1 FROM durable.pause WHERE pause.kind = 'task_queue' AND pause.name = run.task_queue)
) OR EXISTS (
    SELECT 1 FROM durable.run
    WHERE run.owner IS NOT NULL AND run.task_queue = ANY (:task_queues::text[])
        AND (run.workflow, run.version) IN (SELECT * FROM unnest(:workflows::text[], :versions::integer[]))
);

-- ─ care ──

-- name: open_runs
SELECT
    task_queue, workflow, version,
    CASE WHEN status = 0 AND ready_at_us > durable.instant(:now_us) THEN 'delayed' WHEN status = 0 THEN 'ready' WHEN status = 1 THEN 'owned'
        WHEN status = 2 THEN 'waiting' WHEN status = 3 THEN 'parked' ELSE 'paused' END AS state,
    count(*), min(ready_at_us)
FROM durable.run WHERE status < 10
GROUP BY task_queue, workflow, version, state
ORDER BY task_queue, workflow, version, state;

-- name: open_tasks
SELECT task.task_queue, task.activity,
    CASE WHEN task.state = 'started' THEN 'started' WHEN run.paused_at_us IS NOT NULL THEN 'paused'
        WHEN task.ready_at_us > durable.instant(:now_us) THEN 'delayed' ELSE 'ready' END AS shown,
    count(*) AS tasks, min(task.ready_at_us) AS since_us
FROM durable.activity_task AS task
JOIN durable.run ON run.id = task.run AND run.generation = task.generation AND run.status < 10
JOIN durable.attempt ON attempt.run = run.id AND attempt.generation = run.generation AND attempt.op = task.op
    AND attempt.completion = 'remote'
GROUP BY task.task_queue, task.activity, shown
ORDER BY task.task_queue, task.activity, shown;

-- name: read_sizes
-- Of this schema alone: the database may hold much that is not ours.
SELECT coalesce(sum(pg_total_relation_size(pg_class.oid)), 0)::bigint AS bytes
FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_namespace.nspname = :schema AND pg_class.relkind IN ('r', 'm');

-- name: read_settings
SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync,
    current_setting('synchronous_commit') AS synchronous_commit,
    has_table_privilege(:run_table, 'INSERT') AS may_write;

-- name: recent_workflows
SELECT DISTINCT workflow FROM (SELECT workflow FROM durable.run ORDER BY id DESC LIMIT :count) AS recent ORDER BY workflow;

-- name: count_closed_runs
SELECT count(*) FROM durable.run
WHERE created_at_us < :before_us AND status >= 10 AND closed_at_us < :before_us
    AND (:statuses::integer[] IS NULL OR status = ANY (:statuses::integer[]))
    AND (:workflow::text IS NULL OR workflow = :workflow::text)
    AND (:expiry_us::bigint IS NULL OR retention_us IS NULL OR (retention_us > 0 AND closed_at_us + retention_us < :expiry_us::bigint));

-- name: find_closed_runs
-- A run that was closed before an instant was created before it: the index on creation bounds the search.
SELECT created_at_us, id FROM durable.run
WHERE created_at_us < :before_us AND status >= 10 AND closed_at_us < :before_us
    AND (:statuses::integer[] IS NULL OR status = ANY (:statuses::integer[]))
    AND (:workflow::text IS NULL OR workflow = :workflow::text)
    AND (:expiry_us::bigint IS NULL OR retention_us IS NULL OR (retention_us > 0 AND closed_at_us + retention_us < :expiry_us::bigint))
    AND (created_at_us, id) > (:after_us::bigint, :after_run::bigint)
ORDER BY created_at_us, id
LIMIT :count;

-- name: find_expired_runs
-- Those whose workflow says itself how long they are kept: by an index that holds no others.
SELECT closed_at_us + retention_us AS at_us, id FROM durable.run
WHERE retention_us > 0 AND status >= 10 AND closed_at_us + retention_us < :expiry_us::bigint
    AND (closed_at_us + retention_us, id) > (:after_us::bigint, :after_run::bigint)
ORDER BY closed_at_us + retention_us, id
LIMIT :count;

-- name: begin_retention
INSERT INTO durable.retention (at_us, before_us, statuses, who)
VALUES (durable.instant(:now_us), :before_us, :statuses, :who) RETURNING id;

-- name: end_retention
UPDATE durable.retention SET runs = :runs, journal_rows = :journal_rows WHERE id = :retention;

-- name: lock_closed_runs
-- Those of the runs that still are as asked for, in their order, with what deleting each of them would delete.
SELECT run.id, run.epoch,
    1 + (SELECT count(*) FROM durable.journal WHERE journal.run = run.id) + (SELECT count(*) FROM durable.inbox WHERE inbox.run = run.id)
    + (SELECT count(*) FROM durable.message_id WHERE message_id.run = run.id) + (SELECT count(*) FROM durable.request WHERE request.run = run.id)
    + (SELECT count(*) FROM durable.run_payload WHERE run_payload.run = run.id) + (SELECT count(*) FROM durable.generation WHERE generation.run = run.id)
    + (SELECT count(*) FROM durable.attempt WHERE attempt.run = run.id) AS rows
FROM durable.run
WHERE run.id = ANY (:runs::bigint[]) AND run.status >= 10 AND run.closed_at_us < :before_us
    AND (:statuses::integer[] IS NULL OR run.status = ANY (:statuses::integer[]))
    AND (:workflow::text IS NULL OR run.workflow = :workflow::text)
    AND (:expiry_us::bigint IS NULL OR (run.retention_us IS NULL AND NOT :has_own::boolean) OR (
        run.retention_us > 0 AND run.closed_at_us + run.retention_us < :expiry_us::bigint
    ))
ORDER BY run.id
FOR UPDATE SKIP LOCKED;

-- name: raise_epoch_floor
-- Before the runs are deleted, and seen by everybody at once. One retention at a time: the lock of this transaction.
SELECT setval(to_regclass(:epoch_sequence), greatest((SELECT last_value FROM durable.epoch_floor), :epoch::bigint))
FROM (SELECT pg_advisory_xact_lock(7166182714229055075)) AS alone;

-- name: mark_runs
-- From here to `unmark_runs`, in one transaction, the journal lets these runs' rows go.
INSERT INTO durable.retention_run (run, retention) SELECT run, :retention::bigint FROM unnest(:runs::bigint[]) AS run;

-- name: prune_journal
SELECT durable.prune_journal(:runs::bigint[]);

-- name: prune_belongings
WITH attempts AS (
    DELETE FROM durable.attempt WHERE run = ANY (:runs::bigint[])
), tasks AS (
    DELETE FROM durable.activity_task WHERE run = ANY (:runs::bigint[])
), messages AS (
    DELETE FROM durable.inbox WHERE run = ANY (:runs::bigint[])
), message_ids AS (
    DELETE FROM durable.message_id WHERE run = ANY (:runs::bigint[])
), requests AS (
    DELETE FROM durable.request WHERE run = ANY (:runs::bigint[])
), payloads AS (
    DELETE FROM durable.run_payload WHERE run = ANY (:runs::bigint[])
), generations AS (
    DELETE FROM durable.generation WHERE run = ANY (:runs::bigint[])
), children AS (
    DELETE FROM durable.child WHERE run = ANY (:runs::bigint[]) OR parent = ANY (:runs::bigint[])
), pattern_rows AS (
    -- Keys are `run_id/number`: what follows the run's id and a slash is digits alone, else the row is another run's.
    DELETE FROM durable.pattern_row USING durable.run
    WHERE run.id = ANY (:runs::bigint[]) AND pattern_row.name = :rows_table::text
        AND pattern_row.key >= run.run_id || '/' AND pattern_row.key < run.run_id || '0'
        AND substr(pattern_row.key, length(run.run_id) + 2) ~ '^[0-9]+$'
), gone AS (
    DELETE FROM durable.run WHERE id = ANY (:runs::bigint[]) RETURNING 1
)
SELECT count(*) FROM gone;

-- name: unmark_runs
DELETE FROM durable.retention_run WHERE run = ANY (:runs::bigint[]);

-- ─ rows of patterns ──

-- name: append_rows
-- Compare-and-set: two that append behind the same row meet the key, and one of them has written nothing.
INSERT INTO durable.pattern_row (name, key, number, at_us, data)
SELECT :name::text, :key::text, :after::integer + line.number, durable.instant(:now_us), line.data
FROM unnest(:rows::bytea[]) WITH ORDINALITY AS line (data, number)
WHERE (SELECT coalesce(max(number), 0) FROM durable.pattern_row WHERE name = :name::text AND key = :key::text) = :after::integer
RETURNING number;

-- name: count_rows
SELECT coalesce(max(number), 0) FROM durable.pattern_row WHERE name = :name AND key = :key;

-- name: read_rows
SELECT data FROM durable.pattern_row WHERE name = :name AND key = :key AND number > :after ORDER BY number LIMIT :count;

-- ─ being told ──

-- name: notify
-- Its commit need not wait for the disk: a hint may be lost.
SELECT set_config('synchronous_commit', 'off', true), pg_notify(:channel, :sender);
