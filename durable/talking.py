"""Messages to runs, from people and other programs: signals, answers, the ends of activities that are completed from outside.

Returned means stored: the run will read it once, whatever dies next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from durable import failures
from durable.connection import Connection, judge_size
from durable.definitions import check_run_id, check_text
from durable.describing import read_story
from durable.errors import ActivityClosedError, ArgumentsError, UndecodableError
from durable.journal.answering import answered_already, choose_ask
from durable.journal.asks import answer_id
from durable.messages import Sent, Signal
from durable.payloads import ValueType
from durable.seams import pause
from durable.store.records import ActivityAnswer, Outgoing
from durable.tokens import TaskToken, parse_token
from durable.workflow_classes import marked_signal

TOKEN_SECONDS: Final = 1.0  # a token may be quicker than the note that it was given out
TOKEN_LOOK_SECONDS: Final = 0.02
_any: Final = ValueType.of(Any)


async def send_signal(
    connection: Connection, run_id: str, signal: Sent, *, value: object, id: str | None
) -> None:
    """See `RunHandle.signal`. The inbox row and the count on the run's row are one transaction."""
    name, value_type = _named_signal(signal)
    if value_type is None:
        data = _any.encode(value)
    else:
        data = value_type.encode(value)
        try:
            value_type.decode(data)
        except UndecodableError as error:
            raise ArgumentsError(str(error.naming(f"signal {name!r} takes another type"))) from error
    check_text(name, "a signal's name")
    if id is not None and id != "":
        check_text(id, "a signal's id")
    judge_size(connection, data, what=f"the signal {name!r}", run_id=run_id)
    message = Outgoing(
        run_id=check_run_id(run_id),
        kind="signal",
        name=name,
        data=data,
        message_id=id or connection.random.request_id(),
        unread_max=connection.limits.unread_messages,
    )
    await connection.store.send_message(message, connection.clock.now_us())


def _named_signal(signal: Sent) -> tuple[str, ValueType | None]:
    """Return the name of a signal and, if it is known, the type of its values."""
    if isinstance(signal, str):
        return signal, None
    if isinstance(signal, Signal):
        return signal.name, signal.value_type
    method = marked_signal(signal)
    if method is None:
        raise ArgumentsError(
            f"a signal is named by text, a Signal, or a method that is marked with @workflow.signal, not {signal!r}"
        )
    return method.name, method.value_type


async def send_answer(
    connection: Connection, run_id: str, value: object, *, name: str | None, ask: str | None
) -> None:
    """See `Client.answer`. The message's id is the question's: of two answers that race, the store keeps one."""
    data = _any.encode(value)
    judge_size(connection, data, what="the answer", run_id=run_id)
    store = connection.store
    record = await store.get_run(check_run_id(run_id))
    _, story, fault = await read_story(store, record)
    if story is None:
        raise UndecodableError(f"the journal of run {run_id!r} cannot be read: {fault}")
    is_open = not record.status.is_closed
    asks = [line for line in story.open if line.ask and is_open]
    chosen = choose_ask(run_id, record.status, asks, name=name, ask=ask)
    message = Outgoing(
        run_id=run_id, kind="signal", name=chosen.name, data=data, message_id=answer_id(chosen.ask)
    )
    outcome = await store.send_message(message, connection.clock.now_us())
    if outcome.duplicate:
        raise answered_already(run_id, record.status, chosen.name)


async def complete_activity(connection: Connection, token: str, value: object) -> bool:
    """See `Client.complete_activity`."""
    return await _answer(connection, token, "completed", data=_any.encode(value))


async def fail_activity(connection: Connection, token: str, error: BaseException | str) -> bool:
    """See `Client.fail_activity`."""
    failure = failures.record(error if isinstance(error, BaseException) else RuntimeError(error))
    return await _answer(connection, token, "failed", data=msgspec.json.encode(failure))


async def heartbeat_activity(connection: Connection, token: str, details: Sequence[object]) -> None:
    """See `Client.heartbeat_activity`."""
    if not await _answer(connection, token, "heartbeat", data=_any.encode(list(details))):
        named = await _named(connection, token)
        raise ActivityClosedError(named.run_id, named.attempt)


async def _answer(
    connection: Connection, token: str, kind: Literal["completed", "failed", "heartbeat"], *, data: bytes
) -> bool:
    """Hand an answer to the store; wait a little for an attempt whose note has not been written yet."""
    store, clock = connection.store, connection.clock
    named = await _named(connection, token)
    judge_size(connection, data, what="the answer of an activity", run_id=named.run_id)
    answer = ActivityAnswer(
        run_id=named.run_id,
        epoch=named.epoch,
        generation=named.generation,
        op=named.op,
        attempt=named.attempt,
        kind=kind,
        data=data,
    )
    deadline = clock.monotonic() + TOKEN_SECONDS
    while (verdict := await store.answer_activity(answer, clock.now_us())) == "closed":
        if clock.monotonic() >= deadline:
            raise ActivityClosedError(named.run_id, named.attempt)
        await pause(TOKEN_LOOK_SECONDS)
    return verdict == "taken"


async def _named(connection: Connection, token: str) -> TaskToken:
    return parse_token(token, await connection.store.read_meta("database_id") or "")
