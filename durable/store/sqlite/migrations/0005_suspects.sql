-- Which run ends its workers (P14), and which code has met a parked one (P13).
-- suspicion: 0 none; 1 its worker died while it held the run; 2 its worker drives it alone. crashes: how many workers died
-- driving it alone, since it last got on. trial_turn: its last turn when that began: a later one means that it got on, whatever
-- killed the worker then. tried_code: fingerprints, apart by spaces.
ALTER TABLE run ADD COLUMN suspicion INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN trial_turn INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN tried_code TEXT NOT NULL DEFAULT '';
