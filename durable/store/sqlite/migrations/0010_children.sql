-- Children: runs that a turn of another run has started. Whatever closes one, its parent is told in the same transaction; whatever closes
-- a parent, or opens its next epoch, its open children are asked to cancel, but for those that are to be left alone. As triggers, so that no
-- way to close a run can forget it. `run.parent` is the parent's run id.
ALTER TABLE run ADD COLUMN has_children INTEGER NOT NULL DEFAULT 0;

-- run, parent: keys of runs. epoch: the parent's when it asked. op: the operation that waits.
CREATE TABLE child (
    run INTEGER PRIMARY KEY,
    parent INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    op INTEGER NOT NULL,
    on_parent_close TEXT NOT NULL
) STRICT;

CREATE INDEX child_parent ON child (parent);

CREATE TRIGGER child_is_closed AFTER UPDATE OF status ON run
WHEN NEW.parent IS NOT NULL AND NEW.status >= 10 AND OLD.status < 10
BEGIN
    UPDATE run SET
        msg_seq = msg_seq + 1,
        ready_at_us = CASE WHEN status = 2 THEN NEW.closed_at_us ELSE ready_at_us END,
        due_at_us = CASE WHEN status = 2 THEN NULL ELSE due_at_us END,
        is_delayed = CASE WHEN status = 2 THEN 0 ELSE is_delayed END,
        status = CASE WHEN status <> 2 THEN status WHEN paused_at_us IS NULL THEN 0 ELSE 4 END
    WHERE id = (SELECT child.parent FROM child WHERE child.run = NEW.id) AND status < 10
        AND epoch = (SELECT child.epoch FROM child WHERE child.run = NEW.id);

    INSERT INTO inbox (run, msg, kind, name, data, message_id, sent_at_us)
    SELECT parent.id, parent.msg_seq, 'child', '', CAST('null' AS BLOB),
        'child/' || child.op || '/' || NEW.generation || '/' || NEW.run_id, NEW.closed_at_us
    FROM child
    JOIN run AS parent ON parent.id = child.parent AND parent.epoch = child.epoch AND parent.status < 10
    WHERE child.run = NEW.id;
END;

CREATE TRIGGER parent_is_closed AFTER UPDATE OF status, epoch ON run
WHEN OLD.has_children = 1 AND OLD.status < 10 AND (NEW.status >= 10 OR NEW.epoch <> OLD.epoch)
BEGIN
    UPDATE run SET
        msg_seq = msg_seq + 1,
        ready_at_us = CASE WHEN status = 2 THEN coalesce(NEW.closed_at_us, NEW.created_at_us) ELSE ready_at_us END,
        due_at_us = CASE WHEN status = 2 THEN NULL ELSE due_at_us END,
        is_delayed = CASE WHEN status = 2 THEN 0 ELSE is_delayed END,
        status = CASE WHEN status <> 2 THEN status WHEN paused_at_us IS NULL THEN 0 ELSE 4 END
    WHERE status < 10 AND id IN (
        SELECT child.run FROM child
        WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'cancel'
    );

    INSERT INTO inbox (run, msg, kind, name, data, message_id, sent_at_us)
    SELECT orphan.id, orphan.msg_seq, 'cancel', 'cancel', CAST('null' AS BLOB), NULL, coalesce(NEW.closed_at_us, NEW.created_at_us)
    FROM child
    JOIN run AS orphan ON orphan.id = child.run AND orphan.status < 10
    WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'cancel';
END;
