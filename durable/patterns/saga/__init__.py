"""Sagas: processes whose steps are undone, in reverse, if a later one fails.

Three ways to write one: `abstract.py` (steps added one by one), `base.py` with `manager.py` (a class with decorated methods), and
`orchestrator.py` (a table of steps with transitions). All undo through `durable.SagaScope`.
"""
