"""What the library may do to the machine it runs on: who imports by name, starts programs, listens, writes files. Reads syntax trees.

`test_seams.py` has the rest: nothing is unpickled or evaluated, no statement is put together from values.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]

# (file, call) -> why what is named there is no data.
IMPORTS: Final = {
    "durable/__init__.py": "its own modules, from a table of constants",
    "cli/durable_cli/main.py": "its own modules, from a table of constants",
    "cli/durable_cli/targets.py": "the module that whoever types the command names",
}
# Who may start programs, and who may open sockets.
PROGRAMS: Final = {
    "cli/durable_cli/check.py": "replays under other hash seeds: itself, in processes of their own",
    "cli/durable_cli/demo.py": "the demonstration runs its own script",
    "cli/durable_cli/serving.py": "a worker restarts itself under the database's hash seed",
}
SOCKETS: Final = {
    "durable/store/sqlite/wakeups.py": "a socket in the side directory, which is this user's alone",
    "cli/durable_cli/systemd.py": "tells the supervisor that started the process; listens to nobody",
    "cli/durable_cli/probes.py": "health for a supervisor, at the address that was given; 127.0.0.1 by default",
}
STARTS_PROGRAMS: Final = (
    "subprocess",
    "os.system",
    "os.popen",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "pty.",
)
OPENS_SOCKETS: Final = (
    "socket.socket",
    "socket.create_server",
    "asyncio.start_server",
    "asyncio.start_unix_server",
)
NEVER: Final = ("yaml", "shelve", "marshal", "pickle", "code.interact", "codeop", "runpy", "webbrowser", "urllib.request", "http.client", "ftplib", "telnetlib", "xmlrpc", "smtplib")  # fmt: skip


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted([*(ROOT / "durable").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def names_used(tree: ast.Module) -> Iterator[str]:
    """Return the dotted names of what is imported and what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def users(*, of: tuple[str, ...], by_end: bool = False) -> set[str]:
    found = set()
    for where, tree in sources():
        for name in names_used(tree):
            if name.rpartition(".")[2] in of if by_end else name.startswith(of):
                found.add(where)
    return found


def test_modules_are_imported_by_name_where_no_data_names_them() -> None:
    """A row of the database can never say what is imported."""
    called = users(of=("import_module", "__import__", "spec_from_file_location", "exec_module"), by_end=True)
    assert called == set(IMPORTS)


def test_programs_are_started_by_the_command_line_only() -> None:
    """And only itself."""
    assert users(of=STARTS_PROGRAMS) == set(PROGRAMS)


def test_nobody_listens_but_where_it_is_written_down() -> None:
    """On a socket in a private directory, or at an address that somebody typed."""
    assert users(of=OPENS_SOCKETS) == set(SOCKETS)


def test_nothing_here_reaches_out_or_executes() -> None:
    """No client of the network but the database's; no format that can hold code."""
    assert users(of=NEVER) == set()


@pytest.mark.parametrize(
    "text", ["os.chmod(path, 0o777)", "os.open(path, flags, 0o644)", "path.mkdir(mode=0o755)"]
)
def test_the_check_of_modes_sees_what_it_should(text: str) -> None:
    assert wide_modes(ast.parse(text))


def test_files_and_directories_are_made_for_their_owner_only() -> None:
    """Every mode that is written down leaves out the group and the others."""
    assert [where for where, tree in sources() if wide_modes(tree)] == []


def wide_modes(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in (
            "open",
            "mkdir",
            "chmod",
        ):
            continue
        for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(value, ast.Constant) and type(value.value) is int and value.value & 0o077:
                found.append(ast.unparse(node))
    return found
