"""What a workflow must not call, by name, and what it calls instead. Data for `linting.py`."""

from __future__ import annotations

from typing import Final

_CLOCK: Final = ("wall-clock", "use durable.now()")
_CHANCE: Final = ("randomness", "use durable.random()")
_IDS: Final = ("randomness", "use durable.uuid4()")
_SECRETS: Final = (
    "randomness",
    "make secrets in an @activity; where any random value will do, use durable.random()",
)
_SLEEP: Final = ("blocking", "use `await durable.sleep()`, a durable timer")
_FILES: Final = ("input-output", "use files in an @activity and return what they held")
_NETWORK: Final = ("input-output", "use the network in an @activity")
_DATABASE: Final = ("input-output", "use databases in an @activity")
_PROCESSES: Final = ("input-output", "use processes in an @activity")
_PERSON: Final = ("input-output", "wait for a signal (durable.Signal) or an answer (durable.wait_answer)")
_THREADS: Final = ("threads", "call a plain `def` @activity, which runs in a thread")
_ENVIRONMENT: Final = ("environment", "it belongs to the process; read it in an @activity or pass it in")
_ADDRESS: Final = ("address", "it differs between processes; use a value of your own")
_COMPLETED: Final = ("as-completed", "its order differs between processes; use durable.as_completed()")

_CALLS: Final = {
    **{
        f"time.{name}{suffix}": _CLOCK
        for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")
        for suffix in ("", "_ns")
    },
    **{f"datetime.datetime.{name}": _CLOCK for name in ("now", "utcnow", "today")},
    "datetime.date.today": _CLOCK,
    "time.sleep": _SLEEP,
    **{f"{module}.urandom": _SECRETS for module in ("os", "posix", "nt")},
    **{f"uuid.uuid{n}": _IDS for n in (1, 4, 6, 7, 8)},
    **{f"{module}.open": _FILES for module in ("builtins", "io", "_io")},
    "builtins.input": _PERSON,
    "builtins.id": _ADDRESS,
    "builtins.hash": _ADDRESS,
    **{f"{module}.system": _PROCESSES for module in ("os", "posix", "nt")},
    **{f"{module}.getpid": _ENVIRONMENT for module in ("os", "posix", "nt")},
    "os.getenv": _ENVIRONMENT,
    "socket.gethostname": _ENVIRONMENT,
    "_socket.gethostname": _ENVIRONMENT,
    "platform.node": _ENVIRONMENT,
    **{
        f"{module}.{name}": _FILES
        for module in ("os", "posix", "nt")
        for name in (
            "listdir",
            "scandir",
            "remove",
            "unlink",
            "rename",
            "replace",
            "mkdir",
            "makedirs",
            "rmdir",
            "stat",
            "walk",
        )
    },
    "asyncio.as_completed": _COMPLETED,
    "asyncio.tasks.as_completed": _COMPLETED,
    "asyncio.to_thread": _THREADS,
    "asyncio.threads.to_thread": _THREADS,
    "anyio.to_thread.run_sync": _THREADS,
}
# Only without arguments: with some they compute.
_IF_BARE: Final = {f"time.{name}": _CLOCK for name in ("localtime", "gmtime", "ctime", "asctime")}
# Everything in these.
_MODULES: Final = {
    "random": _CHANCE,
    "secrets": _SECRETS,
    "threading": _THREADS,
    "_thread": _THREADS,
    "concurrent.futures": _THREADS,
    "multiprocessing": _PROCESSES,
    "subprocess": _PROCESSES,
    "shutil": _FILES,
    "tempfile": _FILES,
    "glob": _FILES,
    "os.path.getmtime": _FILES,
    "socket": _NETWORK,
    "_socket": _NETWORK,
    "urllib.request": _NETWORK,
    "http.client": _NETWORK,
    "smtplib": _NETWORK,
    "requests": _NETWORK,
    "httpx": _NETWORK,
    "aiohttp": _NETWORK,
    "boto3": _NETWORK,
    "openai": _NETWORK,
    "anthropic": _NETWORK,
    "sqlite3": _DATABASE,
    "_sqlite3": _DATABASE,
    "aiosqlite": _DATABASE,
    "asyncpg": _DATABASE,
    "psycopg": _DATABASE,
    "psycopg2": _DATABASE,
    "redis": _DATABASE,
    "pymongo": _DATABASE,
}
# Methods that hardly anything else is called by.
METHODS: Final = {
    **dict.fromkeys(("read_text", "write_text", "read_bytes", "write_bytes"), _FILES),
    "run_in_executor": _THREADS,
}
MUTATORS: Final = frozenset(
    {
        "append",
        "extend",
        "insert",
        "add",
        "update",
        "setdefault",
        "pop",
        "popitem",
        "remove",
        "discard",
        "clear",
    }
)
SET_METHODS: Final = frozenset({"union", "intersection", "difference", "symmetric_difference", "copy"})


def found_in(name: str, *, has_arguments: bool) -> tuple[str, str] | None:
    """Return the rule that calling `name` breaks, and what to do instead; None: it breaks none."""
    if name == "random.Random" and has_arguments:
        return None  # seeded
    found = _CALLS.get(name)
    if found is None and not has_arguments:
        found = _IF_BARE.get(name)
    while found is None and "." in name:
        name = name.rpartition(".")[0]
        found = _MODULES.get(name)
    return found
