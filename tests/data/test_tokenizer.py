from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from llm_train.data import Characters, Texts, TokenizerFile, TrainBPE, load_tokenizer
from llm_train.data.base import END_OF_TEXT
from llm_train.data.tokenizer.tokenizer_file import byte_lengths, token_id, vocabulary_size
from llm_train.errors import ConfigError, DataError

WEIRD = [
    "plain text\n\twith tabs\r\nand  spaces   ",
    "e\u0301 é ﬁ ½ Ω≠Ω",
    "👩‍👩‍👧‍👦 🇩🇪 \U0010ffff",
    "\x00\x01\x7f\x85\u200b\u2028\ufeff",
    "مرحبا שלום नमस्ते 你好",
    f"it ends with {END_OF_TEXT}, it says",
    " ",
]


def texts(train: list[str], held_out: list[str] | None = None) -> Texts:
    def everything() -> Iterator[str]:
        yield from train
        yield from held_out or []

    return Texts(train=lambda: iter(train), everything=everything)


def reloaded(tokenizer: tokenizers.Tokenizer, directory: Path) -> tokenizers.Tokenizer:
    tokenizer.save(str(directory / "tokenizer.json"))
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    trained = TrainBPE(vocab_size=400).build(texts(["the cat sat on the mat " * 20, *WEIRD]))
    return reloaded(trained, tmp_path_factory.mktemp("bpe"))


@pytest.mark.parametrize("text", WEIRD)
def test_bpe_round_trip_and_bytes(bpe: tokenizers.Tokenizer, text: str) -> None:
    ids = bpe.encode(text, add_special_tokens=False).ids
    assert bpe.decode(ids) == text
    assert byte_lengths(bpe)[ids].sum() == len(text.encode())
    assert bpe.token_to_id(END_OF_TEXT) not in ids


def test_bpe_vocabulary(bpe: tokenizers.Tokenizer) -> None:
    assert vocabulary_size(bpe) <= 400
    assert bpe.token_to_id(END_OF_TEXT) == 0
    lengths = byte_lengths(bpe)
    assert lengths[0] == 0
    assert lengths.size == vocabulary_size(bpe)
    assert (lengths == 1).sum() == 256
    assert lengths.max() > 3


def test_bpe_is_the_same_every_time() -> None:
    material = texts(["the cat sat on the mat, then the dog " * 5, *WEIRD])
    first, second = (TrainBPE(vocab_size=350).build(material).to_str() for _ in range(2))
    assert first == second


def test_bpe_learns_from_training_text_only() -> None:
    recipe = TrainBPE(vocab_size=400)
    alone = recipe.build(texts(["some training text " * 9])).to_str()
    assert recipe.build(texts(["some training text " * 9], ["held out " * 99])).to_str() == alone


def test_bpe_sample_takes_whole_texts_up_to_the_limit() -> None:
    pieces = ["aaaa bbbb " * 10, "cccc dddd " * 10, "eeee ffff " * 10]
    sampled = TrainBPE(vocab_size=400, sample_bytes=150).build(texts(pieces))
    assert sampled.to_str() == TrainBPE(vocab_size=400).build(texts(pieces[:2])).to_str()


@pytest.mark.parametrize(
    ("field", "value"), [("vocab_size", 256), ("min_frequency", 0), ("sample_bytes", -1)]
)
def test_bpe_refuses_nonsense(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value} must be at least"):
        TrainBPE(**{field: value})


@pytest.mark.parametrize("end_of_text", [False, True])
def test_characters(tmp_path: Path, end_of_text: bool) -> None:
    recipe = Characters(end_of_text=end_of_text)
    tokenizer = reloaded(recipe.build(texts(["hello\nworld", "é👩"], ["Z"])), tmp_path)
    alphabet = sorted(set("hello\nworldé👩Z"))
    assert vocabulary_size(tokenizer) == len(alphabet) + end_of_text
    ids = tokenizer.encode("hello\nworld é👩".replace(" ", ""), add_special_tokens=False).ids
    assert [alphabet[i] for i in ids] == list("hello\nworldé👩")
    assert tokenizer.decode(ids) == "hello\nworldé👩"
    lengths = byte_lengths(tokenizer)
    assert lengths[: len(alphabet)].tolist() == [len(c.encode()) for c in alphabet]
    assert lengths.sum() == sum(len(c.encode()) for c in alphabet)
    assert (recipe.boundary == END_OF_TEXT) == end_of_text
    with pytest.raises(Exception, match="UNK"):
        tokenizer.encode("?")


def test_tokenizer_file(tmp_path: Path, bpe: tokenizers.Tokenizer) -> None:
    file = tmp_path / "tokenizer.json"
    bpe.enable_truncation(3)
    bpe.enable_padding()
    bpe.save(str(file))
    bpe.no_truncation()
    bpe.no_padding()
    for path in (file, tmp_path):
        recipe = TokenizerFile(path=str(path))
        built = recipe.build(texts([]))
        text = "the cat sat on the mat and did not stop"
        assert built.encode(text).ids == bpe.encode(text).ids
        assert recipe.boundary == END_OF_TEXT
        assert len(str(recipe.provenance()["tokenizer_file"])) == 64
    with pytest.raises(ConfigError, match=r"end_of_text='<eos>' is not a token"):
        token_id(load_tokenizer(file), "<eos>")
    assert TokenizerFile(path=str(file), end_of_text="").boundary == ""


def test_missing_or_broken_tokenizer_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no tokenizer\.json"):
        TokenizerFile(path=str(tmp_path)).build(texts([]))
    with pytest.raises(DataError, match="there is no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_neighbour_dependent_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.CTC()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="decoder CTC is not supported"):
        byte_lengths(load_tokenizer(tmp_path))


def test_decoder_inside_a_sequence_is_recognised(bpe: tokenizers.Tokenizer) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(bpe.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([tokenizer.pre_tokenizer])
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    tokenizer.normalizer = normalizers.NFC()
    assert (byte_lengths(tokenizer) == byte_lengths(bpe)).all()
