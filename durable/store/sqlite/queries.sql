-- Every statement of the SQLite store. Named parameters; the few with `?` take a row per turn, start or message, where a
-- dict for each would cost as much as a third of the insert itself. Statuses: 0 ready, 1 owned, 2 waiting, 3 parked, 4 held (it
-- would be ready, but is paused), 10 and above closed (durable/store/sqlite/codes.py).

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
INSERT INTO worker (name, host, pid, boot_id, task_queue, definitions, is_embedded, wake_addr, started_at_us)
VALUES (:name, :host, :pid, :boot_id, :task_queue, :definitions, :is_embedded, :wake_addr, :now_us);

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
SELECT worker.id, worker.name, worker.boot_id, worker_heartbeat.beat, worker_heartbeat.beat_at_us, worker.wake_addr
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
        ELSE crashes + 1
    END,
    suspicion = 1
WHERE id = :run
RETURNING crashes;

-- name: park_poison
UPDATE run SET status = 3, owner = NULL, reason = :reason, ready_at_us = :now_us, is_delayed = 0 WHERE id = :run;

-- name: list_workers
SELECT id, name, host, pid, task_queue, is_embedded, is_alive, started_at_us, stopped_at_us, definitions,
    (SELECT count(*) FROM run WHERE run.owner = worker.id),
    (SELECT beat_at_us FROM worker_heartbeat WHERE worker_heartbeat.worker = worker.id)
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
SELECT run.run_id, run.id, run.generation, run.status, run.workflow, whole_payload.input
FROM json_each(:run_ids) AS wanted
JOIN run ON run.run_id = wanted.value
JOIN whole_payload ON whole_payload.run = run.id AND whole_payload.generation = run.generation;

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
    created_at_us, started_at_us, parent
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

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
    started_at_us = :started_at_us, closed_at_us = NULL, reason = NULL, parent = :parent, last_turn = 0,
    paused_at_us = NULL, pause_reason = NULL, suspicion = 0, crashes = 0, tried_code = ''
WHERE id = :run
RETURNING generation, epoch, claim_no, msg_seq;

-- name: lifetime_of_run
-- How long it may take, by its first generation in this epoch; later ones share that one's deadline.
SELECT deadline_us - created_at_us FROM (
    SELECT generation, deadline_us, created_at_us, epoch FROM generation WHERE run = :run
    UNION ALL
    SELECT generation, deadline_us, created_at_us, epoch FROM run WHERE id = :run
)
WHERE epoch = (SELECT epoch FROM run WHERE id = :run)
ORDER BY generation LIMIT 1;

-- name: reopen_run
UPDATE run SET
    generation = generation + 1, epoch = epoch + :new_epoch, attempt = :attempt, status = 0, claim_no = claim_no + 1,
    ready_at_us = :now_us, is_delayed = 0, due_at_us = NULL, deadline_us = :deadline_us, created_at_us = :now_us,
    started_at_us = NULL, closed_at_us = NULL, reason = NULL, paused_at_us = NULL, pause_reason = NULL, suspicion = 0,
    crashes = 0, tried_code = '', last_turn = :last_turn
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
SELECT run.id, json_extract(wanted.value, '$[2]')
FROM json_each(:codes) AS wanted
CROSS JOIN run ON run.workflow = json_extract(wanted.value, '$[0]') AND run.version = json_extract(wanted.value, '$[1]')
    AND run.task_queue = :task_queue AND run.status = 3 AND run.paused_at_us IS NULL
WHERE instr(' ' || run.tried_code || ' ', ' ' || json_extract(wanted.value, '$[2]') || ' ') = 0
    AND NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = :task_queue)
ORDER BY run.id
LIMIT :count;

-- name: claim_parked_run
UPDATE run SET
    status = 1, owner = :worker, claim_no = claim_no + 1, is_delayed = 0, reason = NULL,
    suspicion = min(suspicion, 1), tried_code = ltrim(tried_code || ' ' || :code)
WHERE id = :run AND status = 3 AND paused_at_us IS NULL AND instr(' ' || tried_code || ' ', ' ' || :code || ' ') = 0;

-- name: read_owned_runs
-- A run whose input is missing is driven like any other, and parks: left out, it would be owned and never move.
SELECT run.id, run.run_id, run.generation, run.epoch, run.claim_no, run.workflow, run.version, run.task_queue,
    run.attempt, coalesce(whole_payload.input, x''), run.deadline_us, run.created_at_us, run.msg_seq, run.suspicion,
    run.last_turn
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
-- The message count is compared on the run row itself, never by looking into the inbox (P2).
UPDATE run SET status = 2, owner = NULL, due_at_us = :due_at_us, last_turn = max(last_turn, :turn)
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
    last_turn = max(last_turn, :turn)
WHERE id = :run AND owner = :worker AND claim_no = :claim_no;

-- name: try_suspect
UPDATE run SET
    suspicion = 2,
    trial_turn = (SELECT coalesce(max(turn), 0) FROM journal WHERE run = :run AND generation = run.generation),
    tried_code = CASE
        WHEN instr(' ' || tried_code || ' ', ' ' || :code || ' ') THEN tried_code ELSE ltrim(tried_code || ' ' || :code)
    END
WHERE id = :run AND owner = :worker AND claim_no = :claim_no;

-- name: clear_suspect
-- Whether it is still held here or has gone to rest; not if somebody else has claimed it since.
UPDATE run SET suspicion = 0, crashes = 0 WHERE id = ? AND claim_no = ? AND suspicion > 0;

-- name: adjourn_suspect
UPDATE run SET suspicion = 1 WHERE id = ? AND claim_no = ? AND suspicion = 2;

-- name: park_run
UPDATE run SET
    status = 3, owner = NULL, reason = :reason, last_turn = max(last_turn, :turn),
    tried_code = CASE
        WHEN instr(' ' || tried_code || ' ', ' ' || :code || ' ') THEN tried_code ELSE ltrim(tried_code || ' ' || :code)
    END
WHERE id = :run AND owner = :worker AND claim_no = :claim_no;

-- name: next_generation
UPDATE run SET
    generation = generation + 1, attempt = :attempt, status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END,
    owner = NULL, ready_at_us = :ready_at_us, is_delayed = :is_delayed, created_at_us = :now_us, started_at_us = NULL,
    last_turn = :last_turn
WHERE id = :run AND owner = :worker AND claim_no = :claim_no AND msg_seq = :seen
RETURNING epoch, workflow, version, task_queue, deadline_us;

-- name: archive_continued
INSERT INTO generation (
    run, generation, epoch, workflow, version, task_queue, status, attempt, deadline_us, created_at_us, started_at_us,
    closed_at_us, reason
)
SELECT id, generation, epoch, workflow, version, task_queue, 15, attempt, deadline_us, created_at_us, started_at_us,
    :now_us, NULL
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

-- name: unpark_run
-- One that has ended workers goes on as a suspect, with one crash to go: it had its chances.
UPDATE run SET
    status = CASE WHEN paused_at_us IS NULL THEN 0 ELSE 4 END, ready_at_us = :now_us, is_delayed = 0, reason = NULL,
    suspicion = min(crashes, 1), crashes = min(crashes, :crashes_max - 1)
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
UPDATE run SET paused_at_us = NULL, pause_reason = NULL, status = CASE WHEN status = 4 THEN 0 ELSE status END
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
SELECT * FROM run_whole WHERE run_id = :run_id;

-- name: get_run_by_pk
SELECT * FROM run_whole WHERE id = :run;

-- name: get_generation
SELECT
    run.id, run.run_id, generation.generation, generation.epoch, generation.workflow, generation.version,
    generation.task_queue, generation.status, generation.attempt, generation.created_at_us, generation.started_at_us,
    generation.closed_at_us, generation.deadline_us, NULL, generation.created_at_us, NULL, NULL, NULL, generation.reason,
    whole_payload.input, whole_payload.result, whole_payload.failure, 0, NULL, NULL
FROM run
JOIN generation ON generation.run = run.id AND generation.generation = :generation
LEFT JOIN whole_payload ON whole_payload.run = run.id AND whole_payload.generation = generation.generation
WHERE run.run_id = :run_id;

-- name: read_ended
SELECT run_whole.*
FROM json_each(:runs) AS wanted
CROSS JOIN run_whole ON run_whole.id = json_extract(wanted.value, '$[0]')
WHERE run_whole.generation = json_extract(wanted.value, '$[1]') AND (run_whole.status >= 10 OR run_whole.status = 3);

-- name: read_ended_earlier
SELECT
    run.id, run.run_id, generation.generation, generation.epoch, generation.workflow, generation.version,
    generation.task_queue, generation.status, generation.attempt, generation.created_at_us, generation.started_at_us,
    generation.closed_at_us, generation.deadline_us, NULL, generation.created_at_us, NULL, NULL, NULL, generation.reason,
    whole_payload.input, whole_payload.result, whole_payload.failure, 0, NULL, NULL
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
SELECT * FROM run_whole
WHERE (:statuses IS NULL OR CASE WHEN status IN (0, 4) AND started_at_us IS NULL THEN -1 ELSE status END
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
-- As `list_runs`.
-- -1 stands for "ready (or held) and never started", which people call pending.
SELECT * FROM run_seen
WHERE (:statuses IS NULL OR CASE WHEN status IN (0, 4) AND started_at_us IS NULL THEN -1 ELSE status END
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

-- name: count_backlog
-- One arm per partial index: ready, owned, resting. What is paused waits for somebody.
WITH wanted (workflow, version) AS MATERIALIZED (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:definitions)
),
open_run (status, due_at_us, paused_at_us) AS (
    SELECT run.status, run.due_at_us, run.paused_at_us FROM run
    WHERE run.status = 0 AND (:task_queue IS NULL OR run.task_queue = :task_queue)
        AND NOT EXISTS (SELECT 1 FROM pause WHERE kind = 'task_queue' AND name = run.task_queue)
        AND (run.workflow, run.version) IN (SELECT workflow, version FROM wanted)
    UNION ALL
    SELECT run.status, run.due_at_us, run.paused_at_us FROM run
    WHERE run.owner IS NOT NULL AND (:task_queue IS NULL OR run.task_queue = :task_queue)
        AND (run.workflow, run.version) IN (SELECT workflow, version FROM wanted)
    UNION ALL
    SELECT run.status, run.due_at_us, run.paused_at_us FROM run
    WHERE run.status IN (2, 3) AND (:task_queue IS NULL OR run.task_queue = :task_queue)
        AND (run.workflow, run.version) IN (SELECT workflow, version FROM wanted)
)
SELECT
    count(*) FILTER (WHERE status = 0),
    count(*) FILTER (WHERE status = 1),
    count(*) FILTER (WHERE status = 2 AND due_at_us IS NOT NULL AND paused_at_us IS NULL),
    count(*) FILTER (WHERE (status = 2 AND (due_at_us IS NULL OR paused_at_us IS NOT NULL)) OR status = 3)
FROM open_run;

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

-- name: recent_workflows
SELECT DISTINCT workflow FROM (SELECT workflow FROM run ORDER BY id DESC LIMIT :count) ORDER BY workflow;

-- name: count_closed_runs
SELECT count(*) FROM run
WHERE created_at_us < :before_us AND status >= 10 AND closed_at_us < :before_us
    AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)));

-- name: find_closed_runs
-- A run that was closed before an instant was created before it: the index on creation bounds the search.
SELECT created_at_us, id FROM run
WHERE created_at_us < :before_us AND status >= 10 AND closed_at_us < :before_us
    AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)))
    AND created_at_us >= :after_us AND (created_at_us > :after_us OR id > :after_run)
ORDER BY created_at_us, id
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
    AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)));

-- name: prune_journal
DELETE FROM journal WHERE run = :run;

-- name: prune_attempts
DELETE FROM attempt WHERE run = :run;

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
