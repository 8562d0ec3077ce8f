"""The command line of durable: `durable`, `python -m durable` or `python -m durable_cli`.

It uses durable's public names only, which proves that they suffice. Knows nothing of databases, engines or journals' bytes.
"""
