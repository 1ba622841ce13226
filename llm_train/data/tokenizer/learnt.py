"""What tokenizers that are learnt from the training text have in common."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llm_train.context import Context
from llm_train.data.base import Tokenizer
from llm_train.data.token_source import too_many_ids
from llm_train.errors import check_at_least

_SMALLEST = 257  # every byte and the boundary token


@dataclass(frozen=True, kw_only=True)
class Learnt(Tokenizer):
    """Base of tokenizers over bytes whose vocabulary has a size that is asked for."""

    vocab_size: int = 4096
    sample_bytes: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, _SMALLEST, "vocab_size", hint=": 256 bytes and one end-of-text token")
        check_at_least(self, 0, "sample_bytes")

    def problems(self, context: Context) -> Iterator[str]:
        """A vocabulary that will be larger than the network's, where no tokens say how large."""
        if not context.prepared and self.vocab_size > context.token_ids:
            key = "data.recipe.init_args.tokenizer"
            yield too_many_ids(key, self.vocab_size, context.token_ids)


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Whole texts until ``limit`` bytes have been given (0: no limit)."""
    given = 0
    for text in texts:
        yield text
        given += len(text.encode()) if limit else 0
        if limit and given >= limit:
            return
