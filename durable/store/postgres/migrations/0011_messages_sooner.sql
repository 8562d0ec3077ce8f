-- As before, but workers are told of a message while it is on its way to the disk, and the sender is answered once it is there. Whatever a
-- worker makes of it is on the disk after it: a server that goes down before loses both, and nobody has been told of either.
CREATE OR REPLACE PROCEDURE durable.send_message(
    INOUT msg bigint, given_us bigint, to_run text, its_kind text, its_name text, its_data bytea, its_id text, unread_max integer,
    channel text, sender text
) LANGUAGE plpgsql AS $$
BEGIN
    IF channel IS NOT NULL THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;

    WITH counted AS (
        UPDATE durable.run SET
            msg_seq = msg_seq + 1,
            ready_at_us = CASE WHEN status = 2 THEN durable.instant(given_us) ELSE ready_at_us END,
            due_at_us = CASE WHEN status = 2 THEN NULL ELSE due_at_us END,
            is_delayed = CASE WHEN status = 2 THEN false ELSE is_delayed END,
            status = CASE WHEN status <> 2 THEN status WHEN paused_at_us IS NULL THEN 0 ELSE 4 END
        WHERE run_id = to_run AND status < 10
            AND (unread_max IS NULL OR (
                SELECT count(*) FROM (SELECT 1 FROM durable.inbox WHERE inbox.run = run.id LIMIT unread_max) AS unread
            ) < unread_max)
            AND NOT EXISTS (SELECT 1 FROM durable.message_id AS known WHERE known.run = run.id AND known.message_id = its_id)
        RETURNING id, msg_seq
    ), delivered AS (
        INSERT INTO durable.inbox (run, msg, kind, name, data, message_id, sent_at_us)
        SELECT id, msg_seq, its_kind, its_name, its_data, its_id, durable.instant(given_us) FROM counted
    ), remembered AS (
        INSERT INTO durable.message_id (run, message_id, msg)
        SELECT id, its_id, msg_seq FROM counted WHERE its_id IS NOT NULL
    )
    SELECT msg_seq INTO msg FROM counted;

    IF channel IS NOT NULL THEN
        COMMIT;
        IF msg IS NOT NULL THEN
            PERFORM set_config('synchronous_commit', 'off', true);
            PERFORM pg_notify(channel, sender);
            COMMIT;
            -- A record of its own, whose commit waits for the disk as the session says, and so for all that was written before it.
            PERFORM pg_logical_emit_message(true, 'wait', '');
        END IF;
    END IF;
END $$;
