"""Envelopes, and encryption: what opens where, and what everybody else is told."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import pytest

from durable import CodecError, DefinitionError, Encryption
from durable.payloads.codec import (
    Envelope,
    check_codec,
    envelope_in,
    open_envelope,
    seal,
    seal_text,
    sealed_fault,
    sealed_label,
    shown_text,
    stuck,
    unseal,
)

KEY, OTHER = bytes(range(32)), bytes(32)


class Compression:
    """A codec without keys."""

    name = "zlib"
    key_id = ""
    accepts_plain = True

    def encode(self, data: bytes, place: bytes) -> bytes:
        return zlib.compress(data)

    def decode(self, data: bytes, place: bytes, key_id: str) -> bytes:
        return zlib.decompress(data)


def opened(data: bytes) -> Envelope:
    envelope = open_envelope(data)
    assert envelope is not None
    return envelope


def test_what_is_sealed_opens_in_its_place() -> None:
    """Equal payloads become different bytes, none of which are theirs."""
    codec = Encryption({"k1": KEY})
    one, two = seal(codec, b"secret", "here", (1, 2)), seal(codec, b"secret", "here", (1, 2))

    assert unseal(codec, opened(one), "here") == unseal(codec, opened(two), "here") == b"secret"
    assert one != two
    assert b"secret" not in one


@pytest.mark.parametrize("place", ["there", "", "her", "here\0"])
def test_what_was_moved_does_not_open(place: str) -> None:
    """The place is authenticated."""
    codec = Encryption({"k1": KEY})

    with pytest.raises(CodecError, match="changed or moved"):
        unseal(codec, opened(seal(codec, b"secret", "here")), place)


def test_no_byte_of_an_envelope_can_be_changed() -> None:
    """Neither what is encrypted nor the epoch, generation and names in clear."""
    codec = Encryption({"k1": KEY})
    data = seal(codec, b"secret", "here", (3, 4))

    for i in range(len(data)):
        changed = data[:i] + bytes((data[i] ^ 1,)) + data[i + 1 :]
        try:
            envelope = open_envelope(changed)
            assert envelope is None or unseal(codec, envelope, "here") is None
        except CodecError:
            continue
        assert envelope is None, f"byte {i}"


@pytest.mark.parametrize("length", range(40))
def test_a_truncated_envelope_is_refused(length: int) -> None:
    """By a `CodecError`, whatever is missing."""
    codec = Encryption({"k1": KEY})
    data = seal(codec, b"", "here")[:length]

    if length < 2:
        assert open_envelope(data) is None
        return
    with pytest.raises(CodecError):
        unseal(codec, opened(data), "here")


def test_old_keys_read_and_the_first_writes() -> None:
    """Rotation: the new key goes first, the old one stays."""
    before, after = Encryption({"old": OTHER}), Encryption({"new": KEY, "old": OTHER})
    readers = Encryption({"new": KEY, "old": OTHER}, write="old")

    assert unseal(after, opened(seal(before, b"1", "p")), "p") == b"1"
    assert opened(seal(after, b"1", "p")).key_id == "new"
    assert opened(seal(readers, b"1", "p")).key_id == "old"


def test_a_missing_key_and_a_wrong_key_are_told_apart() -> None:
    """By key ids, never by keys."""
    data = seal(Encryption({"k1": KEY}), b"1", "p")

    with pytest.raises(CodecError, match=r"key 'k1', which is not among the keys at hand \(k2\)"):
        unseal(Encryption({"k2": KEY}), opened(data), "p")
    with pytest.raises(CodecError, match="does not open with key 'k1'"):
        unseal(Encryption({"k1": OTHER}), opened(data), "p")


def test_people_without_the_key_see_which_one_it_takes() -> None:
    """The codec's name and key id are in clear."""
    data = seal(Encryption({"k1": KEY}), b"1", "p")

    assert sealed_label(data) == "encrypted (key k1)"
    assert sealed_fault(data) == "it is encrypted (key k1), and no codec was given to read it"
    assert sealed_label(seal(Compression(), b"1", "p")) == "encoded (zlib)"
    assert sealed_label(b'{"a":1}') is None
    assert sealed_fault(memoryview(b'{"a":1}')) is None
    assert sealed_fault(stuck("why not")) == "why not"


def test_texts_are_sealed_as_text() -> None:
    """A reason is stored where only text can be; others' texts are left alone."""
    codec = Encryption({"k1": KEY})
    text = seal_text(codec, "because", "p")

    assert text.isascii()
    assert shown_text(text) == "encrypted (key k1)"
    assert unseal(codec, opened(envelope_in(text) or b""), "p") == b"because"
    for plain in ("because", "durable-sealed:", "durable-sealed:%", "durable-sealed:AAAA", None):
        assert shown_text(plain) == plain


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    """One `id key` a line; the first writes."""
    path = tmp_path / "keys"
    path.write_text(
        f"# rotated in May\nk2 {base64.b64encode(KEY).decode()}\n\nk1 {base64.b64encode(OTHER).decode()}  # old\n"
    )
    codec = Encryption.from_file(path)

    assert codec.key_id == "k2"
    assert unseal(codec, opened(seal(Encryption({"k1": OTHER}), b"1", "p")), "p") == b"1"


@pytest.mark.parametrize(
    "text",
    ["k1", "k1 !!!", "k1 QUJD", f"k1 {base64.b64encode(KEY).decode()} more", "", "# none",
     f"k1 {base64.b64encode(KEY).decode()}\nk1 {base64.b64encode(OTHER).decode()}"],
)  # fmt: skip
def test_a_key_file_that_is_wrong_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    """Errors are logged: they must not hold keys."""
    path = tmp_path / "keys"
    path.write_text(text)

    with pytest.raises(DefinitionError) as refused:
        Encryption.from_file(path)
    assert base64.b64encode(KEY).decode() not in str(refused.value)


def test_encryption_does_not_show_its_keys() -> None:
    """Not in logs or tracebacks."""
    shown = repr(Encryption({"k1": KEY, "k2": OTHER}))

    assert shown == "<encryption, keys k1, k2>"


@pytest.mark.parametrize("keys", [{}, {"k1": b"short"}, {"": KEY}, {"k\n": KEY}, {"k" * 33: KEY}])
def test_keys_that_cannot_be_are_refused(keys: dict[str, bytes]) -> None:
    """An id is printable and short; a key has 32 bytes."""
    with pytest.raises(DefinitionError):
        Encryption(keys)
    with pytest.raises(DefinitionError, match="no key 'k9'"):
        Encryption({"k1": KEY}, write="k9")


def test_a_codec_has_all_parts() -> None:
    """What is missing is told when the client is made, not when a run is parked."""
    check_codec(Compression())
    check_codec(Encryption({"k1": KEY}))
    for broken in (object(), type("Nameless", (Compression,), {"name": ""})()):
        with pytest.raises(DefinitionError, match="a codec"):
            check_codec(broken)  # type: ignore[arg-type]  # that is the point
