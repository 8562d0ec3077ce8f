-- What becomes of a run's open children when it closes, or begins its next epoch, as `child.on_parent_close` says. "cancel": they are asked to,
-- by a message whose name says why. "terminate": they are closed at once, as by a person who terminates them, and by the same trigger their own
-- children with them. All of it in the transaction that ends the parent.
CREATE OR REPLACE FUNCTION durable.cancel_children() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE at_us bigint := coalesce(NEW.closed_at_us, NEW.created_at_us);
BEGIN
    WITH orphan AS MATERIALIZED (
        SELECT run.id FROM durable.child JOIN durable.run ON run.id = child.run
        WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'cancel' AND run.status < 10
        ORDER BY run.id
        FOR UPDATE OF run
    ), counted AS (
        UPDATE durable.run SET
            msg_seq = run.msg_seq + 1,
            ready_at_us = CASE WHEN run.status = 2 THEN at_us ELSE run.ready_at_us END,
            due_at_us = CASE WHEN run.status = 2 THEN NULL ELSE run.due_at_us END,
            is_delayed = CASE WHEN run.status = 2 THEN false ELSE run.is_delayed END,
            status = CASE WHEN run.status <> 2 THEN run.status WHEN run.paused_at_us IS NULL THEN 0 ELSE 4 END
        FROM orphan WHERE run.id = orphan.id AND run.status < 10
        RETURNING run.id, run.msg_seq
    )
    INSERT INTO durable.inbox (run, msg, kind, name, data, message_id, sent_at_us)
    SELECT counted.id, counted.msg_seq, 'cancel', 'parent ended', 'null', NULL, at_us FROM counted;

    -- The locks first, in order; then what is written under them, which a statement of its own sees as it is by then.
    PERFORM 1 FROM durable.child JOIN durable.run ON run.id = child.run
    WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'terminate' AND run.status < 10
    ORDER BY run.id
    FOR UPDATE OF run;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;

    WITH closed AS (
        -- The claim number rises, so that whoever owned it can write nothing more.
        UPDATE durable.run SET
            status = 13, owner = NULL, claim_no = run.claim_no + 1, due_at_us = NULL, closed_at_us = at_us, reason = 'its parent has ended'
        FROM durable.child
        WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'terminate'
            AND run.id = child.run AND run.status < 10
        RETURNING run.id, run.generation
    ), written AS (
        -- The last row of their journals, as the store writes it for whoever terminates a run.
        INSERT INTO durable.journal (run, generation, turn, part, data)
        SELECT closed.id, closed.generation,
            coalesce((SELECT max(turn) FROM durable.journal AS last WHERE last.run = closed.id AND last.generation = closed.generation), 0) + 1,
            1, convert_to('{"v":1,"worker":0,"entries":[{"e":"terminated","at":' || at_us || ',"reason":"its parent has ended"}]}', 'UTF8')
        FROM closed
    ), outcome AS (
        UPDATE durable.run_payload SET failure = NULL FROM closed
        WHERE run_payload.run = closed.id AND run_payload.generation = closed.generation
    ), emptied AS (
        DELETE FROM durable.inbox USING closed WHERE inbox.run = closed.id
    )
    DELETE FROM durable.attempt USING closed WHERE attempt.run = closed.id AND attempt.generation = closed.generation;
    RETURN NULL;
END $$;
