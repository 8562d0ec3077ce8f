"""Benchmarks: `python -m tests.bench --store sqlite`. Not collected by pytest; nothing here passes or fails."""
