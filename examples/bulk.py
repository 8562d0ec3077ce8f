"""A bulk operation that is killed in the middle and goes on: `python bulk.py`, Ctrl-C, and again. No invoice is charged twice.

python bulk.py 200
"""

import asyncio
import sys

from durable import BulkOperation, BulkOperationConfig, NonRetryableError


async def charge(invoice: int) -> int:
    """Charge one invoice. Each has an idempotency key of its own: `durable.activity_info().idempotency_key`."""
    await asyncio.sleep(0.01)
    if invoice % 50 == 49:
        raise NonRetryableError(f"the card of invoice {invoice} was declined")
    return 100 + invoice


def progress(done: int, total: int, message: str) -> None:
    print(f"\r{message}", end="", flush=True)


async def main(count: int) -> None:
    charging = BulkOperation(
        charge, BulkOperationConfig(batch_size=20, max_concurrency=20), on_progress=progress
    )
    result = (await charging.execute(range(count), run_id=f"charge-{count}")).unwrap()

    print(f"\ncharged {sum(result.results)} in {result.succeeded} of {result.total} invoices")
    for error in result.errors:
        print(f"  {error.item}: {error.error}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
