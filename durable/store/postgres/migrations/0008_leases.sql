-- How long a worker that does not beat is left alone by others, whose own leases may be shorter; 0: it did not say.
ALTER TABLE durable.worker ADD COLUMN lease_us bigint NOT NULL DEFAULT 0;
