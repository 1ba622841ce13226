"""Every byte of UTF-8 is a token: no vocabulary to learn, nothing that cannot be encoded."""

from dataclasses import dataclass

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from llm_train.data.base import END_OF_TEXT, Texts, Tokenizer

# GPT-2's characters for bytes: printable ones stand for themselves, the others are moved up.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_MOVED = [number for number in range(256) if number not in _PRINTABLE]


def byte_characters() -> list[str]:
    """The character that ByteLevel writes for each byte, in the order of the bytes."""
    moved = {number: chr(256 + place) for place, number in enumerate(_MOVED)}
    return [moved.get(number, chr(number)) for number in range(256)]


@dataclass(frozen=True, kw_only=True)
class Bytes(Tokenizer):
    """The id of a byte is the byte; ``<|endoftext|>`` is 256. Bits per byte are the loss itself.

    Attributes:
        end_of_text: append ``<|endoftext|>`` to each document.
    """

    end_of_text: bool = True

    @property
    def boundary(self) -> str:
        """As configured."""
        return END_OF_TEXT if self.end_of_text else ""

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Reads no text."""
        alphabet = {character: number for number, character in enumerate(byte_characters())}
        tokenizer = tokenizers.Tokenizer(models.BPE(alphabet, []))
        # Cut at words, though nothing merges: the library remembers words, and long ones are slow.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        if self.end_of_text:
            tokenizer.add_special_tokens([END_OF_TEXT])
        return tokenizer
