-- How long a run is kept once it is closed, if its workflow says so: microseconds, 0 for ever. NULL: as workers are told.
ALTER TABLE run ADD COLUMN retention_us INTEGER;

CREATE INDEX run_expiring ON run (closed_at_us + retention_us, id) WHERE retention_us > 0 AND status >= 10;
