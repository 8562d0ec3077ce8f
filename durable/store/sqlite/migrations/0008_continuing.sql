-- Runs that continue as new. first_generation: the one that the last start opened, whose input later starts are compared with;
-- NULL: the latest has that input still. idle_generations: how many continued in a row without having waited for anything.
ALTER TABLE run ADD COLUMN first_generation INTEGER;
ALTER TABLE run ADD COLUMN idle_generations INTEGER NOT NULL DEFAULT 0;
