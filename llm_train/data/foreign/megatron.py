"""What Megatron-LM's ``preprocess_data.py`` writes: ids in ``PREFIX.bin``, and ``PREFIX.idx``.

The index holds, little-endian: ``MMIDIDX``, the version (8 bytes), a code of the type (1), the
numbers of sequences and of borders of documents (8 each), the length of each sequence (int32), its
first byte in the other file (int64), and the first sequence of each document with the number of all
sequences at the end (int64).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_train.data.foreign.base import FileStretch, FileTokens, ForeignTokens, Starts
from llm_train.errors import DataError

_HEADER = np.dtype(
    [("magic", "S9"), ("version", "<u8"), ("dtype", "u1"), ("sequences", "<u8"), ("borders", "<u8")]
)
_DTYPES = {1: "uint8", 4: "int32", 5: "int64", 8: "uint16"}


@dataclass(frozen=True, kw_only=True)
class MegatronTokens(ForeignTokens):
    """Reads a corpus of Megatron-LM, or one that datatrove's MegatronDocumentTokenizer wrote.

    Attributes:
        path: its prefix, without ``.bin`` and ``.idx``.
        held_out: the prefix of another corpus whose text is held out.
        held_out_tokens: or so many tokens at the end of this one.
        vocabulary: number of token ids; 0 takes the tokenizer's.
        tokenizer: the ``tokenizer.json`` that made the ids, for bits per byte and generating text.
    """

    def open(self, path: str) -> FileTokens:
        """All of the ``.bin`` file."""
        header, file = _header(path), _file(path, ".bin")
        return FileTokens([FileStretch(file, 0, file.stat().st_size)], header[0], self.vocab_size())

    def starts(self, path: str) -> Starts:
        """First tokens of the first sequences of documents."""
        dtype, sequences, borders = _header(path)
        file, place = _file(path, ".idx"), _HEADER.itemsize + 4 * sequences
        first_bytes = np.memmap(file, "<i8", "r", place, (sequences,))
        firsts = np.fromfile(file, "<i8", borders, offset=place + 8 * sequences)[:-1]
        return np.asarray(first_bytes[firsts] // np.dtype(dtype).itemsize)


def _file(path: str, suffix: str) -> Path:
    file = Path(f"{path.removesuffix('.bin').removesuffix('.idx')}{suffix}")
    if not file.is_file():
        raise DataError(f"{file} is missing; set the path to the prefix of a .bin and an .idx file")
    return file


def _header(path: str) -> tuple[str, int, int]:
    """Type of the ids, and the numbers of sequences and of borders of documents."""
    file = _file(path, ".idx")
    found = np.fromfile(file, _HEADER, 1)
    if not found.size or (found["magic"][0], found["version"][0]) != (b"MMIDIDX", 1):
        raise DataError(f"{file} is not an index of Megatron-LM; correct class_path or path")
    if (dtype := _DTYPES.get(int(found["dtype"][0]))) is None:
        raise DataError(
            f"{file} has ids of type {found['dtype'][0]}; write integers of 16 or 32 bits"
        )
    return dtype, int(found["sequences"][0]), int(found["borders"][0])
