"""Long texts encoded in pieces have the ids of the whole."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from llm_train.data import Characters, Texts
from llm_train.data.encoding import Cutter

# As in the tokenizer.json of Llama 3.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALPHABET = "abcDE  \n\n\t.,!?'()12世界\uff0c。жЖ\u2019é\u0301\r it's I'LL "


def noise(length: int) -> str:
    draw = random.Random(length)
    return "".join(draw.choice(ALPHABET) for _ in range(length))


def splitting(pattern: str) -> pre_tokenizers.PreTokenizer:
    mapping = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, mapping])


def byte_pairs(pre_tokenizer: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([Path(__file__).read_text(), noise(20_000)], trainer)
    return tokenizer


def of_characters() -> tokenizers.Tokenizer:
    texts = [noise(20_000), Path(__file__).read_text()]
    return Characters().build(Texts(train=lambda: iter(texts), everything=lambda: iter(texts)))


KINDS = {
    "gpt2": lambda: byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama3": lambda: byte_pairs(splitting(LLAMA_3)),
    "gpt4o": lambda: byte_pairs(splitting(GPT_4O)),
    "characters": of_characters,
}


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_ids_of_the_whole(kind: str) -> None:
    tokenizer = KINDS[kind]()
    cutter = Cutter.of(tokenizer)
    assert cutter.cuts
    for text in (noise(20_000), Path(__file__).read_text()):
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        for length in (1, 7, 50):
            pieces = replace(cutter, piece=length).pieces(text)
            assert pieces is not None
            assert len(pieces) > 50
            assert "".join(pieces) == text
            ids = [tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces]
            assert list(chain.from_iterable(ids)) == whole


def test_what_is_not_known_to_be_cut_is_left_whole() -> None:
    spaces = tokenizers.Tokenizer(models.BPE())
    spaces.pre_tokenizer = pre_tokenizers.Metaspace()
    prefixed = KINDS["gpt2"]()
    prefixed.normalizer = normalizers.Prepend("x")
    spanning = KINDS["gpt2"]()
    spanning.add_tokens(["b c"])
    for tokenizer in (spaces, prefixed, spanning):
        cutter = replace(Cutter.of(tokenizer), piece=10, longest=100)
        assert not cutter.cuts
        assert cutter.pieces("word " * 20) == ["word " * 20]
        assert cutter.pieces("word " * 21) is None
    assert replace(Cutter(cuts=True), piece=9, longest=20).pieces("a" * 50) is None
