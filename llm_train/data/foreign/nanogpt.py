"""Files of bare ids, as nanoGPT's ``prepare.py`` writes them, with or without llm.c's header.

The header is 256 little-endian 32-bit integers: a magic number that says the width of the ids, a
version, and the number of ids. Without one, ids take two bytes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_train.data.foreign.base import FileStretch, FileTokens, ForeignTokens, files_at
from llm_train.errors import DataError

_HEADER_BYTES = 1024
_DTYPES = {20240520: "uint16", 20240801: "uint32"}  # by llm.c's magic numbers


@dataclass(frozen=True, kw_only=True)
class NanoGPTTokens(ForeignTokens):
    """Reads ``.bin`` files of nanoGPT, llm.c and programs that took their format over.

    Attributes:
        path: a file, a folder of ``.bin`` files, or a glob as in ``fineweb_train_*.bin``.
        held_out: other files, whose text is held out, as in ``val.bin``.
        held_out_tokens: or so many tokens at the end of ``path``.
        vocabulary: number of token ids; 0 takes the tokenizer's.
        tokenizer: the ``tokenizer.json`` that made the ids, for bits per byte and generating text.
    """

    def open(self, path: str) -> FileTokens:
        """One file after another."""
        found = [_stretch(file) for file in files_at(path, "*.bin")]
        if len(kinds := {dtype for dtype, _ in found}) > 1:
            raise DataError(f"{path} has files of {' and '.join(sorted(kinds))}; name those of one")
        return FileTokens((stretch for _, stretch in found), kinds.pop(), self.vocab_size())


def _stretch(file: Path) -> tuple[str, FileStretch]:
    size, header = file.stat().st_size, np.fromfile(file, "<i4", 3)
    dtype = _DTYPES.get(int(header[0])) if header.size == 3 and size >= _HEADER_BYTES else None
    if dtype is None:
        return "uint16", FileStretch(file, 0, size)
    expected = _HEADER_BYTES + int(header[2]) * np.dtype(dtype).itemsize
    if size != expected:
        raise DataError(f"{file} has {size} bytes, its header says {expected}; copy it again")
    return dtype, FileStretch(file, _HEADER_BYTES, expected - _HEADER_BYTES)
