"""Which process does what, where processes of any number of machines share a directory.

Each takes the next unit that nobody has claimed, until none is left. A claim saves work and decides
nothing: whoever does the same piece twice writes the same bytes, and gives them their name in one
step. So a holder that is silent for too long is simply replaced.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm_train.data.base import Split
from llm_train.data.encode_unit import Encoding, encode_unit, unit_file
from llm_train.data.reading import Assignment
from llm_train.data.start import Start
from llm_train.data.tokenizer import encoders
from llm_train.runtime.forked import Send
from llm_train.runtime.lease import STALE_SECONDS, LeaseHolder, clock_of, holder_of

_BEAT_SECONDS = 5.0
_LOOK_SECONDS = 0.2
_PATTERN = ".*.claim"


class Claims:
    """The claims in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._beaten = 0.0

    def take(self, name: str) -> bool:
        """Claims a piece of work, unless somebody who is alive has it."""
        for _ in range(2):
            try:
                LeaseHolder.sign(self.path(name))
                return True
            except FileNotFoundError:  # the directory was finished and got its name
                return False
            except FileExistsError:
                if not self._abandoned(self.path(name)):
                    return False
                self.drop(name)
        return False

    def beat(self, name: str) -> None:
        """Shows that whoever claimed the work is alive; to be called often."""
        if time.monotonic() - self._beaten > _BEAT_SECONDS:
            self._beaten = time.monotonic()
            with suppress(OSError):
                os.utime(self.path(name))

    def drop(self, name: str) -> None:
        """Lets a piece of work go."""
        self.path(name).unlink(missing_ok=True)

    def once(self, name: str, done: Callable[[], bool], work: Callable[[], None]) -> None:
        """Returns when the work is done, by whatever process, or the directory is gone."""
        while not done() and self._directory.exists():
            if not self.take(name):
                time.sleep(_LOOK_SECONDS)
                continue
            try:
                if not done():
                    work()
            finally:
                self.drop(name)

    def alive(self, besides: str = "") -> bool:
        """Whether any claim but one has a holder that may be alive; one just killed may not."""
        deadline = time.monotonic() + 1.0
        while not all(
            map(self._abandoned, {*self._directory.glob(_PATTERN)} - {self.path(besides)})
        ):
            if time.monotonic() > deadline:
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def path(self, name: str) -> Path:
        """The file of a claim."""
        return self._directory / f".{name}.claim"

    def _abandoned(self, path: Path) -> bool:
        try:
            silent = clock_of(path.parent) - path.stat().st_mtime
            return silent > STALE_SECONDS or holder_of(path).gone
        except FileNotFoundError:
            return True


@dataclass(frozen=True, kw_only=True)
class UnitWorker:
    """Work that any number of processes share.

    Attributes:
        directory: where units go.
        tasks: all units.
        split: what is held out.
        start: what was found out before.
        shard_tokens: tokens per file.
    """

    directory: Path
    tasks: Sequence[Assignment]
    split: Split
    start: Start
    shard_tokens: int

    def missing(self) -> list[Assignment]:
        """Units that nobody has finished."""
        try:
            names = set(os.listdir(self.directory))
        except FileNotFoundError:  # all were finished, merged, and got their name
            return []
        return [t for t in self.tasks if unit_file(self.directory, t.number).name not in names]

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
        sample, end_of_text = self.start.sample, self.start.end_of_text
        encoding = Encoding(self.directory, sample, end_of_text, self.shard_tokens)
        rules, claims = self.start.rules(self.split), Claims(self.directory)
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
                        encode_unit(self.directory, task, rules, encoding, seen)
                        done += 1
                finally:
                    claims.drop(name)
            if not done:
                time.sleep(_LOOK_SECONDS)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
