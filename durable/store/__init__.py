"""Where runs are kept: one contract, one package per database. Knows nothing of the engine or of workers."""
