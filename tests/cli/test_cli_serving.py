"""A worker's process and its keepers: probes, service manager, logs, reload. Waits on conditions, never on time."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from durable_cli import logs
from durable_cli.probes import address_option
from durable_cli.reloading import Sources
from durable_cli.systemd import Manager

from tests.cli.cli_harness import PATIENCE_SECONDS, Child, Cli, wait_until

Start = Callable[..., Child]

TALKATIVE = """
import logging
from durable import Retry, activity, logger, workflow

@activity(retry=Retry(max_attempts=2, initial=0.01))
def act(secret: str) -> str:
    logging.getLogger("shop").warning("acting at postgresql://ann:hunter2@db/shop")
    return secret

@workflow
async def talk(secret: str) -> str:
    logger.warning("thinking")
    return await act(secret)

@workflow
async def fail(secret: str) -> str:
    raise RuntimeError("no stock")
"""

VERSIONED = """
import asyncio
from pathlib import Path
from durable import Retry, activity, activity_info, workflow

@activity(retry=Retry(max_attempts=1))
async def act() -> str:
    Path("began").touch()
    while not Path("proceed").exists():
        await asyncio.sleep(0.01)
    return f"{VERSION} at attempt {activity_info().attempt}"

@workflow
async def flow() -> str:
    return await act()
"""


def ask(where: str, path: str, method: str = "GET") -> tuple[int, Any]:
    """Ask a probe; return the status and the decoded body."""
    connection = http.client.HTTPConnection(where, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data) if data else None
    finally:
        connection.close()


def probed(worker: Child) -> str:
    """Return `host:port` of a worker's probes."""
    worker.wait_for("ready")
    found = re.search(r"health on http://([0-9.]+:\d+)/", "".join(worker.err))
    assert found is not None
    return found[1]


# ─ probes ──


def test_probes_tell_whether_a_worker_lives_and_takes_work(cli: Cli, child: Start, here: Path) -> None:
    """Loopback only; alive to the end, ready until it is asked to stop."""
    cli("start", "app.py:waiting", "started", "proceed", "--id", "w")
    worker = child("worker", "app.py", "--health", ":0")
    where = probed(worker)
    assert where.startswith("127.0.0.1:")
    code, body = ask(where, "/readyz")
    assert (code, body["status"]) == (200, "ok")
    assert sorted(one["task_queue"] for one in body["workers"]) == ["default", "gpu"]
    assert all(one["worker_id"] > 0 for one in body["workers"])
    assert ask(where, "/readyz", "HEAD") == (200, None)
    assert ask(where, "/healthz?full=1")[0] == 200
    assert ask(where, "/") == (404, {"status": "not found", "pages": ["/healthz", "/readyz"]})
    assert ask(where, "/healthz", "POST")[0] == 405
    cli("pause", "--task-queue", "gpu")
    assert ask(where, "/readyz")[1]["status"] == "paused"

    wait_until((here / "started").exists, "the activity")
    worker.process.terminate()
    worker.wait_for("draining")
    assert (ask(where, "/readyz")[0], ask(where, "/healthz")[0]) == (503, 200)
    (here / "proceed").touch()
    assert worker.end().code == 0


def test_a_probe_takes_no_nonsense(child: Start) -> None:
    """What is no request gets an answer or none, and the next asker is served."""
    where = probed(child("worker", "app.py", "--health", "127.0.0.1:0"))
    host, port = where.split(":")
    for words in (
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x00\xff\xfe HTTP\r\n\r\n",
        b"x" * 20_000,
        b"GET / SPDY/9\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as asker:
            asker.sendall(words)
            asker.shutdown(socket.SHUT_WR)
            try:
                assert asker.recv(100)[:12] in (b"", b"HTTP/1.1 400")
            except ConnectionResetError:
                pass
    assert ask(where, "/healthz")[0] == 200


def test_an_address_that_is_taken(cli: Cli, child: Start) -> None:
    """Exit code 2, and it says which."""
    where = probed(child("worker", "app.py", "--health", ":0"))
    ended = child("worker", "app.py", "--health", where).end()
    assert ended.code == 2
    assert f"cannot listen on {where}" in ended.err
    assert cli("worker", "app.py", "--health", "nowhere").code == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8081", ("127.0.0.1", 8081)),
        ("8081", ("127.0.0.1", 8081)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_the_host_is_this_one_unless_it_is_named(text: str, address: tuple[str, int]) -> None:
    """Nobody is reachable from outside by mistake."""
    assert tuple(address_option(text)) == address


# ─ service manager ──


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket on which a service manager listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(PATIENCE_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def heard(manager: socket.socket, word: str) -> str:
    """Return the first message that holds a word."""
    while True:
        message = manager.recv(4096).decode()
        if word in message:
            return message


def test_a_service_manager_is_told(
    child: Start, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY once it claims, signs of life while the loop turns, STOPPING when it drains."""
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    worker = child("worker", "app.py")
    assert heard(manager, "READY=1") == "READY=1\nSTATUS=serving default, gpu"
    for _ in range(3):
        heard(manager, "WATCHDOG=1")
    worker.process.terminate()
    heard(manager, "STOPPING=1")
    assert worker.end().code == 0


def test_a_manager_that_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    """No socket, a wrong one, another process's watchdog."""
    for address in ("", "relative", str(tmp_path / "nowhere"), "@durable-nowhere", "\0x"):
        Manager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"}).ready("here")
    other = Manager({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    assert other._watchdog is None
    mine = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    assert Manager(mine)._watchdog == 1.0


# ─ logs ──


def test_logs_as_json_say_which_run_and_hold_no_payloads(cli: Cli, child: Start, here: Path) -> None:
    """At INFO, from the library, the workflow and the activity; passwords are masked."""
    (here / "talkative.py").write_text(TALKATIVE)
    cli("start", "talkative.py:talk", "canary-1", "--id", "t")
    cli("start", "talkative.py:fail", "canary-2", "--id", "f")
    ended = child("worker", "talkative.py", "--drain", "--log-format", "json", "--log-level", "info").end()

    told = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    assert all(
        (one["v"], one["level"]) in ((1, "info"), (1, "warning")) and one["at"].endswith("+00:00")
        for one in told
    )
    by_message = {one["message"]: one for one in told}
    assert by_message["thinking"]["run_id"] == "t"
    acting = by_message["acting at postgresql://ann:***@db/shop"]
    assert (acting["run_id"], acting["activity"], acting["attempt"]) == ("t", "act", 1)
    assert by_message["run 't' is completed"]["workflow"] == "talk"
    assert by_message["run 'f' is failed"]["run_id"] == "f"
    assert "canary" not in ended.err


def test_logs_as_text_name_the_run_and_mask_passwords() -> None:
    """On the first line, if the message does not; also in tracebacks."""

    def line(message: str, error: Exception | None = None, **fields: object) -> str:
        exc_info = None if error is None else (type(error), error, error.__traceback__)
        record = logging.LogRecord("shop", logging.WARNING, __file__, 1, message, None, exc_info)
        vars(record).update(fields)
        return logs.TextLines().format(record)

    assert line("thinking", run_id="r").endswith("WARNING shop: thinking [run r]")
    assert line("run 'r' is parked", run_id="r").endswith("run 'r' is parked")
    text = line("lost", OSError("cannot reach postgres://u:p%40ss@h:5432/x?y=1"), run_id="r")
    assert text.splitlines()[0].endswith("lost [run r]")
    assert text.splitlines()[-1] == "OSError: cannot reach postgres://u:***@h:5432/x?y=1"
    assert logs.masked("https://example.com/a@b postgres://h/x") == "https://example.com/a@b postgres://h/x"


# ─ draining, and starting anew ──


def versioned(here: Path, version: str) -> None:
    (here / "versioned.py").write_text(f"VERSION = {version!r}\n{VERSIONED}")


def test_what_outlasts_the_grace_is_handed_back_uncharged(cli: Cli, child: Start, here: Path) -> None:
    """The next worker begins it at attempt 1, though it has one only."""
    versioned(here, "old")
    cli("start", "versioned.py:flow", "--id", "v")
    worker = child("worker", "versioned.py", "--grace", "50ms")
    wait_until((here / "began").exists, "the activity")
    worker.process.terminate()
    assert worker.end().code == 0

    (here / "proceed").touch()
    assert child("worker", "versioned.py", "--drain").end().code == 0
    assert cli("result", "v", "--timeout", "0").out == '"old at attempt 1"\n'


def test_sighup_starts_the_process_anew(cli: Cli, child: Start, here: Path, manager: socket.socket) -> None:
    """Same process, today's code; what ran is handed back, uncharged."""
    versioned(here, "old")
    cli("start", "versioned.py:flow", "--id", "v")
    worker = child("worker", "versioned.py", "--grace", "50ms")
    wait_until((here / "began").exists, "the activity")
    versioned(here, "new")
    (here / "began").unlink()
    worker.process.send_signal(signal.SIGHUP)

    worker.wait_for("SIGHUP: draining (0.05s), then starting anew")
    heard(manager, "RELOADING=1\nMONOTONIC_USEC=")
    heard(manager, "READY=1")
    wait_until((here / "began").exists, "the activity, again")
    (here / "proceed").touch()
    assert cli("result", "v", "--timeout", "30s").out == '"new at attempt 1"\n'
    worker.process.terminate()
    assert worker.end().code == 0


def test_a_changed_file_starts_the_process_anew(cli: Cli, child: Start, here: Path) -> None:
    """A file that cannot be imported is told, and waited for."""
    versioned(here, "old")
    (here / "proceed").touch()
    worker = child("worker", "versioned.py", "--reload")
    worker.wait_for("ready")
    (here / "versioned.py").write_text("this is no Python")
    worker.wait_for("versioned.py changed: draining (1s), then starting anew")
    worker.wait_for("error: cannot import")
    versioned(here, "new")
    worker.wait_for("versioned.py changed: starting anew")

    cli("start", "versioned.py:flow", "--id", "v")
    assert cli("result", "v", "--timeout", "30s").out == '"new at attempt 1"\n'
    worker.process.terminate()
    assert worker.end().code == 0


def test_which_files_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python files below the directories; made, changed, removed. Not caches, not installed packages."""
    for name in ("a.py", "shop/b.py", ".venv/c.py", "shop/__pycache__/d.py", "site-packages/e.py", "f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    sources = Sources([tmp_path])
    assert sources.changed() == []
    for name in (".venv/c.py", "shop/__pycache__/d.py", "site-packages/e.py", "f.txt"):
        (tmp_path / name).write_text("x = 22\n")
    assert sources.changed() == []
    (tmp_path / "a.py").write_text("x = 22\n")
    (tmp_path / "shop" / "b.py").unlink()
    (tmp_path / "shop" / "g.py").touch()
    assert [path.name for path in sources.changed()] == ["a.py", "b.py", "g.py"]
    assert sources.changed() == []


def test_reload_needs_a_process_of_its_own(cli: Cli) -> None:
    """Somebody else's process is not started anew."""
    assert sys.argv[0]
    ended = cli("worker", "app.py", "--reload")
    assert ended.code == 2
    assert "--reload" in ended.err


# ─ crashes ──


def test_a_pause_outlives_the_worker_that_obeyed_it(cli: Cli, child: Start, here: Path) -> None:
    """Killed in the middle of an activity: the run is taken back and stays held, and goes on when it is resumed."""
    cli("start", "app.py:waiting", "started", "proceed", "--id", "w")
    worker = child("worker", "app.py:waiting")
    wait_until((here / "started").exists, "the activity")
    cli("pause", "w", "--reason", "ask ann")
    worker.process.kill()
    worker.process.wait(PATIENCE_SECONDS)

    (here / "started").unlink()
    (here / "proceed").touch()
    heir = child("worker", "app.py:waiting")
    heir.wait_for("recovered 1 run")
    cli("start", "app.py:waiting", "other", "proceed", "--id", "other")
    assert cli("result", "other", "--timeout", "30s").out == '"done"\n'
    assert "reason\tpaused" in cli("why", "w").out
    assert not (here / "started").exists()
    assert cli("resume", "w").code == 0
    assert cli("result", "w", "--timeout", "30s").out == '"done"\n'


def test_a_retried_run_outlives_its_worker(cli: Cli, child: Start, here: Path) -> None:
    """Killed in the middle of the next generation: what was kept is still not done again."""
    (here / "orders.py").write_text(
        "from pathlib import Path\n"
        "import asyncio\n"
        "from durable import NonRetryableError, activity, workflow\n"
        "@activity\n"
        "async def charge() -> str:\n"
        "    with open('charges', 'a') as file:\n"
        "        file.write('charged\\n')\n"
        "    return 'charged'\n"
        "@activity\n"
        "async def ship() -> str:\n"
        "    if not Path('stock').exists():\n"
        "        raise NonRetryableError('no stock')\n"
        "    Path('shipping').touch()\n"
        "    while not Path('shipped').exists():\n"
        "        await asyncio.sleep(0.01)\n"
        "    return 'shipped'\n"
        "@workflow\n"
        "async def order() -> list[str]:\n"
        "    return [await charge(), await ship()]\n"
    )
    assert cli("run", "orders.py:order", "--id", "o").code == 1
    (here / "stock").touch()
    assert cli("retry", "o").code == 0
    worker = child("worker", "orders.py")
    wait_until((here / "shipping").exists, "the second activity")
    worker.process.kill()
    worker.process.wait(PATIENCE_SECONDS)

    (here / "shipped").touch()
    assert child("worker", "orders.py", "--drain").end().code == 0
    assert cli("result", "o", "--timeout", "0").out == '["charged","shipped"]\n'
    assert (here / "charges").read_text() == "charged\n"
