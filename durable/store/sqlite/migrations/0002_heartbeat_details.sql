-- What an activity told of its progress, as JSON: for its next attempt, wherever that runs (P22). Code that does not know the
-- column leaves it as it is.
ALTER TABLE attempt ADD COLUMN details BLOB;
