"""What general compressors make of the held-out text, as a measure for bits per byte."""

from __future__ import annotations

import gzip
import lzma

LIMIT_BYTES = 4 << 20  # the two take 0.4 s a megabyte; no figure is worth a minute


def bits_per_byte(text: bytes | bytearray) -> dict[str, float | None]:
    """Of gzip -9 and xz -9; None where there is no text."""
    compressed = {"gzip_9": gzip.compress(text, 9), "xz_9": lzma.compress(text, preset=9)}
    return {name: 8.0 * len(c) / len(text) if text else None for name, c in compressed.items()}
