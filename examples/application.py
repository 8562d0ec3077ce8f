"""Parts of a program, wired by an application: an event starts the workflows that subscribed to it, once per event id."""

import asyncio

import durable
from durable import Application, EventBusProtocol, WorkflowModule, activity, workflow


@activity
async def send(what: str, order: str) -> str:
    print(f"({what} for {order}, for real)")
    return f"{what} for {order}"


@workflow
async def ship(payload: dict[str, str]) -> str:
    return await send("parcel", payload["order"])


@workflow
async def thank(payload: dict[str, str]) -> str:
    return await send("thank-you note", payload["order"])


async def main() -> None:
    async with Application.boot("shop", modules=[WorkflowModule.configure()]) as app:
        bus = await app.container.resolve(EventBusProtocol)  # type: ignore[type-abstract]  # a Protocol stands for its one object
        bus.subscribe("order.paid", ship)
        bus.subscribe("order.paid", thank)
        for _ in range(2):  # a webhook that is delivered twice
            for run_id in await bus.publish("order.paid", {"order": "o-7"}, id="o-7"):
                print(run_id, "->", await (await durable.get_handle(run_id)).result())


if __name__ == "__main__":
    asyncio.run(main())
