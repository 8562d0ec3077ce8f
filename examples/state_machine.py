"""A state machine that is kept in the database: run it several times, and it goes on from where it was.

python state_machine.py approve
python state_machine.py ship
"""

import asyncio
import sys

from durable import StateError, StateMachine


class Order(StateMachine):
    """An order; whoever uses the same id, in whatever process, uses the same machine."""

    def __init__(self, order_id: str) -> None:
        super().__init__(
            initial="pending",
            transitions={
                "pending": {"approve": "approved", "cancel": "cancelled"},
                "approved": {"ship": "shipped", "cancel": "cancelled"},
                "shipped": {},
                "cancelled": {},
            },
            machine_id=f"order-{order_id}",
            on_enter={"shipped": self.send_invoice},
        )

    async def send_invoice(self) -> None:
        """Called at least once: again by whoever comes next, if we die before it is on record that it has run."""
        print("(sending the invoice)")


async def main(event: str) -> None:
    order = Order("7")
    await order.recover()
    try:
        print(await order.transition(event))
    except StateError as error:
        print(f"no: {error}")
    for row in await order.history():
        print(f"  {row.from_state} -- {row.event} --> {row.to_state}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "approve"))
