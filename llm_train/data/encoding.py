"""Where a long text can be cut so that its pieces have the same token ids as the whole.

A library takes some 120 bytes of memory a byte of text, so that a book of 100 MB would need 12 GB.
Most tokenizers first cut text into words by a regular expression, and the ids of a word depend on
nothing else. Two neighbouring characters of which no such word holds both are therefore a place to
cut: a letter and the blank, line end or punctuation mark that follows it. No expression here looks
back, so that what follows is read alike with and without what stands before; and a run of letters
ends in front of such a character, whether more text follows or not.

That holds for the expressions below (GPT-2's; those of Llama 3, Qwen and GPT-4; GPT-4o's) and for
characters as tokens. Any other tokenizer is given whole texts.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import tokenizers

PIECE_CHARACTERS = 1 << 18
LONGEST_CHARACTERS = 1 << 22  # without a place to cut: up to 600 MB of memory

# Letters (Latin, Cyrillic, Japanese, Chinese, Korean) that normalisation and case change alone, and
# what ends a run of them.
# Not an apostrophe: words such as "it's" are cut in another place by each expression.
_PLACE = re.compile(
    "[A-Za-z\u0410-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3]"
    '(?=[ \n.,;:!?()\\[\\]{}"\u3001\u3002\uff0c\uff1b\uff1a\uff01\uff1f\u300c\u300d])'
)
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CHARACTERS = r"[\s\S]"
_CUTTING = {_GPT2, _GPT4 % "{1,3}", _GPT4 % "", _GPT4O, _CHARACTERS}
_CUTTING |= {pattern.replace(_CONTRACTIONS, "'(?i:[sdmt]|ll|ve|re)") for pattern in _CUTTING}
# They cut once more, at single characters, or map each byte of a word.
_HARMLESS = {"Digits", "Punctuation", "ByteLevel"}
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}


@dataclass(frozen=True, kw_only=True)
class Cutter:
    """Cuts long texts for one tokenizer.

    Attributes:
        cuts: whether there are places at which ids cannot differ.
        piece: about the length of a piece, in characters.
        longest: longer pieces are refused.
    """

    cuts: bool
    piece: int = PIECE_CHARACTERS
    longest: int = LONGEST_CHARACTERS

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> "Cutter":
        """Looks at how a tokenizer finds words."""
        plain = json.loads(tokenizer.to_str())
        normal = {step["type"] for step in _steps(plain["normalizer"], "normalizers")}
        words = _steps(plain["pre_tokenizer"], "pretokenizers")
        return cls(
            cuts=any(map(_cuts_words, words))
            and all(_cuts_words(step) or step["type"] in _HARMLESS for step in words)
            and normal <= _NORMALIZERS
            and not any(_may_span(token) for token in plain["added_tokens"])
        )

    def pieces(self, text: str) -> list[str] | None:
        """The text in pieces, of which one is the whole if it is short; None: it cannot be cut."""
        if len(text) <= self.piece:
            return [text]
        places = [0, *self._places(text), len(text)] if self.cuts else [0, len(text)]
        spans = list(pairwise(places))
        if any(stop - start > self.longest for start, stop in spans):
            return None
        return [text[start:stop] for start, stop in spans]

    def _places(self, text: str) -> Iterator[int]:
        place = 0
        while len(text) - place > self.piece:
            found = _PLACE.search(text, place + self.piece)
            if found is None:
                return
            place = found.end()
            yield place


def _steps(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The single steps of a normalizer or pre-tokenizer."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [single for inner in step[key] for single in _steps(inner, key)]
    return [step]


def _cuts_words(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    known = step.get("pattern", {}).get("Regex") in _CUTTING
    return step["type"] == "Split" and known and step["behavior"] == "Isolated"


def _may_span(token: dict[str, Any]) -> bool:
    """Whether a token that is looked for before words are could hold both sides of a cut."""
    spreads = token["rstrip"] or token["single_word"] or _PLACE.search(token["content"])
    return bool(not token["special"] and spreads)
