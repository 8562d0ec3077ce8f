"""The store in one SQLite file: any number of processes on one machine. Knows nothing of the engine or of workers."""
