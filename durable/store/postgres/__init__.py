"""The Postgres store: the same promises for many workers on many machines."""
