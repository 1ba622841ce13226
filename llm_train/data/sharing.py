"""The loop of a process that encodes units: it takes the next that nobody has, until none is left.

Processes on this machine and on others are alike; all they share is the directory.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_train.data.claims import Claims
from llm_train.data.encode_unit import Encoding, encode_unit, unit_file
from llm_train.data.encoding import Cutter
from llm_train.data.reading import Assignment, Rules
from llm_train.data.shards import TOKEN_BYTES, TOKENIZER
from llm_train.data.tokenizer import encoders
from llm_train.data.tokenizer.tokenizer_file import load_tokenizer
from llm_train.runtime.forked import Send

_LOOK_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class UnitWorker:
    """Work that any number of processes share.

    Attributes:
        directory: where units go.
        tasks: all units.
        rules: what decides on documents.
        end_of_text: the id after each document.
        sample: text to choose an encoder by.
        shard_tokens: tokens per file.
    """

    directory: Path
    tasks: Sequence[Assignment]
    rules: Rules
    end_of_text: int
    sample: Sequence[str]
    shard_tokens: int

    def missing(self) -> list[Assignment]:
        """Units that nobody has finished, held-out sets first: a snapshot needs some of each."""
        try:
            names = set(os.listdir(self.directory))
        except FileNotFoundError:  # all were finished, merged, and got their name
            return []
        left = [t for t in self.tasks if unit_file(self.directory, t.number).name not in names]
        return sorted(left, key=lambda task: not task.held_out)

    def work(self, number: int, send: Send) -> None:
        """Encodes units, as one of several processes of this command.

        Args:
            number: of the process.
            send: told the characters that were done.
        """
        # One thread each: there is a process for each core.
        os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
        if number:
            logging.getLogger(encoders.__name__).setLevel(logging.WARNING)  # one says it for all
        encoding, claims = self._encoding(), Claims(self.directory)
        while missing := self.missing():
            done = 0
            for task in missing:
                name = unit_file(self.directory, task.number).stem
                if not claims.take(name):
                    continue

                def seen(size: int, name: str = name) -> None:
                    claims.beat(name)
                    send(size)

                try:
                    if not unit_file(self.directory, task.number).exists():
                        encode_unit(self.directory, task, self.rules, encoding, seen)
                        done += 1
                finally:
                    claims.drop(name)
            if not done:
                time.sleep(_LOOK_SECONDS)

    def _encoding(self) -> Encoding:
        path = self.directory / TOKENIZER
        return Encoding(
            encoder=encoders.choose_encoder(path, self.sample),
            cutter=Cutter.of(load_tokenizer(path)),
            lengths=np.load(self.directory / TOKEN_BYTES, allow_pickle=False),
            end_of_text=self.end_of_text,
            shard_tokens=self.shard_tokens,
        )


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
