from hashlib import sha256

import pytest

from llm_train.data import Document, HashSplit, Piece, Split, TailSplit
from llm_train.data.base import TRAIN
from llm_train.errors import ConfigError


def digest(text: str) -> bytes:
    return sha256(text.encode()).digest()[:16]


def divided(split: Split, documents: list[Document]) -> list[Piece]:
    [before] = split.survey([documents])
    whole = [Piece(TRAIN, *d, ends=True, digest=digest(d.text)) for d in documents]
    return list(split.divide(whole, before))


def numbered(count: int) -> list[Document]:
    return [Document(f"{i}.txt", f"text {i}") for i in range(count)]


def test_adding_a_document_moves_no_other() -> None:
    split = HashSplit(fraction=0.3)
    before = {p.key: p.split for p in divided(split, numbered(200))}
    more = [Document("new.txt", "new"), *reversed(numbered(200)), Document("copy", "text 7")]
    after = {p.key: p.split for p in divided(split, more)}
    del after["new.txt"]
    assert after.pop("copy") == before["7.txt"]
    assert before == after


def test_hash_split_holds_out_about_the_fraction() -> None:
    pieces = divided(HashSplit(fraction=0.2), numbered(5000))
    held_out = sum(piece.split == "held_out" for piece in pieces)
    # Four standard deviations of a binomial variable.
    assert abs(held_out - 1000) < 4 * (5000 * 0.2 * 0.8) ** 0.5
    assert all(piece.ends for piece in pieces)
    assert [piece.text for piece in pieces] == [document.text for document in numbered(5000)]


def test_a_larger_fraction_holds_out_more_of_the_same() -> None:
    small = {d.key for d in numbered(500) if HashSplit(fraction=0.1).held_out(digest(d.key))}
    large = {d.key for d in numbered(500) if HashSplit(fraction=0.3).held_out(digest(d.key))}
    assert small < large


def test_salt_and_zero() -> None:
    keys = [document.key for document in numbered(500)]
    one, two = ({k for k in keys if HashSplit(salt=s).held_out(digest(k))} for s in "ab")
    assert one != two
    assert not any(HashSplit(fraction=0.0).held_out(digest(key)) for key in keys)
    assert not HashSplit(fraction=0.0).holds_out


@pytest.mark.parametrize("length", [1, 9, 10, 99, 1115394])
def test_tail_split_cuts_one_file_as_published(length: int) -> None:
    text = ("abcdefghij" * (length // 10 + 1))[:length]
    pieces = divided(TailSplit(fraction=0.1), [Document("x", text)])
    sides = {piece.split: piece.text for piece in pieces}
    assert sides.get("train", "") == text[: int(0.9 * length)]
    assert sides["held_out"] == text[int(0.9 * length) :]


def test_tail_split_cuts_inside_a_document() -> None:
    documents = [Document("a", "aaaa"), Document("b", "bbbb"), Document("c", "cc")]
    pieces = [tuple(piece[:4]) for piece in divided(TailSplit(fraction=0.5), documents)]
    assert pieces == [
        ("train", "a", "aaaa", True),
        ("train", "b", "b", False),
        ("held_out", "b", "bbb", True),
        ("held_out", "c", "cc", True),
    ]


@pytest.mark.parametrize("split", [HashSplit, TailSplit])
@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fraction_is_a_fraction(split: type, fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction="):
        split(fraction=fraction)
