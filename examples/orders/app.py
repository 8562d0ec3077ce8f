"""The workflow of one order: reserve, charge, ask a person if it is large, ship, write a receipt.

Served by any number of workers, all on one database:

    ORDERS_DIR=/tmp/orders durable worker examples/orders/app.py --db sqlite:////tmp/orders/orders.db

ORDERS_DIR is the outside world of this example: the stock, the payment service's port, the receipts. Every activity
here may run more than once (a worker can die after the effect and before it is recorded), so each one is written
such that twice is no different from once, or says where it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Literal

from durable import NonRetryableError, Retry, Signal, activity, activity_info, workflow

WORLD = Path(os.environ.get("ORDERS_DIR", "."))
LARGE_CENTS = 50_000

Outcome = Literal["shipped", "refused", "rejected"]

approved = Signal("approved", bool)


class CardDeclinedError(NonRetryableError):
    """The bank said no, and will say no again."""


# An attempt that died with its worker counts as failed, and workers get killed for sport here. For the payment there is a
# better reason: not knowing whether we charged is the one state we cannot leave an order in. So no limit (max_attempts=0).
# It is safe, because every attempt carries the same idempotency key.
PERSISTENT = Retry(max_attempts=0, initial=0.1, maximum=2.0, jitter=0.5)


@activity(retry=PERSISTENT)
def reserve_stock(order_id: str, item: str) -> None:
    (WORLD / "stock").mkdir(exist_ok=True)
    (WORLD / "stock" / order_id).write_text(item)  # one file per order: reserving twice reserves once


@activity(retry=PERSISTENT)
def release_stock(order_id: str) -> None:
    (WORLD / "stock" / order_id).unlink(missing_ok=True)


@activity(retry=PERSISTENT, timeout=5)
def charge(order_id: str, cents: int, card: str) -> str:
    return ask_payments("/charges", order_id, cents, card)


@activity(retry=PERSISTENT, timeout=5)
def refund(order_id: str, cents: int, card: str) -> str:
    return ask_payments("/refunds", order_id, cents, card)


def ask_payments(path: str, order_id: str, cents: int, card: str) -> str:
    """Return the payment's id. Blocking: a plain `def` activity runs in a thread."""
    port = (WORLD / "payments.port").read_text()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=json.dumps({"order": order_id, "cents": cents, "card": card}).encode(),
        headers={"Idempotency-Key": activity_info().idempotency_key},
    )
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return str(json.load(answer)["payment"])
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 402:
                raise CardDeclinedError(json.load(error)["error"]) from None
            raise  # 500 and 503: tried again


@activity(retry=PERSISTENT)
async def print_label(order_id: str) -> str:
    """Not idempotent on purpose: after a crash there may be two labels for one parcel, and labels.txt shows it."""
    await asyncio.sleep(0.05)
    with (WORLD / "labels.txt").open("a") as labels:
        labels.write(f"{order_id}\n")
    return f"parcel-{order_id}"


@activity(retry=PERSISTENT)
def write_receipt(order_id: str, payment: str, parcel: str) -> None:
    (WORLD / "receipts").mkdir(exist_ok=True)
    receipt = WORLD / "receipts" / f"{order_id}.json"
    draft = receipt.with_suffix(f".{activity_info().attempt}.tmp")
    draft.write_text(json.dumps({"order": order_id, "payment": payment, "parcel": parcel}))
    draft.replace(receipt)  # atomic: a receipt is there whole or not at all


@workflow(timeout=86_400)
async def order(order_id: str, item: str, cents: int, card: str) -> Outcome:
    await reserve_stock(order_id, item)
    try:
        payment = await charge(order_id, cents, card)
    except CardDeclinedError:
        await release_stock(order_id)
        return "refused"

    if cents >= LARGE_CENTS and not await approved.wait(timeout=3600, default=False):
        await refund(order_id, cents, card)
        await release_stock(order_id)
        return "rejected"

    parcel = await print_label(order_id)
    await write_receipt(order_id, payment, parcel)
    return "shipped"
