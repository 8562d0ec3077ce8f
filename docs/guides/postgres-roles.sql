-- The three roles of a schema `durable`; run it as its owner, in psql, after the first `durable migrate` and after each later one.
-- Make the roles first:  CREATE ROLE durable_worker LOGIN; CREATE ROLE durable_reader LOGIN;
--
-- owner    makes and migrates the schema: durable migrate
-- worker   runs workers and clients: starts, signals, cancels; changes no table's shape, and no row of the journal
-- reader   looks: durable list, show, why, doctor

GRANT USAGE ON SCHEMA durable TO durable_worker, durable_reader;

GRANT SELECT ON ALL TABLES IN SCHEMA durable TO durable_reader;

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA durable TO durable_worker;
REVOKE UPDATE, DELETE ON durable.journal FROM durable_worker;
REVOKE INSERT, UPDATE, DELETE ON durable.migration, durable.meta FROM durable_worker;
GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA durable TO durable_worker;
-- Retention is the one way by which rows leave the journal: closed runs only, audited.
GRANT EXECUTE ON FUNCTION durable.prune_journal(bigint[]) TO durable_worker;
