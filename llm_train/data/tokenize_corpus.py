"""The recipe: read, split, learn a tokenizer, encode, write.

A corpus consists of units. Each is read, divided and encoded by one process into files of its own,
and what follows from a unit does not depend on the others, so that any number of processes on any
number of machines may share the work, be killed, and go on. What all units need to know is found
out first, by one process; whoever sees the last unit finished merges them.
"""

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llm_train.context import Part
from llm_train.data.base import HELD_OUT, TRAIN, Corpus, Recipe, Split, Tokenizer
from llm_train.data.duplicates import Duplicates, KeepCopies
from llm_train.data.encode_unit import StoredUnit
from llm_train.data.merging import join_files, joined_split, references
from llm_train.data.reading import Assignment, Reading, Rules, Tally
from llm_train.data.recipe import ADDED_LATER, NO_EFFECT_ON_TOKENS, recipe_dict
from llm_train.data.shards import TOKEN_BYTES, TOKENIZER, describe_file, dtype_for
from llm_train.data.sharing import Claims, UnitWorker, available_cores
from llm_train.data.split import HashSplit
from llm_train.data.start import START, Start, check_sides, dropped, find_out, placed
from llm_train.data.token_manifest import FILE_NAME, VERSION, Manifest, StoredSplit
from llm_train.errors import ConfigError, DataError, check_at_least
from llm_train.runtime import disk
from llm_train.runtime.forked import run_forked
from llm_train.runtime.launch import find_launch

_log = logging.getLogger(__name__)
_IDENTITY = "recipe.json"


@dataclass(frozen=True, kw_only=True)
class Tokenize(Recipe):
    """Turns a corpus into token shards.

    Attributes:
        corpus: the text.
        tokenizer: how text becomes ids.
        split: what is held out of the corpus.
        held_out: further held-out sets by name, each with a corpus of its own. Documents of
            ``corpus`` that are the same as one of these, byte for byte, are not trained on.
        duplicates: which copies in ``corpus`` are left out, the first of several excepted.
        workers: processes; 0 means one per available core. Does not change the tokens.
        shard_tokens: tokens per file, at most; each unit of about 64 MiB has files of its own.
        max_skipped: part of the documents that may be unreadable. What filters leave out, empty
            documents and copies do not count.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    split: Split
    held_out: dict[str, Corpus] = field(default_factory=dict, metadata=ADDED_LATER)
    duplicates: Duplicates = field(default_factory=KeepCopies, metadata=ADDED_LATER)
    workers: int = field(default=0, metadata=NO_EFFECT_ON_TOKENS)
    shard_tokens: int = 100_000_000
    max_skipped: float = field(default=0.01, metadata=NO_EFFECT_ON_TOKENS)

    def __post_init__(self) -> None:
        check_at_least(self, 0, "workers", hint=" (0: one per core)")
        check_at_least(self, 1, "shard_tokens")
        check_at_least(self, 0, "max_skipped", hint=": a part of the documents, 0.01 for 1 percent")
        for name in self.held_out:
            if name in (TRAIN, HELD_OUT) or not name.replace("_", "").isalnum():
                raise ConfigError(
                    f"held_out.{name} must be a name of letters, digits and _ other than {TRAIN} "
                    f"and {HELD_OUT}; rename it"
                )

    def parts(self) -> Iterator[Part]:
        """Corpora, tokenizer, split and the rule on copies."""
        yield from (self.corpus, self.tokenizer, self.split, self.duplicates)
        yield from self.held_out.values()

    @property
    def boundary(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.boundary

    def provenance(self) -> dict[str, str | int]:
        """Of corpora and tokenizer."""
        further = {
            f"held_out.{name}.{key}": value
            for name, corpus in self.held_out.items()
            for key, value in corpus.provenance().items()
        }
        return {**self.corpus.provenance(), **further, **self.tokenizer.provenance()}

    def content(self) -> str:
        """The hash of all documents, which are read for it."""
        tasks = self.tasks()
        copies = dropped(self.duplicates, (task for task in tasks if not task.held_out))
        rules = Rules(split=HashSplit(fraction=0.0), dropped=copies)
        return _joined(_content(task, rules) for task in tasks)

    def write(self, directory: Path, progress: bool) -> None:
        """Does this process's share of the work, and returns when all of it is done.

        Raises:
            DataError: a side of the split has no text, or too much cannot be read.
        """
        claims, tasks = Claims(directory), self.tasks()
        provenance = self.provenance()
        self._identify(directory, claims, {"recipe": recipe_dict(self), "provenance": provenance})
        hidden = not progress or find_launch().rank > 0
        with (
            logging_redirect_tqdm(),  # lines above the bar
            # Not before a second is over: most errors come earlier, and have no bar before them.
            tqdm(unit="B", unit_scale=True, disable=hidden, delay=1) as bar,
        ):

            def start() -> None:
                bar.set_description_str("reading", refresh=False)  # the other has two colons
                find = partial(find_out, self, tasks, directory)
                for message in run_forked([find], idle=lambda: claims.beat("start")):
                    _show(message, bar)

            claims.once("start", (directory / START).exists, start)
            found = Start.load(directory)
            bar.reset()
            bar.set_description_str("encoding")
            share = UnitWorker(
                directory=directory,
                tasks=placed(tasks, found.before),
                split=self.split,
                start=found,
                shard_tokens=self.shard_tokens,
            )
            workers = min(self.workers or available_cores(), len(share.missing()))
            work = [partial(share.work, number) for number in range(workers)]
            for message in run_forked(work, idle=bar.refresh):
                _show(message, bar)

        def merge() -> None:
            units = list(map(partial(_finished, directory), tasks))
            self._merge(directory, units, provenance, found.end_of_text)

        def is_complete() -> bool:
            """Whether it was merged, and perhaps has its name already."""
            return (directory / FILE_NAME).exists() or not directory.exists()

        claims.once("merge", is_complete, merge)

    def _merge(
        self,
        directory: Path,
        units: Sequence[StoredUnit],
        provenance: dict[str, str | int],
        end_of_text: int,
    ) -> None:
        """Writes what all units have in common, the manifest last."""
        tally = Tally.total(unit.tally for unit in units)
        tally.require_readable(self.max_skipped)
        # The sides that must have text; compressors are given the first that is held out.
        names = [TRAIN, *([HELD_OUT] if self.split.holds_out else []), *self.held_out]
        splits = {name: joined_split(units, name) for name in names}
        self._check(splits)
        lengths = np.load(directory / TOKEN_BYTES, allow_pickle=False)
        others = [describe_file(directory / name) for name in (TOKENIZER, TOKEN_BYTES)]
        for name in names:
            others += join_files(directory, units, name)
        Manifest(
            version=VERSION,
            dtype=dtype_for(lengths.size),
            vocab_size=lengths.size,
            end_of_text=end_of_text,
            splits=splits,
            others=others,
            recipe=recipe_dict(self),
            provenance=provenance,
            skipped=dict(sorted(tally.skipped.items())),
            references=references(directory, units, "".join(names[1:2])),
            examples=dict(sorted(tally.examples.items())),
            encoder=", ".join(sorted({unit.encoder for unit in units})),
            content=_joined(unit.content for unit in units),
        ).save(directory)

    def tasks(self) -> list[Assignment]:
        """All units, numbered."""
        corpora = {"": self.corpus, **self.held_out}
        units = [(name, each, unit) for name, each in corpora.items() for unit in each.units()]
        return [
            Assignment(number=number, corpus=corpus, unit=unit, held_out=name)
            for number, (name, corpus, unit) in enumerate(units)
        ]

    def _identify(self, directory: Path, claims: Claims, wanted: dict[str, object]) -> None:
        """Empties the directory of what another recipe, or other text, has left there."""
        path = directory / _IDENTITY

        def is_ours() -> bool:
            try:
                return bool(json.loads(path.read_bytes()) == wanted)
            except (OSError, ValueError):
                return False

        def empty() -> None:
            if claims.alive(besides="recipe"):
                raise ConfigError(
                    f"another process is preparing {directory} by another recipe, or from other "
                    "text; wait for it to finish, or choose another path"
                )
            mine = claims.path("recipe")
            for leftover in directory.iterdir():
                if leftover != mine:
                    leftover.unlink()
            disk.write_manifest(path, wanted)

        claims.once("recipe", is_ours, empty)

    def _check(self, splits: dict[str, StoredSplit]) -> None:
        documents = {name: split.documents for name, split in splits.items() if split.tokens}
        check_sides(self.split, documents)
        for name in self.held_out:
            if name not in documents:
                raise DataError(f"held_out.{name} has no text; check its paths")
        for name, split in splits.items():
            if split.text_bytes != split.decoded_bytes:
                _log.warning(
                    "%s: the tokens of %d bytes of text decode to %d bytes; the tokenizer changes "
                    "its input, and bits per byte are not comparable with other tokenizers'",
                    name,
                    split.text_bytes,
                    split.decoded_bytes,
                )


def _show(message: object, bar: "tqdm[NoReturn]") -> None:
    """What a process sends: characters it has done, or a warning."""
    if isinstance(message, int):
        bar.update(message)
    else:
        _log.warning("%s", message)


def _finished(directory: Path, task: Assignment) -> StoredUnit:
    stored = StoredUnit.load(directory, task)
    if stored is None:
        raise DataError(
            f"{task.unit.name} changed while it was prepared; run the same command again"
        )
    return stored


def _joined(contents: Iterable[str]) -> str:
    """Hash of all documents, from those of units."""
    return sha256("\n".join(contents).encode()).hexdigest()


def _content(task: Assignment, rules: Rules) -> str:
    reading = Reading(task=task, rules=rules)
    deque(reading.pieces(), maxlen=0)
    return reading.content.hexdigest()
