"""Every character is a token: for small experiments that are compared with published ones."""

from dataclasses import dataclass

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from llm_train.data.base import END_OF_TEXT, Texts, Tokenizer
from llm_train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Characters(Tokenizer):
    """The distinct characters of the whole corpus in code point order, held-out text included.

    Only text made of these characters can be encoded afterwards; anything else is an error.

    Attributes:
        end_of_text: append ``<|endoftext|>`` to each document; it gets the last id.
    """

    end_of_text: bool = False

    @property
    def boundary(self) -> str:
        """As configured."""
        return END_OF_TEXT if self.end_of_text else ""

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Collects the characters."""
        seen: set[str] = set()
        for text in texts.everything():
            seen.update(text)
        if not seen:
            raise DataError("the corpus has no text; check its paths")
        alphabet = {character: number for number, character in enumerate(sorted(seen))}
        # Without an unknown token the model refuses characters it does not have.
        tokenizer = tokenizers.Tokenizer(models.WordLevel(alphabet))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        if self.end_of_text:
            tokenizer.add_special_tokens([END_OF_TEXT])
        return tokenizer
