"""Which codec reads and writes payloads: what the operator named, by a key file or as code. Never anything that data names."""

from __future__ import annotations

from typing import Any

from durable import Encryption, PayloadCodec
from durable_cli.options import Settings
from durable_cli.problems import Problem
from durable_cli.targets import attribute_of


def codec_of(settings: Settings) -> PayloadCodec | None:
    """Return the codec of `--codec` or `--key-file` (or their variables); None: payloads are stored as they are."""
    if settings.codec is not None:
        if settings.key_file is not None:
            raise Problem("--codec and --key-file exclude one another", hint="a codec brings its own keys")
        found: Any = attribute_of(settings.codec, settings)
        if not all(hasattr(found, name) for name in ("name", "key_id", "accepts_plain", "encode", "decode")):
            raise Problem(
                f"{settings.codec} is no codec but {type(found).__name__}",
                hint="name an instance with name, key_id, accepts_plain, encode and decode",
            )
        codec: PayloadCodec = found
        return codec
    return None if settings.key_file is None else Encryption.from_file(settings.key_file)
