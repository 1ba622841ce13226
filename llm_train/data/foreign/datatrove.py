"""What datatrove's ``DocumentTokenizer`` and ``DocumentTokenizerMerger`` write.

``NAME.ds`` is ids; ``NAME.ds.index`` the end of each document in tokens, as 64-bit integers; the
first line of ``NAME.ds.metadata`` ends in the bytes that an id takes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_train.data.foreign.base import FileStretch, FileTokens, ForeignTokens, Starts, files_at
from llm_train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DatatroveTokens(ForeignTokens):
    """Reads a folder of ``.ds`` files, as ``scripts/datatrove_tokens.py`` makes them.

    Attributes:
        path: the folder, a single file, or a glob.
        held_out: another of these, whose text is held out.
        held_out_tokens: or so many tokens at the end of ``path``.
        vocabulary: number of token ids; 0 takes the tokenizer's.
        tokenizer: the ``tokenizer.json`` that made the ids, for bits per byte and generating text.
    """

    def open(self, path: str) -> FileTokens:
        """One file after another."""
        files = files_at(path, "*.ds")
        stretches = [FileStretch(file, 0, file.stat().st_size) for file in files]
        return FileTokens(stretches, f"uint{8 * self._width(files[0])}", self.vocab_size())

    def starts(self, path: str) -> Starts | None:
        """From the indices, if each file has one."""
        found, before = [np.zeros(1, dtype=np.int64)], 0
        for file in files_at(path, "*.ds"):
            index = file.with_name(f"{file.name}.index")
            if not index.is_file():
                return None
            found.append(np.fromfile(index, "<i8") + before)
            before = int(found[-1][-1]) if found[-1].size else before
        return np.concatenate(found)[:-1]  # the last document ends and none starts

    def _width(self, file: Path) -> int:
        metadata = file.with_name(f"{file.name}.metadata")
        if not metadata.is_file():
            return 2 if self.vocab_size() <= 1 << 16 else 4  # datatrove's own rule
        width = metadata.read_text("utf-8").split("\n", 1)[0].rpartition("|")[2]
        if width not in ("2", "4"):
            raise DataError(
                f"{metadata} says that ids take {width!r} bytes, not 2 or 4; correct it"
            )
        return int(width)
