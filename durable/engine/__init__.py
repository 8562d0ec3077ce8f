"""The synchronous core: no I/O, no threads, no wall clock, no chance of its own."""
