"""Bytes of tokens against decoded text, and SentencePiece's own ids against those we keep."""

import io
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm_train.data import Bytes, SentencePieceFile, Tokenizer, TokenizerFile, TrainUnigram
from llm_train.data.base import END_OF_TEXT
from llm_train.data.tokenizer.tokenizer_file import byte_lengths, changed_texts
from llm_train.errors import ConfigError, DataError
from tests.data.test_tokenizer import WEIRD, reloaded, texts

PROSE = [
    f"The cat number {n} sat on the mat, and then it said: no! Who's there?" for n in range(50)
]
SPELT = "it says </s><s> and <unk>"


def assert_lengths_add_up(
    tokenizer: tokenizers.Tokenizer, boundary: str, documents: list[str]
) -> None:
    lengths = byte_lengths(tokenizer, boundary)
    at_the_ends = int(lengths[tokenizer.token_to_id(boundary)]) if boundary else 0
    for document in documents:
        ids = tokenizer.encode(document, add_special_tokens=False).ids
        assert lengths[ids].sum() + at_the_ends == len(tokenizer.decode(ids).encode())


@pytest.mark.parametrize("recipe", [Bytes(), TrainUnigram(vocab_size=400)])
def test_any_text_comes_back(tmp_path: Path, recipe: Tokenizer) -> None:
    pytest.importorskip("sentencepiece")
    first, second = (recipe.build(texts(PROSE)) for _ in range(2))
    assert first.to_str() == second.to_str()
    tokenizer = reloaded(first, tmp_path)
    assert_lengths_add_up(tokenizer, recipe.boundary, [*PROSE, *WEIRD])
    assert changed_texts(tokenizer, [*PROSE, *WEIRD]) == ""
    for text in WEIRD:
        ids = tokenizer.encode(text).ids
        assert tokenizer.token_to_id(END_OF_TEXT) not in ids
        if isinstance(recipe, Bytes):
            assert ids == list(text.encode())
    if isinstance(recipe, TrainUnigram):
        assert tokenizer.get_vocab_size() <= 400
        assert len(tokenizer.encode(PROSE[0]).ids) < len(PROSE[0])


OPTIONS = {
    "prefix": {"byte_fallback": True, "normalization_rule_name": "identity"},
    "no prefix": {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
    },
    "lossy": {"normalization_rule_name": "nmt_nfkc"},
}


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("name", OPTIONS)
def test_sentence_piece_models_keep_their_ids(tmp_path: Path, kind: str, name: str) -> None:
    spm = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE),
        model_writer=written,
        model_type=kind,
        vocab_size=320,
        hard_vocab_limit=False,
        remove_extra_whitespaces=name == "lossy",
        minloglevel=2,
        **OPTIONS[name],
    )
    (tmp_path / "m.model").write_bytes(written.getvalue())
    recipe = SentencePieceFile(path=str(tmp_path / "m.model"))
    documents = [*PROSE, *WEIRD[1:3], *WEIRD[4:6], "  two "]
    if name != "lossy":  # which knows no "<" and joins unknown characters
        documents.append(SPELT)
    tokenizer = reloaded(recipe.build(texts(documents)), tmp_path)
    original = spm.SentencePieceProcessor(model_proto=written.getvalue())
    assert [tokenizer.encode(d).ids for d in documents] == [original.encode(d) for d in documents]
    assert_lengths_add_up(tokenizer, "</s>", documents)
    changed = changed_texts(tokenizer, documents)
    assert ("documents of a sample" in changed) == (name == "lossy")
    if name == "prefix":
        with pytest.raises(ConfigError, match="end_of_text=''"):
            byte_lengths(tokenizer)


def test_a_file_that_is_no_sentence_piece_model(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "m.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"m\.model is not a model.*correct the path"):
        SentencePieceFile(path=str(tmp_path / "m.model")).build(texts(PROSE))


def test_word_pieces_and_a_tokenizer_that_lowercases(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(PROSE, trainer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer = reloaded(tokenizer, tmp_path)
    assert_lengths_add_up(tokenizer, "[SEP]", [*PROSE, "naming the unknown ☃ cats"])
    changed = changed_texts(tokenizer, PROSE)
    assert "50 of 50 documents" in changed
    assert "'The cat" in changed
    assert "'the cat" in changed


def test_ids_that_the_library_would_number_otherwise(tmp_path: Path) -> None:
    plain = json.loads(Bytes().build(texts([])).to_str())
    plain["added_tokens"].append({**plain["added_tokens"][0], "id": 700, "content": "<|far|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match=r"'<\|far\|>' the id 700.*257.*fill the gap"):
        TokenizerFile(path=str(tmp_path)).build(texts([]))
