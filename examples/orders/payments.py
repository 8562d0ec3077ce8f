"""A payment service of the unpleasant kind, for the orders example: slow, flaky, and honest about its ledger.

    python examples/orders/payments.py DIR [--seed N]

Own process, standard library only; it knows nothing of `durable`. It listens on a free port of 127.0.0.1 and writes
the port to DIR/payments.port. Every charge and refund is one fsynced line of DIR/ledger.csv: key, kind, order, cents.

It keeps the one promise that exactly-once effects need from the receiver: a request whose Idempotency-Key it has
seen is answered from the ledger and charges nothing. Otherwise, by seeded chance, it is late, fails before it charges (500, 503),
or, worse, fails or hangs up *after* it charged. A declined card is refused with 402, always.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Ledger:
    """Append-only; one line per effect, on disk before anybody is told."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._keys: set[str] = set()
        if path.exists():
            with path.open(newline="") as lines:
                self._keys = {key for key, _, _, _ in csv.reader(lines)}
        self._file = path.open("a", newline="")

    def book(self, key: str, kind: str, order: str, cents: int) -> None:
        """Write one effect, unless its key is there already."""
        with self._lock:
            if key in self._keys:
                return
            csv.writer(self._file).writerow([key, kind, order, cents])
            self._file.flush()
            os.fsync(self._file.fileno())
            self._keys.add(key)


class Faults:
    """What goes wrong with the n-th request for a key: the same for the same seed, whatever the threads do."""

    KINDS = ("none", "slow", "500 before", "503 before", "500 after", "hang up after")
    WEIGHTS = (70, 10, 5, 5, 5, 5)

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._asked: dict[str, int] = {}

    def next(self, key: str) -> str:
        with self._lock:
            n = self._asked[key] = self._asked.get(key, 0) + 1
        return random.Random(f"{self._seed}/{key}/{n}").choices(self.KINDS, self.WEIGHTS)[0]


class Payments(BaseHTTPRequestHandler):
    """POST /charges and /refunds, {"order": …, "cents": …, "card": …} -> {"payment": …}."""

    ledger: Ledger
    faults: Faults

    def do_POST(self) -> None:
        key = self.headers.get("Idempotency-Key", "")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = {"/charges": "charge", "/refunds": "refund"}.get(self.path)
        if kind is None or not key:
            return self.answer(400, {"error": "POST /charges or /refunds with an Idempotency-Key"})
        if body["card"] == "declined":
            return self.answer(402, {"error": f"the card of {body['order']} was declined"})

        fault = self.faults.next(f"{kind}/{body['order']}")
        if fault == "slow":
            time.sleep(0.3)
        if fault.endswith("before"):
            return self.answer(int(fault[:3]), {"error": "try again"})
        self.ledger.book(key, kind, body["order"], body["cents"])
        if fault == "500 after":
            return self.answer(500, {"error": "something went wrong (it did not: you were charged)"})
        if fault == "hang up after":
            self.close_connection = True
            return None
        return self.answer(200, {"payment": f"pay-{key}"})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a killed worker's broken connection is no news here."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of this server get killed in the middle of requests."""


def main() -> None:
    parser = argparse.ArgumentParser(description="the payment service of the orders example")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    Payments.ledger = Ledger(options.dir / "ledger.csv")
    Payments.faults = Faults(options.seed)
    with Server(("127.0.0.1", 0), Payments) as server:
        port_file = options.dir / "payments.port"
        unfinished = port_file.with_suffix(".tmp")
        unfinished.write_text(str(server.server_port))
        unfinished.replace(port_file)
        server.serve_forever()


if __name__ == "__main__":
    main()
