"""A process that has imported everything, and forks one child per line of its standard input.

A child is a real process, of its own pid, killed like any other; it only starts twenty times quicker than an interpreter
does. The zygote itself opens no database, loop or thread. When its standard input closes it kills what is left.

In: `{"tag": 1, "log": "…", "options": {…}}`. Out: `{"tag": 1, "pid": 7}`, later `{"pid": 7, "status": -9}`.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import traceback
from typing import Final

import anyio  # noqa: F401  # imported here once, not in each child
import msgspec

import durable.worker.worker  # noqa: F401
from tests.crash.programs.main import Options, main


class Request(msgspec.Struct):
    tag: int
    log: str
    options: Options


def serve() -> None:
    """Fork and reap until standard input ends."""
    receive, send = os.pipe()
    os.set_blocking(receive, False)
    os.set_blocking(send, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    gc.freeze()
    children: set[int] = set()
    rest = b""
    while True:
        ready, _, _ = select.select([0, receive], [], [])
        if receive in ready:
            drain(receive)
            report(children)
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = msgspec.json.decode(line, type=Request)
                pid = fork(request, [receive, send])
                children.add(pid)
                say({"tag": request.tag, "pid": pid})
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except BlockingIOError:
        pass


def report(children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        say({"pid": pid, "status": os.waitstatus_to_exitcode(status)})


def say(message: dict[str, int]) -> None:
    os.write(1, msgspec.json.encode(message) + b"\n")


def fork(request: Request, inherited: list[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code: int = FAULT
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in inherited:
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = main(request.options)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


FAULT: Final = 70
INTERRUPTED: Final = 130

if __name__ == "__main__":
    serve()
