"""The program of `durable demo crash`: an order in five steps, each with an effect outside of the database.

An effect is a line in the file DURABLE_DEMO_EFFECTS: step, idempotency key, attempt. The database cannot take such a line
back, so the file proves how often each step really ran.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from durable import activity, activity_info, workflow

EFFECTS_VARIABLE: Final = "DURABLE_DEMO_EFFECTS"
SLOW_SECONDS: Final = 60.0  # the first attempt of a slow step: long enough to be killed in


def leave_effect() -> int:
    """Append this attempt to the effects file, on disk before it returns; return the attempt's number."""
    info = activity_info()
    with open(os.environ[EFFECTS_VARIABLE], "a", encoding="utf-8") as effects:
        effects.write(f"{info.activity}\t{info.idempotency_key}\t{info.attempt}\n")
        effects.flush()
        os.fsync(effects.fileno())
    return info.attempt


@activity
def check_stock(order: str) -> bool:
    leave_effect()
    return True


@activity
def charge_card(order: str, cents: int) -> str:
    leave_effect()
    return f"payment-of-{order}"


@activity
async def book_courier(order: str) -> str:
    if leave_effect() == 1:
        await asyncio.sleep(SLOW_SECONDS)  # the courier's phone rings and rings
    return f"courier-for-{order}"


@activity
def print_label(order: str, courier: str) -> str:
    leave_effect()
    return f"label-{order}"


@activity
def send_mail(order: str, text: str) -> None:
    leave_effect()


@workflow(name="demo_order")
async def demo_order(order: str, cents: int) -> str:
    """Sell something: check, charge, book, print, tell."""
    await check_stock(order)
    payment = await charge_card(order, cents)
    courier = await book_courier(order)
    label = await print_label(order, courier)
    await send_mail(order, f"on its way: {label}, {payment}")
    return label
