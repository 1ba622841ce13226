"""What must be known before the first unit is encoded, in the order in which it may turn out bad.

First a look at the first documents, which ends a preparation whose text cannot be read before an
hour is spent on it; then what the split has to count, the hashes of held-out text, and duplicates;
then the tokenizer. All of it is kept in ``start.json``, so that it is found out once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers

from llm_train.data.base import HELD_OUT, NO_TOKEN, TRAIN, Piece, Split, Texts
from llm_train.data.duplicates import Duplicates
from llm_train.data.reading import Assignment, Reading, Rules, Tally
from llm_train.data.shards import TOKEN_BYTES, TOKENIZER
from llm_train.data.split import HashSplit
from llm_train.data.tokenizer import tokenizer_file
from llm_train.errors import DataError
from llm_train.runtime import disk
from llm_train.runtime.forked import Send

if TYPE_CHECKING:
    from llm_train.data.tokenize_corpus import Tokenize

START = "start.json"
_LOOK_DOCUMENTS = 2000
_LOOK_CHARACTERS = 16 << 20
_SAMPLE_CHARACTERS = 1 << 18
_SAMPLE_DOCUMENT = 1 << 13


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was found out.

    Attributes:
        dropped: reasons by key of copies to leave out.
        before: of the split, for each unit of the corpus.
        held_out: hashes, in hexadecimal, of texts that are not trained on.
        end_of_text: the id after each document; -1 appends none.
        sample: pieces of text to choose an encoder by.
    """

    dropped: dict[str, str]
    before: list[int]
    held_out: list[str]
    end_of_text: int
    sample: list[str]

    @classmethod
    def load(cls, directory: Path) -> Start:
        """What ``find_out`` has saved."""
        return cls(**json.loads((directory / START).read_bytes()))

    def rules(self, split: Split) -> Rules:
        """For reading units."""
        held_out = frozenset(map(bytes.fromhex, self.held_out))
        return Rules(split=split, dropped=self.dropped, held_out=held_out)


def placed(tasks: Sequence[Assignment], before: Iterable[int]) -> list[Assignment]:
    """The tasks with what the split has to know of those that it divides."""
    numbers = iter(before)
    return [task if task.held_out else replace(task, before=next(numbers)) for task in tasks]


def find_out(recipe: Tokenize, given: Sequence[Assignment], directory: Path, send: Send) -> None:
    """Looks, counts and learns, and writes tokenizer, byte lengths and ``start.json``.

    Args:
        recipe: what is prepared.
        given: its units, those of held-out sets included.
        directory: where to.
        send: given the characters that were read, and what somebody should be warned of.

    Raises:
        DataError: text that cannot be read, or none on a side that should have some.
    """
    rules = Rules(split=recipe.split)
    divided = [task for task in given if not task.held_out]
    sample, whole = _look(divided, rules, recipe.max_skipped)
    _look_at_held_out(given, rules)
    copies = dropped(recipe.duplicates, divided)
    rules = replace(rules, dropped=copies)
    units = [Reading(task=task, rules=rules).documents() for task in divided]
    before = recipe.split.survey(units)
    tasks = placed(given, before)
    # Of these, the corpus may hold copies on the training side.
    asked = [task for task in tasks if task.held_out or not rules.split.by_content]
    apart = (piece for piece in _pieces(asked, rules) if piece.split != TRAIN and piece.digest)
    held_out = sorted({piece.digest for piece in apart})
    rules = replace(rules, held_out=frozenset(held_out))
    if whole:
        check_sides(recipe.split, Counter(piece.split for piece in _pieces(tasks, rules)))

    def texts(tasks: Iterable[Assignment], only: str = "") -> Iterator[str]:
        for piece in _pieces(tasks, rules):
            if not only or piece.split == only:
                yield piece.text
                send(len(piece.text))

    passes = Texts(train=lambda: texts(tasks, TRAIN), everything=lambda: texts(tasks))
    built = recipe.tokenizer.build(passes)
    end_of_text = _keep(built, recipe.tokenizer.boundary, directory)
    kept = tokenizer_file.load_tokenizer(directory / TOKENIZER)
    if changed := tokenizer_file.changed_texts(kept, sample):
        send(changed)
    found = Start(
        dropped=copies,
        before=list(before),
        held_out=[digest.hex() for digest in held_out],
        end_of_text=end_of_text,
        sample=sample,
    )
    disk.write_manifest(directory / START, asdict(found))


def dropped(duplicates: Duplicates, tasks: Iterable[Assignment]) -> dict[str, str]:
    """Reasons by key of the documents of a corpus that are copies of others."""
    rules = Rules(split=HashSplit())  # which is not asked
    readings = (Reading(task=task, rules=rules) for task in tasks)
    return duplicates.survey(chain.from_iterable(each.documents() for each in readings))


def _look(tasks: Iterable[Assignment], rules: Rules, most: float) -> tuple[list[str], bool]:
    """A sample of the first documents, and whether these were all."""
    seen, sample, room = 0, list[str](), _SAMPLE_CHARACTERS
    readings = [Reading(task=task, rules=rules) for task in tasks]
    documents = chain.from_iterable(reading.documents() for reading in readings)
    whole = True
    for number, document in enumerate(documents, start=1):
        seen += len(document.text)
        if room > 0:
            sample.append(document.text[: min(room, _SAMPLE_DOCUMENT)])
            room -= len(sample[-1])
        if number >= _LOOK_DOCUMENTS or seen >= _LOOK_CHARACTERS:
            whole = False
            break
    Tally.total(reading.tally for reading in readings).require_readable(most)
    return sample, whole


def _look_at_held_out(tasks: Sequence[Assignment], rules: Rules) -> None:
    """Refuses a held-out set without any text before an hour is spent on the rest."""
    for name in dict.fromkeys(task.held_out for task in tasks if task.held_out):
        readings = [Reading(task=task, rules=rules) for task in tasks if task.held_out == name]
        if not any(next(reading.documents(), None) for reading in readings):
            tally = Tally.total(reading.tally for reading in readings)
            tally.require_readable(0.0, f"held_out.{name}")


def _pieces(tasks: Iterable[Assignment], rules: Rules) -> Iterator[Piece]:
    return chain.from_iterable(Reading(task=task, rules=rules).pieces() for task in tasks)


def check_sides(split: Split, counts: Mapping[str, int]) -> None:
    """Refuses a split of which one side is empty.

    Raises:
        DataError: with what to write instead.
    """
    sides = {"training text": TRAIN, **({"held-out text": HELD_OUT} if split.holds_out else {})}
    for side, name in sides.items():
        if not counts.get(name):
            if name == TRAIN and counts and HELD_OUT not in counts:
                raise DataError(
                    "no training text is left: a document that is also in a set of "
                    "data.recipe.init_args.held_out is not trained on; name other text there"
                )
            raise DataError(
                f"data.recipe.init_args.split leaves no {side}: {sum(counts.values())} documents "
                "are on the other side. Cut the text itself with split: {class_path: "
                "TailSplit, init_args: {fraction: 0.1}}, or hold nothing out of it with "
                "{class_path: HashSplit, init_args: {fraction: 0}} and name held-out text under "
                "data.recipe.init_args.held_out"
            )


def _keep(built: tokenizers.Tokenizer, boundary: str, directory: Path) -> int:
    """Saves the tokenizer and its byte lengths; returns the id of the boundary token."""
    with disk.written(directory / TOKENIZER) as aside:
        built.save(str(aside))
    # Look at what will be loaded later, not at the object that was trained.
    tokenizer = tokenizer_file.load_tokenizer(directory / TOKENIZER)
    with open(directory / TOKEN_BYTES, "wb") as file:
        np.save(file, tokenizer_file.byte_lengths(tokenizer, boundary))
    return tokenizer_file.token_id(tokenizer, boundary) if boundary else NO_TOKEN
