"""Every byte, or every character, is a token: nothing is learnt but which there are."""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from llm_train.data.base import END_OF_TEXT, Texts, Tokenizer
from llm_train.errors import DataError

# GPT-2's characters for bytes: printable ones stand for themselves, the others are moved up.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_MOVED = [number for number in range(256) if number not in _PRINTABLE]


def byte_characters() -> list[str]:
    """The character that ByteLevel writes for each byte, in the order of the bytes."""
    moved = {number: chr(256 + place) for place, number in enumerate(_MOVED)}
    return [moved.get(number, chr(number)) for number in range(256)]


@dataclass(frozen=True, kw_only=True)
class Alphabet(Tokenizer):
    """Base of tokenizers whose ids are the places in an alphabet, with a last one for the end."""

    end_of_text: bool

    @property
    def boundary(self) -> str:
        """As configured."""
        return END_OF_TEXT if self.end_of_text else ""


@dataclass(frozen=True, kw_only=True)
class Bytes(Alphabet):
    """The id of a byte is the byte; ``<|endoftext|>`` is 256. Bits per byte are the loss itself.

    Attributes:
        end_of_text: append ``<|endoftext|>`` to each document.
    """

    end_of_text: bool = True

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Reads no text."""
        alphabet = {character: number for number, character in enumerate(byte_characters())}
        tokenizer = tokenizers.Tokenizer(models.BPE(alphabet, []))
        # Cut at words, though nothing merges: the library remembers words, and long ones are slow.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END_OF_TEXT] * self.end_of_text)
        return tokenizer


@dataclass(frozen=True, kw_only=True)
class Characters(Alphabet):
    """The distinct characters of the whole corpus in code point order, held-out text included.

    For small experiments that are compared with published ones. Only text made of these characters
    can be encoded afterwards; anything else is an error.

    Attributes:
        end_of_text: append ``<|endoftext|>`` to each document; it gets the last id.
    """

    end_of_text: bool = False

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
        tokenizer.add_special_tokens([END_OF_TEXT] * self.end_of_text)
        return tokenizer
