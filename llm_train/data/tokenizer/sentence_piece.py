"""SentencePiece's ``.model``, turned into a ``tokenizer.json`` that gives the same ids.

The file says how text is normalised and which pieces there are; ``tokenizers`` has an equal for
each. The two are compared on the training text before anything is encoded, so that a model with a
feature that has no equal is refused rather than encoded otherwise.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from llm_train.data.base import Texts
from llm_train.data.tokenizer.learnt import first_bytes
from llm_train.data.tokenizer.tokenizer_file import Existing
from llm_train.errors import DataError

ModelProto = Any  # the library makes the class when it is imported, without a type

_SPACE = "▁"
_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6  # kinds of piece in the file
_UNIGRAM, _BPE = 1, 2  # kinds of model
_COMPARED_BYTES = 200_000


@dataclass(frozen=True, kw_only=True)
class SentencePieceFile(Existing):
    """Takes a unigram or BPE model of SentencePiece and keeps its ids.

    Attributes:
        path: the ``.model`` file.
        end_of_text: the token appended to each document; "" appends none.
    """

    end_of_text: str = "</s>"

    def provenance(self) -> Mapping[str, str | int]:
        """The file's hash."""
        return {"tokenizer_file": hashlib.sha256(_content(self.path)).hexdigest()}

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Converts the file and compares the two on the beginning of the training text."""
        content = _content(self.path)
        tokenizer = converted(content, self.path)
        import sentencepiece

        original = sentencepiece.SentencePieceProcessor(model_proto=content)
        added = tokenizer.get_added_tokens_decoder().values()
        own = (f"a{token.content}b" for token in added if not token.special)
        for text in chain(own, first_bytes(texts.train(), _COMPARED_BYTES)):
            expected, found = original.encode(text), tokenizer.encode(text).ids
            if expected != found:
                raise DataError(
                    f"{self.path} cannot be taken over: SentencePiece encodes {text[:40]!r} as "
                    f"{expected[:8]}, its conversion as {found[:8]}; convert the model to a "
                    "tokenizer.json elsewhere and use TokenizerFile"
                )
        return tokenizer


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; correct the path of the model") from None


def converted(content: bytes, path: str) -> tokenizers.Tokenizer:
    """The model in ``content`` as a tokenizer; ``path`` is named where something is wrong."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model: ModelProto = vars(sentencepiece_model_pb2)["ModelProto"]()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise DataError(f"{path} is not a model of SentencePiece; correct the path") from None
    kind = model.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE):
        raise DataError(f"{path} is neither a unigram nor a BPE model, the only kinds supported")
    tokenizer = tokenizers.Tokenizer(_unigram(model) if kind == _UNIGRAM else _bpe(model))
    normal = list(_normalizers(model))
    if normal:
        tokenizer.normalizer = normalizers.Sequence(normal)
    prefix = model.normalizer_spec.add_dummy_prefix
    strip = [decoders.Strip(content=" ", left=1, right=0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [piece.piece for piece in model.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    if kind == _UNIGRAM:
        # Its pieces match text, these included: text that spells one is cut after its first letter.
        spelt = "|".join(f"{re.escape(piece[0])}(?={re.escape(piece[1:])})" for piece in special)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(spelt), "merged_with_previous")
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    own = [piece.piece for piece in model.pieces if piece.type == _USER]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _normalizers(model: ModelProto) -> Iterator[normalizers.Normalizer]:
    """What SentencePiece does to text before it cuts it."""
    spec = model.normalizer_spec
    if spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        yield normalizers.Replace(Regex("^ +| +$"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if spec.add_dummy_prefix:
        yield normalizers.Prepend(_SPACE)
    yield normalizers.Replace(" ", _SPACE)


def _unigram(model: ModelProto) -> models.Unigram:
    vocabulary = [(piece.piece, piece.score) for piece in model.pieces]
    fall_back = model.trainer_spec.byte_fallback
    return models.Unigram(vocabulary, model.trainer_spec.unk_id, fall_back)


def _bpe(model: ModelProto) -> models.BPE:
    """A piece may merge from any two pieces; the better its score, the earlier it merges."""
    vocabulary = {piece.piece: number for number, piece in enumerate(model.pieces)}
    kinds = (_UNKNOWN, _CONTROL, _USER, _BYTE)
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type not in kinds}
    merges = [
        (-score, vocabulary[piece[:cut]], piece[:cut], piece[cut:])
        for piece, score in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    return models.BPE(
        vocabulary,
        [(left, right) for _, _, left, right in sorted(merges)],
        unk_token=model.pieces[model.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )
