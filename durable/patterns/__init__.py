"""Long-running processes in the shapes people think in: pipelines, graphs, sagas, batches, state machines.

Each is a library on top of the durable core: it imports public names of `durable` only, which proves that they suffice.
How a pattern is built is told in `running.py`.
"""
