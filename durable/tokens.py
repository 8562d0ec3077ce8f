"""Task tokens: the address of one attempt of one activity, as text that anybody may carry around.

A token names the run, its epoch and generation, the operation and the attempt, so that it is good for exactly one attempt: no other
run that ever has the same id, one that is started after a deletion included, has the same epoch. It is signed with a fact only the
database knows: nobody makes one up. Whoever holds it may complete the attempt, so treat it as a password.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Final

import msgspec

from durable.errors import ArgumentsError

SIGNATURE_BYTES: Final = 12


class TaskToken(msgspec.Struct, frozen=True, array_like=True):
    run_id: str
    epoch: int
    generation: int
    op: int
    attempt: int


def token_text(token: TaskToken, secret: str) -> str:
    """Return the token as text: letters, digits, `-` and `_`."""
    data = msgspec.json.encode(token)
    return base64.urlsafe_b64encode(_signature(data, secret) + data).decode().rstrip("=")


def parse_token(text: str, secret: str) -> TaskToken:
    """Return what a token names; raise `ArgumentsError` for text that is none, or one of another database."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        signature, data = raw[:SIGNATURE_BYTES], raw[SIGNATURE_BYTES:]
        if hmac.compare_digest(signature, _signature(data, secret)):
            return msgspec.json.decode(data, type=TaskToken)
    except (binascii.Error, ValueError, TypeError, msgspec.DecodeError):
        pass
    raise ArgumentsError(
        "this is no task token of this database: pass what activity_info().task_token returned"
    )


def _signature(data: bytes, secret: str) -> bytes:
    return hmac.digest(secret.encode(), data, "sha256")[:SIGNATURE_BYTES]
