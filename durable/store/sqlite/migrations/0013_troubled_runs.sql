-- Runs that ended otherwise than well, and parked ones: few among many, and what people list first. A run that does well never
-- touches this index.
CREATE INDEX run_troubled ON run (created_at_us) WHERE status = 3 OR status > 10;
