-- How long a run is kept once it is closed, if its workflow says so: microseconds, 0 for ever. NULL: as workers are told.
ALTER TABLE durable.run ADD COLUMN retention_us bigint;

CREATE INDEX run_expiring ON durable.run ((closed_at_us + retention_us), id) WHERE retention_us > 0 AND status >= 10;
