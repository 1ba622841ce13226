"""A folder of prepared tokens, read document by document."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from llm_train.data.base import Ids
from llm_train.data.reader import ShardTokens
from llm_train.data.shards import TOKENIZER
from llm_train.data.token_manifest import Manifest
from llm_train.data.token_shards import TokenShards
from llm_train.data.tokenizer.tokenizer_file import load_tokenizer
from llm_train.data.windows import Tokens

_READ_TOKENS = 1 << 22  # at a time; every block is verified as it is read


class PreparedFolder:
    """What ``llm-train prepare`` wrote.

    Raises:
        DataError: it holds no prepared tokens.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.source = TokenShards(path=path)
        self.manifest = Manifest.load(self.path)

    @cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The one that made the tokens."""
        return load_tokenizer(self.path / TOKENIZER)

    def tokens(self, split: str) -> Tokens:
        """All tokens of a split."""
        return ShardTokens(self.path, self.manifest, split)

    def read(self, split: str) -> Iterator[Ids]:
        """The tokens of a split from first to last, some millions at a time."""
        tokens = self.tokens(split)
        for start in range(0, len(tokens), _READ_TOKENS):
            yield tokens.rows([start], min(_READ_TOKENS, len(tokens) - start))[0]

    def starts(self, split: str) -> npt.NDArray[np.int64]:
        """The first token of each document."""
        return self.source.documents(split).starts()

    def documents(self, split: str) -> Iterator[Ids]:
        """The tokens of each document, without its boundary token."""
        tokens, end = self.tokens(split), self.manifest.end_of_text
        borders = [*self.starts(split).tolist(), len(tokens)]
        first = 0
        while first < len(borders) - 1:
            # As many documents as fit into one read, at least one.
            last = int(np.searchsorted(borders, borders[first] + _READ_TOKENS, "right")) - 1
            last = max(last, first + 1)
            ids = tokens.rows([borders[first]], borders[last] - borders[first])[0]
            for document in np.split(ids, np.subtract(borders[first + 1 : last], borders[first])):
                yield document[:-1] if document.size and document[-1] == end else document
            first = last

    def digests(self, split: str, as_text: bool = False) -> npt.NDArray[np.uint64]:
        """64 bits of a hash of each document: of its ids, or of the text that they decode to."""

        def digest(ids: Ids) -> int:
            text = self.tokenizer.decode(ids.tolist()).encode() if as_text else ids.tobytes()
            return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

        return np.fromiter(map(digest, self.documents(split)), np.uint64)

    def key(self, split: str, number: int) -> str:
        """What the corpus calls a document."""
        documents = self.source.documents(split)
        return documents.find(int(documents.starts()[number])).key
