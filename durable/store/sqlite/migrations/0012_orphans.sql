-- What becomes of a run's open children when it closes, or begins its next epoch, as `child.on_parent_close` says. "cancel": they are asked to,
-- by a message whose name says why. "terminate": they are closed at once, as by a person who terminates them, and their own children with them: the
-- writers' connections let triggers recurse. All of it in the transaction that ends the parent.
DROP TRIGGER parent_is_closed;

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
    SELECT orphan.id, orphan.msg_seq, 'cancel', 'parent ended', CAST('null' AS BLOB), NULL, coalesce(NEW.closed_at_us, NEW.created_at_us)
    FROM child
    JOIN run AS orphan ON orphan.id = child.run AND orphan.status < 10
    WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'cancel';

    -- The last row of their journals, as the store writes it for whoever terminates a run.
    INSERT INTO journal (run, generation, turn, part, data)
    SELECT orphan.id, orphan.generation,
        1 + (SELECT coalesce(max(turn), 0) FROM journal AS last WHERE last.run = orphan.id AND last.generation = orphan.generation), 1,
        CAST('{"v":1,"worker":0,"entries":[{"e":"terminated","at":' || coalesce(NEW.closed_at_us, NEW.created_at_us)
            || ',"reason":"its parent has ended"}]}' AS BLOB)
    FROM child
    JOIN run AS orphan ON orphan.id = child.run AND orphan.status < 10
    WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'terminate';

    UPDATE run_payload SET failure = NULL, failure_payload = NULL
    WHERE (run, generation) IN (
        SELECT orphan.id, orphan.generation FROM child
        JOIN run AS orphan ON orphan.id = child.run AND orphan.status < 10
        WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'terminate'
    );

    DELETE FROM inbox WHERE run IN (
        SELECT orphan.id FROM child
        JOIN run AS orphan ON orphan.id = child.run AND orphan.status < 10
        WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'terminate'
    );

    DELETE FROM attempt WHERE (run, generation) IN (
        SELECT orphan.id, orphan.generation FROM child
        JOIN run AS orphan ON orphan.id = child.run AND orphan.status < 10
        WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'terminate'
    );

    -- The claim number rises, so that whoever owned it can write nothing more.
    UPDATE run SET
        status = 13, owner = NULL, claim_no = claim_no + 1, due_at_us = NULL,
        closed_at_us = coalesce(NEW.closed_at_us, NEW.created_at_us), reason = 'its parent has ended'
    WHERE status < 10 AND id IN (
        SELECT child.run FROM child
        WHERE child.parent = NEW.id AND child.epoch = OLD.epoch AND child.on_parent_close = 'terminate'
    );
END;
