"""`python -m durable_cli`."""

from durable_cli.main import main

if __name__ == "__main__":
    main()
