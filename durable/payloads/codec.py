"""The codec hook: bytes -> bytes, over every payload on its way into a database, and back.

What a codec has made is stored in an *envelope*: a mark that no JSON begins with, the codec's name and key id in clear (so
that people without the key are told which one it takes), and the codec's bytes. A codec is told the *place* of a payload:
a text that is the same for whoever reads it there, and different for every other payload. One that authenticates it makes
it impossible to move a payload to another place.

An envelope that could not be opened is handed on as a *stuck* one, which says why. Whoever then decodes it fails as for
any damaged payload: that one run is parked, and the reason is this one. Knows nothing of stores, keys or ciphers.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Final, NamedTuple, Protocol

from durable.errors import CodecError, DefinitionError

MARK: Final = b"\xd5\x9b"  # no JSON text, and no UTF-8, begins so
_FORMAT: Final = 1
_STUCK: Final = 0  # in place of the format, as is
_SIZE: Final = 2
_HEAD: Final = struct.Struct(">2sBIIBB")  # mark, format, epoch, generation, lengths of name and key id
_TEXT_MARK: Final = "durable-sealed:"
_NAME_BYTES_MAX: Final = 64


class PayloadCodec(Protocol):
    """Turns payloads into other bytes and back, e.g. to encrypt or to compress them. Synchronous, quick, without I/O.

    `name` and `key_id` (which may be empty) are stored in clear beside what `encode` returns. `accepts_plain`: whether
    payloads may be read that were stored without any codec, as they are after one was introduced.
    """

    @property
    def name(self) -> str: ...

    @property
    def key_id(self) -> str: ...

    @property
    def accepts_plain(self) -> bool: ...

    def encode(self, data: bytes, place: bytes) -> bytes:
        """Return the bytes to store. `place` need not be kept: `decode` is told it again."""
        ...

    def decode(self, data: bytes, place: bytes, key_id: str) -> bytes:
        """Return what `encode` was given; raise `CodecError` with a reason that holds no content."""
        ...


class Envelope(NamedTuple):
    """A stored payload taken apart. `origin` is the epoch and the generation it was written in (0, 0: it has none)."""

    name: str
    key_id: str
    origin: tuple[int, int]
    head: bytes
    body: bytes


def seal(codec: PayloadCodec, data: bytes, place: str, origin: tuple[int, int] = (0, 0)) -> bytes:
    """Return the envelope to store."""
    name, key_id = codec.name.encode(), codec.key_id.encode()
    head = _HEAD.pack(MARK, _FORMAT, *origin, len(name), len(key_id)) + name + key_id
    return head + codec.encode(data, head + place.encode())


def unseal(codec: PayloadCodec, envelope: Envelope, place: str) -> bytes:
    """Return what was sealed; raise `CodecError`."""
    if envelope.name != codec.name:
        raise CodecError(f"it is {_label(envelope)}, and the codec at hand is {codec.name!r}")
    return codec.decode(envelope.body, envelope.head + place.encode(), envelope.key_id)


def open_envelope(data: bytes) -> Envelope | None:
    """Return the parts of an envelope; None for a payload without one. Raises `CodecError` for a damaged envelope."""
    if not data.startswith(MARK):
        return None
    try:
        _, form, epoch, generation, name, key_id = _HEAD.unpack_from(data)
        head = data[: _HEAD.size + name + key_id]
        text = head[_HEAD.size :].decode()
    except (struct.error, UnicodeDecodeError):
        raise CodecError("its envelope is damaged") from None
    if form != _FORMAT or len(head) != _HEAD.size + name + key_id or not text.isprintable():
        raise CodecError("its envelope is damaged, or of a later version of this library")
    return Envelope(text[:name], text[name:], (epoch, generation), head, data[len(head) :])


def stuck(why: str) -> bytes:
    """Return the bytes that stand for a payload which could not be opened. Never stored."""
    return MARK + bytes((_STUCK,)) + why.encode()


def size_note(size: int) -> bytes:
    """Return the bytes that stand where a large payload was left out: readers who want it get it, lists get the note."""
    return MARK + bytes((_SIZE,)) + str(size).encode()


def is_sealed(data: bytes) -> bool:
    """Whether these bytes are an envelope, or stand for a payload that is not at hand."""
    return data.startswith(MARK)


def is_size_note(data: bytes) -> bool:
    return data[: len(MARK) + 1] == MARK + bytes((_SIZE,))


def sealed_fault(data: bytes | memoryview) -> str | None:
    """Say why a payload cannot be decoded if it is still sealed; None if it is not. Names no content."""
    data = bytes(data)
    if not data.startswith(MARK):
        return None
    if data[len(MARK) : len(MARK) + 1] == bytes((_STUCK,)):
        return data[len(MARK) + 1 :].decode("utf-8", "replace")
    if is_size_note(data):
        return f"its {_size_of(data)} are kept in a row of their own, which is missing"
    try:
        envelope = open_envelope(data)
    except CodecError as error:
        return str(error)
    assert envelope is not None
    return f"it is {_label(envelope)}, and no codec was given to read it"


def sealed_label(data: bytes | memoryview) -> str | None:
    """Return `encrypted (key k1)` for a payload that is still sealed: what people see of it."""
    data = bytes(data[: _HEAD.size + 2 * 255])
    if not data.startswith(MARK):
        return None
    if is_size_note(data):
        return f"{_size_of(data)}, left out"
    try:
        envelope = open_envelope(data)
    except CodecError:
        return "unreadable" if sealed_fault(data) is None else f"unreadable: {sealed_fault(data)}"
    assert envelope is not None
    return _label(envelope)


def seal_text(codec: PayloadCodec, text: str, place: str) -> str:
    """Return a text to store where only text can be."""
    return _TEXT_MARK + base64.b64encode(seal(codec, text.encode(), place)).decode()


def envelope_in(text: str) -> bytes | None:
    """Return the envelope within a text made by `seal_text`; None for any other text."""
    if not text.startswith(_TEXT_MARK):
        return None
    try:
        data = base64.b64decode(text.removeprefix(_TEXT_MARK), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if data.startswith(MARK) else None


def shown_text(text: str | None) -> str | None:
    """Return a stored text for people: what it says, or `encrypted (key k1)`."""
    data = None if text is None else envelope_in(text)
    return text if data is None else sealed_label(data)


def check_codec(codec: PayloadCodec) -> None:
    """Raise `DefinitionError` for what is no codec, or one whose name or key id cannot be stored."""
    for attribute in ("encode", "decode"):
        if not callable(getattr(codec, attribute, None)):
            raise DefinitionError(
                f"a codec has name, key_id, accepts_plain, encode and decode; {codec!r} has not"
            )
    for text in (getattr(codec, "name", None), getattr(codec, "key_id", None)):
        if not isinstance(text, str) or not text.isprintable() or len(text.encode()) > _NAME_BYTES_MAX:
            raise DefinitionError(
                f"a codec's name and key id are printable texts of at most {_NAME_BYTES_MAX} bytes, not {text!r}"
            )
    if not codec.name or not isinstance(getattr(codec, "accepts_plain", None), bool):
        raise DefinitionError(f"a codec has a name, and says whether it accepts_plain; {codec!r} does not")


def _size_of(note: bytes) -> str:
    digits = note[len(MARK) + 1 :]
    return size_text(int(digits)) if digits.isdigit() and len(digits) < 20 else "bytes"


def size_text(size: int) -> str:
    """Return `512 bytes`, `64.0 KiB` or `2.1 MiB`."""
    if size < 1024:
        return f"{size} bytes"
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"


def _label(envelope: Envelope) -> str:
    if envelope.key_id:
        return f"encrypted (key {envelope.key_id})"
    return f"encoded ({envelope.name})"
