"""A codec that knows every payload's place: what is opened anywhere but where it was sealed is an error, and its run is parked."""

from __future__ import annotations

import hashlib
from typing import Final

from durable import CodecError
from durable.payloads.codec import is_sealed, open_envelope

_DIGEST: Final = 8
_TABLE: Final = bytes(255 - byte for byte in range(256))  # its own inverse


class PlaceCodec:
    """Seals by turning bits over; the place goes with it as a digest. Quick, and the same in every run of a seed."""

    name = "turned"
    key_id = "k"
    accepts_plain = False

    def encode(self, data: bytes, place: bytes) -> bytes:
        return _digest(place) + data.translate(_TABLE)

    def decode(self, data: bytes, place: bytes, key_id: str) -> bytes:
        if data[:_DIGEST] != _digest(place):
            raise CodecError("it was sealed for another place")
        return opened(data)


class BlindCodec(PlaceCodec):
    """Of a process that was not given the key to what others have sealed."""

    def decode(self, data: bytes, place: bytes, key_id: str) -> bytes:
        raise CodecError("the key is not here")


def opened(body: bytes) -> bytes:
    return body[_DIGEST:].translate(_TABLE)


def looked_at(data: bytes) -> bytes:
    """Return what a payload holds, wherever it is kept; one that is not sealed is what it is."""
    envelope = open_envelope(data) if is_sealed(data) else None
    return data if envelope is None else opened(envelope.body)


def _digest(place: bytes) -> bytes:
    return hashlib.sha256(place).digest()[:_DIGEST]
