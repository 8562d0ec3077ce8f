"""AES-256-GCM over every payload: `Encryption`, a codec. Needs the package `cryptography` (the extra `crypto`).

Every payload gets a key of its own, derived by HMAC-SHA256 from the named key and twelve random bytes, and a random nonce:
so a key may be used for any number of payloads, where plain GCM with random nonces wears out after some billions. The
place of a payload and the header it is stored with are authenticated with it. Knows nothing of stores.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from durable.errors import CodecError, DefinitionError
from durable.seams import random_bytes

KEY_BYTES: Final = 32
_SALT_BYTES: Final = 12
_NONCE_BYTES: Final = 12
_CONTEXT: Final = b"durable payload key 1"


class Encryption:
    """Encrypts every payload: `connect(url, codec=Encryption({"k1": key}))`. Keys are 32 secret random bytes.

    The first key writes, unless `write` names another; all of them read. To rotate, put a new key first on every worker
    and client that reads, then let it write, and keep the old one for as long as runs (and backups) written with it matter.
    `accept_plain=False` refuses payloads stored without encryption: then whoever can write to the database, but has no
    key, cannot slip any in. Use it once every open run was started with encryption.
    """

    name = "aes-256-gcm"

    def __init__(
        self, keys: Mapping[str, bytes], *, write: str | None = None, accept_plain: bool = True
    ) -> None:
        if not keys:
            raise DefinitionError("encryption needs at least one key")
        for key_id, key in keys.items():
            _check_key(key_id, key)
        if write is not None and write not in keys:
            raise DefinitionError(f"there is no key {write!r} to write with, among {', '.join(keys)}")
        self._keys = {key_id: bytes(key) for key_id, key in keys.items()}
        self._key_id = next(iter(keys)) if write is None else write
        self._accept_plain = accept_plain
        self._cipher, self._refusal = _cryptography()

    @classmethod
    def from_file(cls, path: str | Path, *, accept_plain: bool = True) -> Self:
        """Read keys from a file with one `id key` a line, the key in base64; the first line's key writes.

        `#` begins a comment. Make a key with `openssl rand -base64 32`; keep the file readable for its users only.
        """
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DefinitionError(f"cannot read the key file {path}: {type(error).__name__}") from None
        keys: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                key_id, key = words[0], base64.b64decode(words[1], validate=True)
                if len(words) != 2 or key_id in keys:
                    raise ValueError
            except (IndexError, ValueError, binascii.Error):
                raise DefinitionError(
                    f"{path}, line {number}: not an `id key` with the key in base64, or an id used twice"
                ) from None
            keys[key_id] = key
        return cls(keys, accept_plain=accept_plain)

    @property
    def key_id(self) -> str:
        """The key that writes."""
        return self._key_id

    @property
    def accepts_plain(self) -> bool:
        return self._accept_plain

    def __repr__(self) -> str:
        return f"<encryption, keys {', '.join(self._keys)}>"  # never the keys themselves

    def encode(self, data: bytes, place: bytes) -> bytes:
        seed = random_bytes(_SALT_BYTES + _NONCE_BYTES)
        cipher = self._of(self._key_id, seed[:_SALT_BYTES])
        sealed: bytes = cipher.encrypt(seed[_SALT_BYTES:], data, place)
        return seed + sealed

    def decode(self, data: bytes, place: bytes, key_id: str) -> bytes:
        if key_id not in self._keys:
            raise CodecError(
                f"it is encrypted with key {key_id!r}, which is not among the keys at hand ({', '.join(self._keys)})"
            )
        salt, nonce = data[:_SALT_BYTES], data[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES]
        try:
            opened: bytes = self._of(key_id, salt).decrypt(nonce, data[_SALT_BYTES + _NONCE_BYTES :], place)
        except (self._refusal, ValueError):
            raise CodecError(
                f"it does not open with key {key_id!r}: another key has that id, or it was changed or moved here"
            ) from None
        return opened

    def _of(self, key_id: str, salt: bytes) -> Any:
        return self._cipher(hmac.digest(self._keys[key_id], _CONTEXT + salt, "sha256"))


def _check_key(key_id: str, key: bytes) -> None:
    # Never the key in the message: errors are logged.
    if not isinstance(key_id, str) or not key_id or not key_id.isprintable() or len(key_id) > 32:
        raise DefinitionError(f"a key id is a printable text of 1 to 32 characters, not {key_id!r}")
    if not isinstance(key, (bytes, bytearray)) or len(key) != KEY_BYTES:
        raise DefinitionError(f"key {key_id!r} is not {KEY_BYTES} bytes: `openssl rand -base64 32` makes one")


def _cryptography() -> tuple[Any, type[Exception]]:
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise DefinitionError(
            "encryption needs the package cryptography: install durable-sdk[crypto]"
        ) from None
    return AESGCM, InvalidTag
