"""`python -m durable` is the command line. The one place of the library that knows of it."""

from __future__ import annotations


def run() -> None:
    """Hand over to the command line."""
    from durable_cli.main import main

    main()


if __name__ == "__main__":
    run()
