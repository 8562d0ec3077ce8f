-- Children: runs that a turn of another run has started. Whatever closes one, its parent is told in the same transaction; whatever closes
-- a parent, or opens its next epoch, its open children are asked to cancel, but for those that are to be left alone. As triggers, so that no
-- way to close a run can forget it. `run.parent` is the parent's run id.
ALTER TABLE durable.run ADD COLUMN has_children boolean NOT NULL DEFAULT false;

-- run, parent: keys of runs. epoch: the parent's when it asked. op: the operation that waits.
CREATE TABLE durable.child (
    run bigint PRIMARY KEY,
    parent bigint NOT NULL,
    epoch integer NOT NULL,
    op integer NOT NULL,
    on_parent_close text NOT NULL
);

CREATE INDEX child_parent ON durable.child (parent);

-- Count on the run's row, then the message under that number: as any sender (P2).
CREATE FUNCTION durable.tell_parent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH counted AS (
        UPDATE durable.run SET
            msg_seq = run.msg_seq + 1,
            ready_at_us = CASE WHEN run.status = 2 THEN NEW.closed_at_us ELSE run.ready_at_us END,
            due_at_us = CASE WHEN run.status = 2 THEN NULL ELSE run.due_at_us END,
            is_delayed = CASE WHEN run.status = 2 THEN false ELSE run.is_delayed END,
            status = CASE WHEN run.status <> 2 THEN run.status WHEN run.paused_at_us IS NULL THEN 0 ELSE 4 END
        FROM durable.child
        WHERE child.run = NEW.id AND run.id = child.parent AND run.epoch = child.epoch AND run.status < 10
        RETURNING run.id, run.msg_seq, child.op
    )
    INSERT INTO durable.inbox (run, msg, kind, name, data, message_id, sent_at_us)
    SELECT counted.id, counted.msg_seq, 'child', '', 'null', 'child/' || counted.op || '/' || NEW.generation || '/' || NEW.run_id, NEW.closed_at_us
    FROM counted;
    RETURN NULL;
END $$;

CREATE TRIGGER child_is_closed AFTER UPDATE OF status ON durable.run
FOR EACH ROW WHEN (NEW.parent IS NOT NULL AND NEW.status >= 10 AND OLD.status < 10)
EXECUTE FUNCTION durable.tell_parent();

CREATE FUNCTION durable.cancel_children() RETURNS trigger LANGUAGE plpgsql AS $$
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
    SELECT counted.id, counted.msg_seq, 'cancel', 'cancel', 'null', NULL, at_us FROM counted;
    RETURN NULL;
END $$;

CREATE TRIGGER parent_is_closed AFTER UPDATE OF status, epoch ON durable.run
FOR EACH ROW WHEN (OLD.has_children AND OLD.status < 10 AND (NEW.status >= 10 OR NEW.epoch <> OLD.epoch))
EXECUTE FUNCTION durable.cancel_children();
