-- Every statement of the SQLite store. Named parameters; the few with `?` take a row per turn, start or message, where a
-- dict for each would cost as much as a third of the insert itself. Statuses: 0 ready, 1 owned, 2 waiting, 3 parked, 4 held (it
-- would be ready, but is paused), 10 and above closed (durable/store/codes.py).

-- ─ schema ──

-- name: count_tables
SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%';

-- name: create_migration_table
CREATE TABLE IF NOT EXISTS migration (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_at_us INTEGER NOT NULL
) STRICT;

-- name: read_schema_version
SELECT max(number) FROM migration;

-- name: record_migration
INSERT INTO migration (number, name, applied_at_us) VALUES (:number, :name, :now_us);

-- name: write_meta
INSERT INTO meta (key, value) VALUES (:key, :value);

-- name: read_meta
SELECT value FROM meta WHERE key = :key;

-- ─ workers ──

-- name: insert_worker
INSERT INTO worker (
    name, host, pid, boot_id, task_queue, definitions, is_embedded, wake_addr, started_at_us, more_queues, activities, lease_us
) VALUES (
    :name, :host, :pid, :boot_id, :task_queue, :definitions, :is_embedded, :wake_addr, :now_us, :more_queues, :activities, :lease_us
);

-- name: insert_heartbeat
INSERT INTO worker_heartbeat (worker, beat_at_us) VALUES (:worker, :now_us);

-- name: worker_is_alive
SELECT 1 FROM worker WHERE id = ? AND is_alive = 1;

-- name: name_of_worker
SELECT name FROM worker WHERE id = :worker;

-- name: beat
UPDATE worker_heartbeat SET beat = beat + 1, beat_at_us = :now_us
WHERE worker = :worker AND EXISTS (SELECT 1 FROM worker WHERE id = :worker AND is_alive = 1);

-- name: prove_writable
UPDATE worker_heartbeat SET proof = proof + 1 WHERE worker = :worker RETURNING beat;

-- name: read_beat
SELECT beat FROM worker_heartbeat WHERE worker = :worker;

-- name: live_workers
SELECT worker.id, worker.name, worker.boot_id, worker_heartbeat.beat, worker_heartbeat.beat_at_us, worker.wake_addr,
    worker.lease_us
FROM worker
JOIN worker_heartbeat ON worker_heartbeat.worker = worker.id
WHERE worker.is_alive = 1
ORDER BY worker.id;

-- name: wake_addresses
SELECT wake_addr FROM worker WHERE is_alive = 1 AND wake_addr IS NOT NULL;

-- name: stop_worker
UPDATE worker SET is_alive = 0, stopped_at_us = :now_us WHERE id = :worker AND is_alive = 1;

-- name: release_runs_of_worker
-- `is_crash`: nobody knows which of them ended the worker, so all of them are suspects (P14).
UPDATE run SET
    status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, owner = NULL, ready_at_us = :now_us, is_delayed = 0,
    suspicion = max(min(suspicion, 1), :is_crash)
WHERE owner = :worker;

-- name: suspect_of_worker
-- The run that a worker drove alone when it died.
SELECT id, run_id FROM run WHERE owner = :worker AND suspicion = 2;

-- name: count_crash
-- One that has written a turn since it was driven alone got on: something else killed the worker.
UPDATE run SET
    crashes = CASE
        WHEN (SELECT coalesce(max(turn), 0) FROM journal WHERE run = :run AND generation = run.generation) > trial_turn THEN 0
        ELSE crashes + :weight
    END,
    suspicion = 1
WHERE id = :run
RETURNING crashes;

-- name: park_poison
UPDATE run SET status = 3, owner = NULL, reason = :reason, ready_at_us = :now_us, is_delayed = 0 WHERE id = :run;

-- name: list_workers
SELECT id, name, host, pid, task_queue, is_embedded, is_alive, started_at_us, stopped_at_us, definitions,
    (SELECT count(*) FROM run WHERE run.owner = worker.id),
    (SELECT beat_at_us FROM worker_heartbeat WHERE worker_heartbeat.worker = worker.id),
    more_queues, activities, (SELECT count(*) FROM activity_task WHERE activity_task.owner = worker.id), lease_us
FROM worker
WHERE is_alive = 1 OR :alive_only = 0
ORDER BY id;

-- name: take_role
INSERT INTO role (name, worker) VALUES (:role, :worker)
ON CONFLICT (name) DO UPDATE SET worker = excluded.worker
WHERE role.worker = excluded.worker OR NOT EXISTS (SELECT 1 FROM worker WHERE id = role.worker AND is_alive = 1);

-- ─ starting ──

-- name: runs_of_requests
SELECT request.request_id, request.run, request.generation
FROM json_each(:request_ids) AS wanted
JOIN request ON request.request_id = wanted.value;

-- name: runs_by_run_ids
-- With the input of its start: one that has continued as new has another by now.
SELECT run.run_id, run.id, run.generation, run.status, run.workflow, whole_payload.input
FROM json_each(:run_ids) AS wanted
JOIN run ON run.run_id = wanted.value
JOIN whole_payload ON whole_payload.run = run.id
    AND whole_payload.generation = coalesce(run.first_generation, run.generation);

-- name: last_run
-- The highest key and the highest epoch ever deleted by retention count, too: neither comes back (P6).
SELECT
    max(
        (SELECT coalesce(max(id), 0) FROM run),
        coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'last_run_pruned'), 0)
    ),
    coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'last_epoch_pruned'), 0);

-- name: insert_run
INSERT INTO run (
    id, run_id, epoch, workflow, version, task_queue, status, claim_no, owner, ready_at_us, is_delayed, deadline_us,
    created_at_us, started_at_us, parent, kind, retention_us
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_run_payload
INSERT INTO run_payload (run, generation, input, input_payload) VALUES (?, ?, ?, ?);

-- name: insert_payload
INSERT INTO payload (run, data) VALUES (?, ?);

-- name: insert_payload_if_owned
INSERT INTO payload (run, data) SELECT run.id, ? FROM run WHERE run.id = ? AND run.owner = ? AND run.claim_no = ?;

-- name: insert_request
INSERT INTO request (request_id, run, generation) VALUES (?, ?, ?);

-- name: archive_generation
INSERT INTO generation (
    run, generation, epoch, workflow, version, task_queue, status, attempt, deadline_us, created_at_us, started_at_us,
    closed_at_us, reason
)
SELECT id, generation, epoch, workflow, version, task_queue, status, attempt, deadline_us, created_at_us, started_at_us,
    closed_at_us, reason
FROM run WHERE id = :run AND status >= 10;

-- name: restart_run
UPDATE run SET
    generation = generation + 1, epoch = epoch + 1, workflow = :workflow, version = :version, task_queue = :task_queue,
    status = :status, claim_no = claim_no + 1, attempt = 1, owner = :owner, ready_at_us = :ready_at_us,
    is_delayed = :is_delayed, due_at_us = NULL, deadline_us = :deadline_us, created_at_us = :now_us,
    started_at_us = :started_at_us, closed_at_us = NULL, reason = NULL, parent = :parent, kind = :kind, last_turn = 0,
    retention_us = :retention_us,
    paused_at_us = NULL, pause_reason = NULL, suspicion = 0, crashes = 0, tried_code = '',
    first_generation = NULL, idle_generations = 0
WHERE id = :run
RETURNING generation, epoch, claim_no, msg_seq;

-- name: lifetime_of_run
-- How long it may take. Generations that only continue another share that one's deadline.
SELECT deadline_us - created_at_us FROM (
    SELECT generation, deadline_us, created_at_us FROM generation WHERE run = :run
    UNION ALL
    SELECT generation, deadline_us, created_at_us FROM run WHERE id = :run
)
WHERE generation > (SELECT coalesce(max(generation), 0) FROM generation WHERE run = :run AND status <> 15)
ORDER BY generation LIMIT 1;

-- name: reopen_run
UPDATE run SET
    generation = generation + 1, epoch = epoch + :new_epoch, attempt = :attempt, status = 0, claim_no = claim_no + 1,
    ready_at_us = :now_us, is_delayed = 0, due_at_us = NULL, deadline_us = :deadline_us, created_at_us = :now_us,
    started_at_us = NULL, closed_at_us = NULL, reason = NULL, paused_at_us = NULL, pause_reason = NULL, suspicion = 0,
    crashes = 0, tried_code = '', last_turn = :last_turn, idle_generations = 0
WHERE id = :run;

-- ─ claiming ──

-- name: find_ready_runs
-- One bounded seek per definition: runs that nobody here serves, however many and old, are never looked at (P13).
-- Only delayed starts meet the clock: one that is set back must not hide runs that are ready.
SELECT run.id, run.ready_at_us
FROM json_each(:definitions) AS wanted
CROSS JOIN run ON run.id IN (
    SELECT candidate.id FROM run AS candidate
    WHERE candidate.status = 0 AND candidate.is_delayed = 0 AND candidate.task_queue = :task_queue
        AND candidate.workflow = json_extract(wanted.value, '$[0]')
        AND candidate.version = json_extract(wanted.value, '$[1]')
    ORDER BY candidate.ready_at_us, candidate.id
    LIMIT :count
)
WHERE NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = :task_queue)
    -- Known first, once: where nothing is ready no definition is looked for.
    AND EXISTS (SELECT 1 FROM run AS some WHERE some.status = 0 AND some.is_delayed = 0 AND some.task_queue = :task_queue)
UNION ALL
SELECT run.id, run.ready_at_us
FROM run
WHERE run.status = 0 AND run.is_delayed = 1 AND run.ready_at_us <= :now_us AND run.task_queue = :task_queue
    AND NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = :task_queue)
    AND EXISTS (
        SELECT 1 FROM json_each(:definitions) AS wanted
        WHERE json_extract(wanted.value, '$[0]') = run.workflow AND json_extract(wanted.value, '$[1]') = run.version
    )
ORDER BY 2, 1
LIMIT :count;

-- name: find_ready_runs_of_any_queue
SELECT run.id
FROM run
WHERE run.status = 0 AND (run.is_delayed = 0 OR run.ready_at_us <= :now_us)
    AND NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = run.task_queue)
    AND EXISTS (
        SELECT 1 FROM json_each(:definitions) AS wanted
        WHERE json_extract(wanted.value, '$[0]') = run.workflow AND json_extract(wanted.value, '$[1]') = run.version
    )
ORDER BY run.ready_at_us, run.id
LIMIT :count;

-- name: find_ready_runs_among
SELECT run.id
FROM json_each(:runs) AS chosen
CROSS JOIN run ON run.id = chosen.value
WHERE run.status = 0 AND (run.is_delayed = 0 OR run.ready_at_us <= :now_us) AND (:task_queue IS NULL OR run.task_queue = :task_queue)
    AND NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = run.task_queue)
    AND EXISTS (
        SELECT 1 FROM json_each(:definitions) AS wanted
        WHERE json_extract(wanted.value, '$[0]') = run.workflow AND json_extract(wanted.value, '$[1]') = run.version
    )
ORDER BY run.ready_at_us, run.id
LIMIT :count;

-- name: claim_runs
UPDATE run SET
    status = 1, owner = :worker, claim_no = claim_no + 1, due_at_us = NULL, is_delayed = 0,
    started_at_us = coalesce(started_at_us, :now_us), suspicion = min(suspicion, 1)
WHERE id IN (SELECT value FROM json_each(:runs)) AND status = 0 AND (is_delayed = 0 OR ready_at_us <= :now_us)
RETURNING id;

-- name: find_parked_runs
-- The status is named as the partial index names it, too: without that it is not used, and every run is read.
SELECT run.id, json_extract(wanted.value, '$[2]')
FROM json_each(:codes) AS wanted
CROSS JOIN run ON run.workflow = json_extract(wanted.value, '$[0]') AND run.version = json_extract(wanted.value, '$[1]')
    AND run.task_queue = :task_queue AND run.status IN (2, 3) AND run.status = 3 AND run.paused_at_us IS NULL
WHERE instr(' ' || run.tried_code || ' ', ' ' || json_extract(wanted.value, '$[2]') || ' ') = 0
    AND NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = :task_queue)
ORDER BY run.id
LIMIT :count;

-- name: claim_parked_run
UPDATE run SET
    status = 1, owner = :worker, claim_no = claim_no + 1, is_delayed = 0, reason = NULL,
    suspicion = min(suspicion, 1), tried_code = ltrim(tried_code || ' ' || :code),
    trial_turn = (SELECT coalesce(max(turn), 0) FROM journal WHERE run = :run AND generation = run.generation)
WHERE id = :run AND status = 3 AND paused_at_us IS NULL AND instr(' ' || tried_code || ' ', ' ' || :code || ' ') = 0;

-- name: read_owned_runs
-- A run whose input is missing is driven like any other, and parks: left out, it would be owned and never move.
SELECT run.id, run.run_id, run.generation, run.epoch, run.claim_no, run.workflow, run.version, run.task_queue,
    run.attempt, coalesce(whole_payload.input, x''), run.deadline_us, run.created_at_us, run.msg_seq, run.suspicion,
    run.parent, run.last_turn, run.idle_generations
FROM json_each(:runs) AS chosen
CROSS JOIN run ON run.id = chosen.value
LEFT JOIN whole_payload ON whole_payload.run = run.id AND whole_payload.generation = run.generation
WHERE run.owner = :worker;

-- name: read_owned_journals
SELECT journal.run, journal.turn, journal.part,
    coalesce((SELECT payload.data FROM payload WHERE payload.id = journal.payload), journal.data)
FROM json_each(:runs) AS chosen
CROSS JOIN run ON run.id = chosen.value
CROSS JOIN journal ON journal.run = run.id AND journal.generation = run.generation
WHERE run.owner = :worker
ORDER BY journal.run, journal.turn, journal.part;

-- name: read_owned_inboxes
SELECT inbox.id, inbox.run, inbox.msg, inbox.kind, inbox.name, inbox.data, inbox.message_id, inbox.sent_at_us
FROM json_each(:runs) AS chosen
CROSS JOIN run ON run.id = chosen.value
CROSS JOIN inbox ON inbox.run = run.id
WHERE run.owner = :worker
ORDER BY inbox.run, inbox.msg;

-- name: read_owned_attempts
SELECT attempt.run, attempt.op, attempt.attempt, attempt.state, attempt.due_at_us, attempt.failure, attempt.details,
    attempt.completion, attempt.limit_at_us, attempt.heartbeat_us
FROM json_each(:runs) AS chosen
CROSS JOIN run ON run.id = chosen.value
CROSS JOIN attempt ON attempt.run = run.id AND attempt.generation = run.generation
WHERE run.owner = :worker
ORDER BY attempt.run, attempt.op;

-- name: read_inbox_of_worker
SELECT inbox.id, inbox.run, inbox.msg, inbox.kind, inbox.name, inbox.data, inbox.message_id, inbox.sent_at_us
FROM run
JOIN inbox ON inbox.run = run.id
WHERE run.owner = :worker
ORDER BY inbox.run, inbox.msg;

-- name: owned_runs
SELECT id, claim_no FROM run WHERE owner = :worker;

-- ─ committing ──

-- name: is_owned
SELECT 1 FROM run WHERE id = ? AND owner = ? AND claim_no = ?;

-- name: insert_turn_if_owned
-- The fence inside the write: no row for a run that is no longer this worker's (P8).
INSERT INTO journal (run, generation, turn, part, data, payload)
SELECT run.id, ?, ?, ?, ?, ? FROM run WHERE run.id = ? AND run.owner = ? AND run.claim_no = ?;

-- name: insert_turn
-- Only after another statement of the same transaction has proven the fence.
INSERT INTO journal (run, generation, turn, part, data, payload) VALUES (?, ?, ?, ?, ?, ?);

-- name: consume_message
DELETE FROM inbox WHERE id = ? AND run = ?;

-- name: upsert_attempt
-- Apart from what few attempts need (`leave_attempt_open`): a busy worker writes thousands of these a second.
INSERT INTO attempt (run, generation, op, attempt, state, due_at_us, failure, details) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run, generation, op) DO UPDATE SET
    attempt = excluded.attempt, state = excluded.state, due_at_us = excluded.due_at_us, failure = excluded.failure,
    details = coalesce(excluded.details, details), completion = '';

-- name: leave_attempt_open
UPDATE attempt SET completion = ?, limit_at_us = ?, heartbeat_us = ? WHERE run = ? AND generation = ? AND op = ?;

-- name: delete_attempt
DELETE FROM attempt WHERE run = ? AND generation = ? AND op = ?;

-- name: wait_run
-- The message count is compared on the run row itself, never by looking into the inbox (P2). Code that lets a run go in order
-- fits it: should other code park it later, this may try it (P13).
UPDATE run SET status = 2, owner = NULL, due_at_us = :due_at_us, last_turn = max(last_turn, :turn), tried_code = ''
WHERE id = :run AND owner = :worker AND claim_no = :claim_no AND msg_seq = :seen;

-- name: close_run
UPDATE run SET status = :status, owner = NULL, closed_at_us = :now_us, reason = :reason
WHERE id = :run AND owner = :worker AND claim_no = :claim_no AND msg_seq = :seen;

-- name: write_outcome
UPDATE run_payload SET
    result = :result, result_payload = :result_payload, failure = :failure, failure_payload = :failure_payload
WHERE run = :run AND generation = :generation;

-- name: delete_attempts
DELETE FROM attempt WHERE run = ? AND generation = ?;

-- name: hand_back_run
UPDATE run SET
    status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, owner = NULL, ready_at_us = :now_us, is_delayed = 0,
    last_turn = max(last_turn, :turn), tried_code = ''
WHERE id = :run AND owner = :worker AND claim_no = :claim_no;

-- name: try_suspect
UPDATE run SET
    suspicion = 2,
    trial_turn = (SELECT coalesce(max(turn), 0) FROM journal WHERE run = :run AND generation = run.generation),
    tried_code = CASE
        WHEN (SELECT coalesce(max(turn), 0) FROM journal WHERE run = :run AND generation = run.generation) > trial_turn THEN :code
        WHEN instr(' ' || tried_code || ' ', ' ' || :code || ' ') THEN tried_code ELSE ltrim(tried_code || ' ' || :code)
    END
WHERE id = :run AND owner = :worker AND claim_no = :claim_no;

-- name: clear_suspect
-- Whether it is still held here or has gone to rest; not if somebody else has claimed it since. What has parked it has tried it.
UPDATE run SET suspicion = 0, crashes = 0, tried_code = CASE WHEN status = 3 THEN tried_code ELSE '' END WHERE id = ? AND claim_no = ? AND suspicion > 0;

-- name: adjourn_suspect
UPDATE run SET suspicion = 1 WHERE id = ? AND claim_no = ? AND suspicion = 2;

-- name: park_run
-- Since the run has got on (the turn that parks it included), what tried it before may try it again (P13).
UPDATE run SET
    status = 3, owner = NULL, reason = :reason, last_turn = max(last_turn, :turn),
    trial_turn = max(:turn, (SELECT coalesce(max(turn), 0) FROM journal WHERE run = :run AND generation = run.generation)),
    tried_code = CASE
        WHEN max(:turn, (SELECT coalesce(max(turn), 0) FROM journal WHERE run = :run AND generation = run.generation)) > trial_turn THEN :code
        WHEN instr(' ' || tried_code || ' ', ' ' || :code || ' ') THEN tried_code ELSE ltrim(tried_code || ' ' || :code)
    END
WHERE id = :run AND owner = :worker AND claim_no = :claim_no;

-- name: next_generation
UPDATE run SET
    generation = generation + 1, epoch = epoch + :new_epoch, attempt = :attempt, status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END,
    owner = NULL, ready_at_us = :ready_at_us, is_delayed = :is_delayed, created_at_us = :now_us, started_at_us = NULL,
    last_turn = :last_turn, trial_turn = 0, tried_code = '',
    first_generation = CASE WHEN :is_new THEN coalesce(first_generation, generation) ELSE first_generation END,
    idle_generations = :idle_generations
WHERE id = :run AND owner = :worker AND claim_no = :claim_no AND msg_seq = :seen
RETURNING epoch, workflow, version, task_queue, deadline_us;

-- name: archive_continued
INSERT INTO generation (
    run, generation, epoch, workflow, version, task_queue, status, attempt, deadline_us, created_at_us, started_at_us,
    closed_at_us, reason
)
SELECT id, generation, epoch, workflow, version, task_queue, 15, attempt, deadline_us, created_at_us, started_at_us,
    :now_us, :reason
FROM run
WHERE id = :run AND owner = :worker AND claim_no = :claim_no AND msg_seq = :seen;

-- name: copy_input
INSERT INTO run_payload (run, generation, input, input_payload)
SELECT run, generation + 1, input, input_payload FROM run_payload WHERE run = :run AND generation = :generation;

-- name: copy_turns
INSERT INTO journal (run, generation, turn, part, data, payload)
SELECT run, generation + 1, turn, part, data, payload FROM journal
WHERE run = :run AND generation = :generation AND turn <= :copy_turns
ORDER BY turn, part;

-- name: insert_message
INSERT INTO inbox (run, msg, kind, name, data, message_id, sent_at_us) VALUES (?, ?, ?, ?, ?, ?, ?);

-- ─ children ──

-- name: is_open
SELECT 1 FROM run WHERE id = :run AND status < 10;

-- name: address_of_parent
SELECT run_id, epoch FROM run WHERE id = :parent;

-- name: mark_parent
UPDATE run SET has_children = 1 WHERE id = :parent AND has_children = 0;

-- name: link_child
-- No row: it is the child of another run, and that one is open. What was said at its start holds for as long as it is open.
INSERT INTO child (run, parent, epoch, op, on_parent_close) VALUES (:run, :parent, :epoch, :op, :on_parent_close)
ON CONFLICT (run) DO UPDATE SET
    parent = excluded.parent, epoch = excluded.epoch, op = excluded.op,
    on_parent_close = CASE
        WHEN NOT :is_new AND child.parent = excluded.parent THEN child.on_parent_close ELSE excluded.on_parent_close
    END
WHERE child.parent = excluded.parent OR NOT EXISTS (SELECT 1 FROM run WHERE run.id = child.parent AND run.status < 10)
RETURNING run;

-- name: last_of_life
-- Of a generation that was continued (15): the first one after it that was not; at the latest, the run's own row is one.
SELECT min(generation) FROM (
    SELECT generation FROM generation WHERE run = :run AND generation > :generation AND status <> 15
    UNION ALL SELECT generation FROM run WHERE id = :run
) AS later;

-- name: name_parent
UPDATE run SET parent = :run_id WHERE id = :run;

-- name: open_child
SELECT run.id FROM run JOIN child ON child.run = run.id WHERE run.run_id = :run_id AND run.status < 10 AND child.parent = :parent;

-- name: child_was_cancelled
-- Once is enough: a second request would meet its cleaning up.
UPDATE child SET on_parent_close = 'abandon' WHERE run = :run AND on_parent_close = 'cancel';

-- ─ time ──

-- name: wake_due_runs
UPDATE run SET
    status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, ready_at_us = due_at_us, is_delayed = 0, due_at_us = NULL
WHERE id IN (
    SELECT id FROM run WHERE status = 2 AND due_at_us IS NOT NULL AND due_at_us <= :now_us
    ORDER BY due_at_us LIMIT :count
);

-- name: next_due
-- Timers of waiting runs and starts of delayed ones; those already past stand in the index until somebody claims them.
SELECT
    (SELECT min(due_at_us) FROM run WHERE status = 2 AND due_at_us IS NOT NULL),
    (SELECT min(ready_at_us) FROM run WHERE status = 0 AND is_delayed = 1 AND ready_at_us > :now_us);

-- name: overdue_runs
SELECT id, generation FROM run
WHERE status < 10 AND deadline_us IS NOT NULL AND deadline_us <= :now_us
ORDER BY deadline_us LIMIT :count;

-- name: next_deadline
SELECT min(deadline_us) FROM run WHERE status < 10 AND deadline_us IS NOT NULL;

-- ─ messages and control ──

-- name: address_of_run
SELECT id, generation, status, started_at_us FROM run WHERE run_id = :run_id;

-- name: find_message_id
SELECT msg FROM message_id WHERE run = :run AND message_id = :message_id;

-- name: is_unread
SELECT EXISTS (SELECT 1 FROM inbox WHERE run = :run AND msg = :msg);

-- name: count_unread
SELECT count(*) FROM (SELECT 1 FROM inbox WHERE run = :run LIMIT :count);

-- name: count_message
-- Unconditional, so that it meets every wait and close of the owner on the run row (P2). Parked and held stay so.
UPDATE run SET
    msg_seq = msg_seq + 1,
    ready_at_us = CASE WHEN status = 2 THEN :now_us ELSE ready_at_us END,
    due_at_us = CASE WHEN status = 2 THEN NULL ELSE due_at_us END,
    is_delayed = CASE WHEN status = 2 THEN 0 ELSE is_delayed END,
    status = CASE WHEN status <> 2 THEN status WHEN paused_at_us IS NULL THEN 0 ELSE 4 END
WHERE id = :run
RETURNING msg_seq;

-- name: remember_message_id
INSERT INTO message_id (run, message_id, msg) VALUES (:run, :message_id, :msg);

-- name: close_run_by_force
-- The claim number rises, so that whoever owned the run can write nothing more.
UPDATE run SET
    status = :status, owner = NULL, claim_no = claim_no + 1, due_at_us = NULL, closed_at_us = :now_us, reason = :reason
WHERE id = :run AND status < 10;

-- name: last_turn
SELECT coalesce(max(turn), 0) FROM journal WHERE run = :run AND generation = :generation;

-- name: empty_inbox
DELETE FROM inbox WHERE run = :run;

-- name: has_life
-- A row: the run has, or had, this generation in this epoch. One that was deleted and begun again under its id has other epochs.
SELECT 1 FROM run WHERE id = :run AND generation = :generation AND epoch = :epoch
UNION ALL SELECT 1 FROM generation WHERE run = :run AND generation = :generation AND epoch = :epoch;

-- name: started_attempt
SELECT completion, due_at_us FROM attempt
WHERE run = :run AND generation = :generation AND op = :op AND attempt = :attempt AND state = 'started';

-- name: settle_attempt
UPDATE attempt SET completion = :completion WHERE run = :run AND generation = :generation AND op = :op;

-- name: beat_attempt
UPDATE attempt SET
    details = :details,
    due_at_us = CASE
        WHEN completion <> 'open' OR heartbeat_us IS NULL THEN due_at_us
        ELSE min(coalesce(limit_at_us, :now_us + heartbeat_us), :now_us + heartbeat_us)
    END
WHERE run = :run AND generation = :generation AND op = :op;

-- name: hasten_attempt
UPDATE attempt SET due_at_us = min(coalesce(due_at_us, :now_us), :now_us)
WHERE run = :run AND generation = :generation AND op = :op AND attempt = :attempt AND state = 'backoff';

-- name: hasten_task
UPDATE activity_task SET
    ready_at_us = :now_us,
    care_at_us = min(
        coalesce(:now_us + schedule_to_start_us, 9223372036854775807),
        coalesce(scheduled_at_us + schedule_to_close_us, 9223372036854775807)
    )
WHERE run = :run AND generation = :generation AND op = :op AND attempt = :attempt
    AND state = 'ready' AND closing = '' AND ready_at_us > :now_us;

-- ─ activity tasks ──

-- name: insert_remote_attempt
-- With the task, or not at all: a task that is written a second time is there, or was, and has its row.
INSERT INTO attempt (run, generation, op, attempt, state, completion) VALUES (?, ?, ?, 0, 'started', 'remote')
ON CONFLICT (run, generation, op) DO NOTHING;

-- name: insert_task
INSERT INTO activity_task (
    run, generation, op, task_queue, activity, name, key, args, policy, start_to_close_us, schedule_to_start_us,
    schedule_to_close_us, heartbeat_us, scheduled_at_us, ready_at_us, care_at_us
) VALUES (
    :run, :generation, :op, :task_queue, :activity, :name, :key, :args, :policy, :start_to_close_us, :schedule_to_start_us,
    :schedule_to_close_us, :heartbeat_us, :now_us, :now_us,
    min(
        coalesce(:now_us + :schedule_to_start_us, 9223372036854775807),
        coalesce(:now_us + :schedule_to_close_us, 9223372036854775807)
    )
);

-- name: close_task
-- One that nobody performs is to be looked at at once.
UPDATE activity_task SET
    closing = :how, close_reason = :reason, care_at_us = CASE WHEN owner IS NULL THEN 0 ELSE care_at_us END
WHERE run = :run AND generation = :generation AND op = :op;

-- name: find_ready_tasks
-- One bounded seek per queue and activity: tasks that nobody here serves are never looked at (P13). One whose time to begin has
-- passed is not begun, even if nobody has been there to say so.
SELECT activity_task.id, activity_task.is_lost, activity_task.ready_at_us
FROM json_each(:task_queues) AS queue
CROSS JOIN json_each(:activities) AS wanted
CROSS JOIN activity_task ON activity_task.id IN (
    SELECT candidate.id FROM activity_task AS candidate
    WHERE candidate.state = 'ready' AND candidate.task_queue = queue.value AND candidate.activity = wanted.value
        AND candidate.ready_at_us <= :now_us AND candidate.care_at_us > :now_us AND candidate.closing = '' AND (:lost_count > 0 OR candidate.is_lost = 0)
        AND NOT EXISTS (SELECT 1 FROM run WHERE run.id = candidate.run AND run.paused_at_us IS NOT NULL)
    ORDER BY candidate.ready_at_us, candidate.id
    LIMIT :count
)
WHERE NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = queue.value)
ORDER BY activity_task.ready_at_us, activity_task.id
LIMIT :count;

-- name: task_is_awaited
-- Whether the run still waits for its outcome: it is open, in that generation, and has its row of attempts.
SELECT 1 FROM activity_task
JOIN run ON run.id = activity_task.run AND run.generation = activity_task.generation AND run.status < 10
JOIN attempt ON attempt.run = run.id AND attempt.generation = run.generation AND attempt.op = activity_task.op
    AND attempt.completion = 'remote'
WHERE activity_task.id = :task;

-- name: claim_task
-- The attempt is charged here, before it begins (P22).
UPDATE activity_task SET
    state = 'started', owner = :worker, claim_no = claim_no + 1, attempt = attempt + 1, started_at_us = :now_us,
    care_at_us = min(
        coalesce(:now_us + start_to_close_us + :grace_us, 9223372036854775807),
        coalesce(:now_us + heartbeat_us + :grace_us, 9223372036854775807),
        coalesce(scheduled_at_us + schedule_to_close_us + :grace_us, 9223372036854775807)
    )
WHERE id = :task AND state = 'ready' AND closing = '' AND ready_at_us <= :now_us AND care_at_us > :now_us;

-- name: read_task
SELECT
    activity_task.id, activity_task.claim_no, activity_task.run, activity_task.generation, activity_task.op, run.run_id,
    run.epoch, run.workflow, activity_task.task_queue, activity_task.activity, activity_task.name, activity_task.key,
    activity_task.args, activity_task.policy, activity_task.start_to_close_us, activity_task.schedule_to_start_us,
    activity_task.schedule_to_close_us, activity_task.heartbeat_us, activity_task.scheduled_at_us, activity_task.state,
    activity_task.ready_at_us, activity_task.attempt, activity_task.owner, worker.name, activity_task.started_at_us,
    activity_task.care_at_us, activity_task.is_lost, activity_task.failure, activity_task.details, activity_task.closing,
    activity_task.close_reason, :now_us
FROM activity_task
JOIN run ON run.id = activity_task.run
LEFT JOIN worker ON worker.id = activity_task.owner
WHERE activity_task.id = :task;

-- name: find_tasks_of_run
SELECT id FROM activity_task WHERE run = :run AND generation = :generation ORDER BY op;

-- name: read_held_tasks
SELECT
    activity_task.id, activity_task.claim_no, activity_task.run, activity_task.generation,
    coalesce((SELECT addressed.run_id FROM run AS addressed WHERE addressed.id = activity_task.run), ''),
    CASE WHEN activity_task.closing <> '' THEN activity_task.closing WHEN attempt.op IS NULL THEN 'try' ELSE '' END,
    activity_task.close_reason
FROM activity_task
LEFT JOIN run ON run.id = activity_task.run AND run.generation = activity_task.generation AND run.status < 10
LEFT JOIN attempt ON attempt.run = run.id AND attempt.generation = run.generation AND attempt.op = activity_task.op
    AND attempt.completion = 'remote'
WHERE activity_task.owner = :worker;

-- name: beat_task
UPDATE activity_task SET
    details = coalesce(:details, details),
    care_at_us = min(
        coalesce(started_at_us + start_to_close_us + :grace_us, 9223372036854775807),
        coalesce(:now_us + heartbeat_us + :grace_us, 9223372036854775807),
        coalesce(scheduled_at_us + schedule_to_close_us + :grace_us, 9223372036854775807)
    )
WHERE id = :task AND owner = :worker AND claim_no = :claim_no;

-- name: task_is_held
SELECT 1 FROM activity_task WHERE id = :task AND owner = :worker AND claim_no = :claim_no;

-- name: task_is_stray
SELECT 1 FROM activity_task WHERE id = :task AND claim_no = :claim_no AND care_at_us <= :now_us;

-- name: delete_task
DELETE FROM activity_task WHERE id = :task;

-- name: put_task_back
UPDATE activity_task SET
    state = 'ready', owner = NULL, started_at_us = NULL, attempt = attempt - :uncharged, ready_at_us = :ready_at_us,
    failure = coalesce(:failure, failure), details = coalesce(:details, details),
    is_lost = CASE WHEN state = 'lost' THEN 1 WHEN :uncharged THEN is_lost ELSE 0 END,
    care_at_us = CASE WHEN closing <> '' THEN 0 ELSE min(
        coalesce(:ready_at_us + schedule_to_start_us, 9223372036854775807),
        coalesce(scheduled_at_us + schedule_to_close_us, 9223372036854775807)
    ) END
WHERE id = :task;

-- name: lose_tasks_of_worker
-- Their attempts are charged: whoever cares for strays lets each fail, or begin again by its policy (P22).
UPDATE activity_task SET state = 'lost', owner = NULL, care_at_us = 0 WHERE owner = :worker;

-- name: find_stray_tasks
SELECT id FROM activity_task WHERE care_at_us <= :now_us ORDER BY care_at_us, id LIMIT :count;

-- name: next_task_care
SELECT min(care_at_us) FROM activity_task WHERE care_at_us < 9223372036854775807;

-- name: unpark_run
-- One that has ended workers goes on as a suspect, with one crash to go: it had its chances.
UPDATE run SET
    status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, ready_at_us = :now_us, is_delayed = 0, reason = NULL,
    suspicion = min(crashes, 1), crashes = min(crashes, :crashes_max),
    idle_generations = 0
WHERE run_id = :run_id AND status = 3;

-- name: forget_fault
UPDATE run_payload SET failure = NULL, failure_payload = NULL WHERE run = :run AND generation = :generation;

-- name: wake_run
UPDATE run SET
    status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, ready_at_us = :now_us, is_delayed = 0, due_at_us = NULL
WHERE run_id = :run_id AND status = 2;

-- name: pause_run
UPDATE run SET
    paused_at_us = :now_us, pause_reason = :reason, status = CASE WHEN status = 0 THEN 4 ELSE status END
WHERE id = :run AND status < 10 AND paused_at_us IS NULL;

-- name: resume_run
-- Ready from now on, as on a server.
UPDATE run SET
    paused_at_us = NULL, pause_reason = NULL,
    ready_at_us = CASE WHEN status = 4 THEN max(ready_at_us, :now_us) ELSE ready_at_us END,
    status = CASE WHEN status = 4 THEN 0 ELSE status END
WHERE run_id = :run_id AND status < 10 AND paused_at_us IS NOT NULL;

-- name: pause
INSERT INTO pause (kind, name, at_us, reason) VALUES (:kind, :name, :now_us, :reason) ON CONFLICT DO NOTHING;

-- name: resume
DELETE FROM pause WHERE kind = :kind AND name = :name;

-- name: list_pauses
SELECT kind, name, at_us, reason FROM pause ORDER BY kind, name;

-- name: read_paused_queues
SELECT name FROM pause WHERE kind = 'task_queue';

-- name: worker_is_paused
SELECT 1 FROM pause JOIN worker ON worker.name = pause.name WHERE pause.kind = 'worker' AND worker.id = :worker;

-- name: read_paused_runs
-- By the index of paused runs, however many others the worker owns.
SELECT id FROM run INDEXED BY run_paused WHERE paused_at_us IS NOT NULL AND owner = :worker;

-- ─ reading ──

-- name: get_run
SELECT *, (SELECT retention_us FROM run WHERE run.id = run_whole.id) FROM run_whole WHERE run_id = :run_id;

-- name: get_run_by_pk
SELECT *, (SELECT retention_us FROM run WHERE run.id = run_whole.id) FROM run_whole WHERE id = :run;

-- name: get_generation
SELECT
    run.id, run.run_id, generation.generation, generation.epoch, generation.workflow, generation.version,
    generation.task_queue, generation.status, generation.attempt, generation.created_at_us, generation.started_at_us,
    generation.closed_at_us, generation.deadline_us, NULL, generation.created_at_us, NULL, NULL, NULL, generation.reason,
    whole_payload.input, whole_payload.result, whole_payload.failure, 0, NULL, NULL, run.kind, run.parent, run.retention_us
FROM run
JOIN generation ON generation.run = run.id AND generation.generation = :generation
LEFT JOIN whole_payload ON whole_payload.run = run.id AND whole_payload.generation = generation.generation
WHERE run.run_id = :run_id;

-- name: read_ended
SELECT run_whole.*, (SELECT retention_us FROM run WHERE run.id = run_whole.id)
FROM json_each(:runs) AS wanted
CROSS JOIN run_whole ON run_whole.id = json_extract(wanted.value, '$[0]')
WHERE run_whole.generation = json_extract(wanted.value, '$[1]') AND (run_whole.status >= 10 OR run_whole.status = 3);

-- name: read_ended_earlier
SELECT
    run.id, run.run_id, generation.generation, generation.epoch, generation.workflow, generation.version,
    generation.task_queue, generation.status, generation.attempt, generation.created_at_us, generation.started_at_us,
    generation.closed_at_us, generation.deadline_us, NULL, generation.created_at_us, NULL, NULL, NULL, generation.reason,
    whole_payload.input, whole_payload.result, whole_payload.failure, 0, NULL, NULL, run.kind, run.parent, run.retention_us
FROM json_each(:runs) AS wanted
CROSS JOIN generation ON generation.run = json_extract(wanted.value, '$[0]')
    AND generation.generation = json_extract(wanted.value, '$[1]')
CROSS JOIN run ON run.id = generation.run
LEFT JOIN whole_payload ON whole_payload.run = run.id AND whole_payload.generation = generation.generation;

-- name: find_gone
SELECT wanted.value FROM json_each(:runs) AS wanted WHERE NOT EXISTS (SELECT 1 FROM run WHERE run.id = wanted.value);

-- name: recent_run_ids
SELECT run_id FROM run ORDER BY id DESC LIMIT :count;

-- name: find_run_ids
SELECT run_id FROM run
WHERE run_id GLOB :prefix OR run_id GLOB :suffix
ORDER BY created_at_us DESC, id DESC
LIMIT :count;

-- name: list_runs
-- -1 stands for "ready (or held) and never started", which people call pending.
SELECT *, (SELECT retention_us FROM run WHERE run.id = seen.id) FROM run_whole AS seen
WHERE TRUE
    AND (:statuses IS NULL OR CASE WHEN status IN (0, 4) AND started_at_us IS NULL THEN -1 ELSE status END
        IN (SELECT value FROM json_each(:statuses)))
    AND (:workflow IS NULL OR workflow GLOB :workflow)
    AND (:task_queue IS NULL OR task_queue = :task_queue)
    AND (:run_id IS NULL OR run_id GLOB :run_id)
    AND (:since_us IS NULL OR created_at_us >= :since_us)
    AND (:until_us IS NULL OR created_at_us < :until_us)
    AND (:before_us IS NULL OR created_at_us <= :before_us)
    AND (:before_us IS NULL OR created_at_us < :before_us OR id < :before_run)
ORDER BY created_at_us DESC, id DESC
LIMIT :count;

-- name: list_runs_without_large_payloads
-- like: list_runs, with run_seen for run_whole

-- name: list_troubled_runs
-- By the index of those, whose condition it names: a few among all the runs that did well.
-- like: list_runs, with (status = 3 OR status > 10) for TRUE

-- name: list_troubled_runs_without_large_payloads
-- like: list_troubled_runs, with run_seen for run_whole

-- name: count_runs
-- Statuses by number: -1 stands for pending, as in list_runs, and 1 for all others that are not at rest.
SELECT
    CASE :by
        WHEN 'workflow' THEN workflow
        WHEN 'queue' THEN task_queue
        WHEN 'status' THEN CAST(
            CASE WHEN status IN (0, 4) AND started_at_us IS NULL THEN -1 WHEN status IN (0, 4) THEN 1 ELSE status END AS TEXT
        )
        ELSE ''
    END AS name,
    count(*)
FROM run
WHERE (:statuses IS NULL OR CASE WHEN status IN (0, 4) AND started_at_us IS NULL THEN -1 ELSE status END
        IN (SELECT value FROM json_each(:statuses)))
    AND (:workflow IS NULL OR workflow GLOB :workflow)
    AND (:task_queue IS NULL OR task_queue = :task_queue)
    AND (:run_id IS NULL OR run_id GLOB :run_id)
    AND (:since_us IS NULL OR created_at_us >= :since_us)
    AND (:until_us IS NULL OR created_at_us < :until_us)
GROUP BY 1;

-- name: read_journal
SELECT turn, part, coalesce((SELECT payload.data FROM payload WHERE payload.id = journal.payload), data)
FROM journal WHERE run = :run AND generation = :generation ORDER BY turn, part;

-- name: read_journal_page
SELECT turn, part, coalesce((SELECT payload.data FROM payload WHERE payload.id = journal.payload), data)
FROM journal
WHERE run = :run AND generation = :generation AND (turn, part) > (:turn, :part)
ORDER BY turn, part
LIMIT :count;

-- name: read_attempts
SELECT op, attempt, state, due_at_us, failure, details, completion, limit_at_us, heartbeat_us
FROM attempt
WHERE run = :run AND generation = :generation ORDER BY op;

-- name: has_backlog
-- One bounded look for each partial index, queue and definition, however many runs rest.
SELECT EXISTS (
    SELECT 1 FROM json_each(:task_queues) AS queue CROSS JOIN json_each(:definitions) AS wanted
    WHERE EXISTS (
        SELECT 1 FROM run
        WHERE run.status = 0 AND run.is_delayed = 0 AND run.task_queue = queue.value
            AND run.workflow = json_extract(wanted.value, '$[0]') AND run.version = json_extract(wanted.value, '$[1]')
            AND NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = queue.value)
    ) OR EXISTS (
        SELECT 1 FROM run
        WHERE run.status IN (2, 3) AND run.status = 2 AND run.due_at_us IS NOT NULL AND run.paused_at_us IS NULL
            AND run.task_queue = queue.value
            AND run.workflow = json_extract(wanted.value, '$[0]') AND run.version = json_extract(wanted.value, '$[1]')
    )
) OR EXISTS (
    SELECT 1 FROM run
    WHERE run.status = 0 AND run.is_delayed = 1 AND run.task_queue IN (SELECT value FROM json_each(:task_queues))
        AND (run.workflow, run.version) IN
            (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:definitions))
        AND NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = run.task_queue)
) OR EXISTS (
    SELECT 1 FROM run
    WHERE run.owner IS NOT NULL AND run.task_queue IN (SELECT value FROM json_each(:task_queues))
        AND (run.workflow, run.version) IN
            (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:definitions))
);

-- ─ care ──

-- name: open_runs
SELECT
    task_queue, workflow, version,
    CASE WHEN status = 0 AND ready_at_us > :now_us THEN 'delayed' WHEN status = 0 THEN 'ready' WHEN status = 1 THEN 'owned'
        WHEN status = 2 THEN 'waiting' WHEN status = 3 THEN 'parked' ELSE 'paused' END AS state,
    count(*), min(ready_at_us)
FROM run WHERE status < 10
GROUP BY task_queue, workflow, version, state
ORDER BY task_queue, workflow, version, state;

-- name: open_tasks
SELECT
    activity_task.task_queue, activity_task.activity,
    CASE WHEN activity_task.state = 'started' THEN 'started' WHEN run.paused_at_us IS NOT NULL THEN 'paused'
        WHEN activity_task.ready_at_us > :now_us THEN 'delayed' ELSE 'ready' END AS shown,
    count(*), min(activity_task.ready_at_us)
FROM activity_task
JOIN run ON run.id = activity_task.run AND run.generation = activity_task.generation AND run.status < 10
JOIN attempt ON attempt.run = run.id AND attempt.generation = run.generation AND attempt.op = activity_task.op
    AND attempt.completion = 'remote'
GROUP BY activity_task.task_queue, activity_task.activity, shown
ORDER BY activity_task.task_queue, activity_task.activity, shown;

-- name: recent_workflows
SELECT DISTINCT workflow FROM (SELECT workflow FROM run ORDER BY id DESC LIMIT :count) ORDER BY workflow;

-- name: count_closed_runs
SELECT count(*) FROM run
WHERE created_at_us < :before_us AND status >= 10 AND closed_at_us < :before_us
    AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)))
    AND (:workflow IS NULL OR workflow = :workflow)
    AND (:expiry_us IS NULL OR retention_us IS NULL OR (retention_us > 0 AND closed_at_us + retention_us < :expiry_us));

-- name: find_closed_runs
-- A run that was closed before an instant was created before it: the index on creation bounds the search.
SELECT created_at_us, id FROM run
WHERE created_at_us < :before_us AND status >= 10 AND closed_at_us < :before_us
    AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)))
    AND (:workflow IS NULL OR workflow = :workflow)
    AND (:expiry_us IS NULL OR retention_us IS NULL OR (retention_us > 0 AND closed_at_us + retention_us < :expiry_us))
    AND created_at_us >= :after_us AND (created_at_us > :after_us OR id > :after_run)
ORDER BY created_at_us, id
LIMIT :count;

-- name: find_expired_runs
-- Those whose workflow says itself how long they are kept: by an index that holds no others.
SELECT closed_at_us + retention_us AS at_us, id FROM run
WHERE retention_us > 0 AND status >= 10 AND closed_at_us + retention_us < :expiry_us
    AND (closed_at_us + retention_us, id) > (:after_us, :after_run)
ORDER BY closed_at_us + retention_us, id
LIMIT :count;

-- name: begin_retention
INSERT INTO retention (at_us, before_us, statuses, who) VALUES (:now_us, :before_us, :statuses, :who);

-- name: end_retention
UPDATE retention SET runs = :runs, journal_rows = :journal_rows WHERE id = :retention;

-- name: drop_retention
DELETE FROM retention WHERE id = :retention;

-- name: mark_run
-- From here to `unmark_run`, in one transaction, the journal lets this run's rows go (migration 0003).
INSERT INTO retention_run (run, retention)
SELECT id, :retention FROM run
WHERE id = :run AND status >= 10 AND closed_at_us < :before_us
    AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)))
    AND (:workflow IS NULL OR workflow = :workflow)
    AND (:expiry_us IS NULL OR (retention_us IS NULL AND NOT :has_own) OR (retention_us > 0 AND closed_at_us + retention_us < :expiry_us));

-- name: prune_journal
DELETE FROM journal WHERE run = :run;

-- name: prune_attempts
DELETE FROM attempt WHERE run = :run;

-- name: prune_tasks
DELETE FROM activity_task WHERE run = :run;

-- name: prune_inbox
DELETE FROM inbox WHERE run = :run;

-- name: prune_message_ids
DELETE FROM message_id WHERE run = :run;

-- name: prune_requests
DELETE FROM request WHERE run = :run;

-- name: prune_payloads
DELETE FROM run_payload WHERE run = :run;

-- name: prune_large_payloads
DELETE FROM payload WHERE run = :run;

-- name: prune_generations
DELETE FROM generation WHERE run = :run;

-- name: prune_rows_of_run
-- Keys are `run_id/number`: what follows the run's id and a slash is digits alone, else the row is another run's.
DELETE FROM durable_bulk_items
WHERE key >= (SELECT run_id FROM run WHERE id = :run) || '/' AND key < (SELECT run_id FROM run WHERE id = :run) || '0'
    AND substr(key, (SELECT length(run_id) FROM run WHERE id = :run) + 2) NOT GLOB '*[^0-9]*';

-- name: prune_children
-- As a child and as a parent.
DELETE FROM child WHERE run = :run OR parent = :run;

-- name: prune_run
DELETE FROM run WHERE id = :run RETURNING epoch;

-- name: unmark_run
DELETE FROM retention_run WHERE run = :run;

-- name: raise_meta
INSERT INTO meta (key, value) VALUES (:key, CAST(:value AS TEXT))
ON CONFLICT (key) DO UPDATE SET value = excluded.value
WHERE CAST(meta.value AS INTEGER) < CAST(excluded.value AS INTEGER);

-- name: make_rows
-- `rows_table` stands for the table's name, an identifier that was checked: names cannot be bound.
CREATE TABLE IF NOT EXISTS "rows_table" (
    key TEXT NOT NULL,
    number INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (key, number)
) STRICT;

-- name: count_rows
SELECT coalesce(max(number), 0) FROM "rows_table" WHERE key = :key;

-- name: append_row
INSERT INTO "rows_table" (key, number, at_us, data) VALUES (:key, :number, :now_us, :data);

-- name: find_rows_table
SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = :table;

-- name: read_rows
SELECT data FROM "rows_table" WHERE key = :key AND number > :after ORDER BY number LIMIT :count;
