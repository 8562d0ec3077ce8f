"""From a URL to where a schema lies and how to get there. Opens nothing.

Besides what every Postgres client understands, a URL may say `schema=` (default: durable) and `pooler=transaction`, for a
pooler in transaction mode that does not give itself away.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from durable.errors import DefinitionError

DEFAULT_SCHEMA: Final = "durable"
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")  # what stands in SQL: nothing else may


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A schema and the way to it. `dsn` holds the password: never show it."""

    dsn: str
    schema: str
    is_pooled: bool
    shown: str  # the URL, password masked

    @property
    def channel(self) -> str:
        """Where workers of this schema are told that there is work."""
        return f"durable_{self.schema}"

    @property
    def ends_channel(self) -> str:
        """Where those who wait are told that runs have ended."""
        return f"durable_{self.schema}_ends"


def locate(url: str, shown: str) -> Place:
    """Take a `postgresql://` URL apart. Raises `DefinitionError` for parameters that make no sense."""
    try:
        parts = urlsplit(url)
        for host in parts.netloc.rpartition("@")[2].split(","):  # several, for a fail-over
            _ = urlsplit(f"//{host}").port  # refuses what is no number
    except ValueError as error:
        raise DefinitionError(f"{shown} is no Postgres URL: {error}") from None
    if parts.fragment:
        raise DefinitionError(f"{shown}: write # as %23, / as %2F and ? as %3F in a user or password")
    schema, is_pooled = DEFAULT_SCHEMA, False
    rest: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "schema":
            schema = value
        elif name == "pooler":
            if value != "transaction":
                raise DefinitionError(f"{shown}: pooler is 'transaction' or left out, not {value!r}")
            is_pooled = True
        else:
            rest.append((name, value))
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise DefinitionError(
            f"{shown}: a schema is 1 to 48 lower-case letters, digits and underscores, not {schema!r}"
        )
    dsn = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(rest), ""))
    return Place(dsn=dsn, schema=schema, is_pooled=is_pooled, shown=shown)
