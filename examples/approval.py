"""Wait for a person, but not for ever: a signal with a timeout, and a durable sleep.

    python examples/approval.py

Two holiday requests. One is answered, the other is not and falls back to the default. Both waits are rows in the
database: with hours instead of seconds, and a worker instead of this script, no process has to stay up for them.
"""

from __future__ import annotations

import asyncio

from durable import Signal, activity, sleep, workflow

answer = Signal("answer", bool)


@activity
async def tell(person: str, text: str) -> None:
    print(f"to {person}: {text}")


@workflow(timeout=86_400)
async def holiday(person: str, days: int, patience: float) -> str:
    await tell("the boss", f"{person} asks for {days} days off")
    granted = await answer.wait(timeout=patience, default=None)
    if granted is None:
        await tell("the boss", f"no answer about {person}: taken as a yes")
    elif not granted:
        await tell(person, "not this time")
        return "refused"
    await sleep(0.5)  # a durable timer: asyncio.sleep is one, too
    await tell(person, f"enjoy your {days} days")
    return "granted" if granted else "granted by silence"


async def main() -> None:
    asked = await holiday.start("Ada", 5, 60.0)
    ignored = await holiday.start("Bob", 2, 1.0)

    await asked.signal(answer, True)  # or from a shell: durable signal RUN answer true

    print("Ada:", await asked.result())
    print("Bob:", await ignored.result())


if __name__ == "__main__":
    asyncio.run(main())
