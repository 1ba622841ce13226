"""What general compressors make of the held-out text, as a measure for bits per byte."""

from __future__ import annotations

import lzma
import zlib

LIMIT_BYTES = 4 << 20  # the two take 0.4 s a megabyte; no figure is worth a minute


class CompressedSize:
    """Feeds text to gzip -9 and xz -9 as it comes and keeps only the lengths of their output.

    Args:
        limit_bytes: of text; beyond it the compressors stop and no figure is given.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._text_bytes = 0
        self._limit = limit_bytes
        self._streams: dict[str, zlib._Compress | lzma.LZMACompressor] = {
            "gzip_9": zlib.compressobj(9, wbits=31),
            "xz_9": lzma.LZMACompressor(preset=9),
        }
        self._sizes = dict.fromkeys(self._streams, 0)

    def add(self, text: bytes) -> None:
        """Appends to what is compressed."""
        self._text_bytes += len(text)
        if self._text_bytes <= self._limit:
            for name, stream in self._streams.items():
                self._sizes[name] += len(stream.compress(text))

    def bits_per_byte(self) -> dict[str, float | None]:
        """Ends the streams; nothing can be added afterwards."""
        if not 0 < self._text_bytes <= self._limit:
            return dict.fromkeys(self._streams, None)
        return {
            name: 8.0 * (self._sizes[name] + len(stream.flush())) / self._text_bytes
            for name, stream in self._streams.items()
        }
