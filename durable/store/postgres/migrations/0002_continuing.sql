-- Runs that continue as new. first_generation: the one that the last start opened, whose input later starts are compared with;
-- NULL: the latest has that input still. idle_generations: how many continued in a row without having waited for anything.
ALTER TABLE durable.run ADD COLUMN first_generation integer;
ALTER TABLE durable.run ADD COLUMN idle_generations integer NOT NULL DEFAULT 0;
