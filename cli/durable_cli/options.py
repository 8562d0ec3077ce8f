"""The options every command takes, before or after its name, and the settings they make.

Knows nothing of durable; imports click only, so that `durable --help` is quick.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from durable_cli.problems import Problem

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_DB: Final = "sqlite:///durable.db"


class Settings:
    """What the options said; the properties add what the environment and pyproject.toml say."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self.environ = os.environ if environ is None else environ
        self.given_db: str | None = None
        self.given_app: str | None = None
        self.given_codec: str | None = None
        self.given_key_file: str | None = None
        self.output = "text"
        self.color: str | None = None
        self.ascii = False
        self.debug = False
        self._project: tuple[Path, dict[str, Any]] | None = None

    @property
    def db(self) -> str:
        """The database: `--db`, else DURABLE_DB, else pyproject.toml, else sqlite:///durable.db."""
        given = self.given_db or self.environ.get("DURABLE_DB")
        if given:
            return given
        directory, table = self._table()
        return _beside(directory, table["db"]) if "db" in table else DEFAULT_DB

    @property
    def app(self) -> str | None:
        """The target that holds the workflows: `--app`, else DURABLE_APP, else pyproject.toml."""
        return self.given_app or self.environ.get("DURABLE_APP") or self._table()[1].get("app")

    @property
    def codec(self) -> str | None:
        """The target of the codec: `--codec`, else DURABLE_CODEC."""
        return self.given_codec or self.environ.get("DURABLE_CODEC") or None

    @property
    def key_file(self) -> str | None:
        """The file with the keys: `--key-file`, else DURABLE_KEY_FILE."""
        return self.given_key_file or self.environ.get("DURABLE_KEY_FILE") or None

    @property
    def project_directory(self) -> Path:
        """Where pyproject.toml is, else the current directory."""
        return self._table()[0]

    @property
    def shows_tracebacks(self) -> bool:
        return self.debug or self.environ.get("DURABLE_DEBUG", "") not in ("", "0")

    def _table(self) -> tuple[Path, dict[str, Any]]:
        if self._project is None:
            self._project = _tool_table(Path.cwd())
        return self._project


def _tool_table(here: Path) -> tuple[Path, dict[str, Any]]:
    """Return the nearest directory upward with a pyproject.toml, and its `[tool.durable]`."""
    for directory in (here, *here.parents):
        path = directory / "pyproject.toml"
        if path.is_file():
            import tomllib  # only where a project has one: `--help` should not pay for it

            try:
                table = tomllib.loads(path.read_text("utf-8")).get("tool", {}).get("durable", {})
            except (OSError, ValueError) as error:
                raise Problem(f"cannot read {path}: {error}") from error
            for key in ("app", "db"):
                if not isinstance(table.get(key, ""), str):
                    raise Problem(f"[tool.durable] {key} in {path} must be a string")
            return directory, table
    return here, {}


def _beside(directory: Path, db: str) -> str:
    """Return the address with a relative SQLite path made relative to the project, not to where we stand."""
    path = db.removeprefix("sqlite:///")
    if directory == Path.cwd() or path.startswith(("/", ":")) or "://" in path:
        return db
    return f"sqlite:///{directory / path}"


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that stores the value in the settings; what is not given leaves an earlier one alone."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(Settings), name, value)

    return keep


_COMMON: Final = (
    click.option("--db", metavar="URL", help="Database: sqlite:///file.db, a path, or postgresql://host/database.  [env: DURABLE_DB]",
                 expose_value=False, callback=_keep("given_db")),
    click.option("--key-file", metavar="FILE", help="Keys of encrypted payloads.  [env: DURABLE_KEY_FILE]",
                 expose_value=False, callback=_keep("given_key_file")),
    click.option("--codec", metavar="TARGET", help="A codec of your own: module:attr or file.py:attr.  [env: DURABLE_CODEC]",
                 expose_value=False, callback=_keep("given_codec")),
    click.option("-o", "--output", type=click.Choice(["text", "json", "jsonl"]), help="Text for people, JSON for programs.",
                 expose_value=False, callback=_keep("output")),
    click.option("--color", type=click.Choice(["auto", "always", "never"]), help="Colour (also NO_COLOR, FORCE_COLOR).",
                 expose_value=False, callback=_keep("color")),
    click.option("--ascii", is_flag=True, help="No glyphs beyond ASCII.", expose_value=False, callback=_keep("ascii")),
    click.option("--debug", is_flag=True, help="Show tracebacks.  [env: DURABLE_DEBUG]",
                 expose_value=False, callback=_keep("debug")),
)  # fmt: skip


def common_options(command: F) -> F:
    """Add the options every command takes. They work before the command's name, too."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


def app_option(command: F) -> F:
    """Add `--app`."""
    return click.option(
        "--app", metavar="TARGET", help="Where the workflows are: module, module:attr or file.py.  [env: DURABLE_APP]",
        expose_value=False, callback=_keep("given_app"),
    )(command)  # fmt: skip
