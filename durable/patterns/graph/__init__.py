"""Graphs: nodes that read and write one state, edges that say what follows. Which node runs when is told in `traversal.py`."""
