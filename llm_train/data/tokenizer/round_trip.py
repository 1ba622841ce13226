"""Whether text survives text -> ids -> text, found out before the corpus is encoded.

Counts of bytes do not tell: a tokenizer that lowercases keeps them. The texts are compared.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers

_SHOWN = 20  # characters on either side of the first difference


def changed_texts(tokenizer: tokenizers.Tokenizer, sample: Iterable[str]) -> str:
    """How many texts do not come back as they were, with an example; "" where all do."""
    texts = list(sample)
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    decoded = tokenizer.decode_batch([encoding.ids for encoding in encodings])
    changed = [pair for pair in zip(texts, decoded, strict=True) if pair[0] != pair[1]]
    if not changed:
        return ""
    before, after = changed[0]
    pairs = enumerate(zip(before, after, strict=False))
    place = next((n for n, (one, other) in pairs if one != other), min(len(before), len(after)))
    shown = [text[max(0, place - _SHOWN) : place + _SHOWN] for text in (before, after)]
    return (
        f"the tokenizer changes {len(changed)} of {len(texts)} documents of a sample: "
        f"{shown[0]!r} comes back as {shown[1]!r}; bits per byte count the bytes that come back, "
        "and are not comparable with those of a tokenizer that keeps the text"
    )
