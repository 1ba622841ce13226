"""A folder of checkpoints in which each one is complete or absent, whatever kills the process.

Nothing here knows tensors: a writer fills a staging directory, ``commit`` makes it a checkpoint.
What is unusual is how names change, since a rename is the only atomic step a file system offers:

* new: ``.staging-step-00000200`` -> ``step-00000200``, once every byte is on the disk;
* removed: ``step-00000200`` -> ``.deleting-step-00000200``, and only then deleted;
* replaced (the same step saved again): staging -> ``step-00000200.new``, the old one to its
  ``.deleting-`` name, ``.new`` -> ``step-00000200``. A name ending in ``.new`` is a checkpoint like
  any other, so that at no moment does the folder lack a complete one.

"Newest" means last committed, not highest step: a run that went back from step 400 to 200 and saved
step 300 continues from 300. One process (rank 0) writes; any number may read.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llm_train.checkpoint import manifest
from llm_train.checkpoint.agreement import SaveFailed, reason_of
from llm_train.checkpoint.best import Best
from llm_train.checkpoint.manifest import CheckpointManifest
from llm_train.errors import CheckpointError, LLMTrainError
from llm_train.runtime import disk

_log = logging.getLogger(__name__)
_NAME = re.compile(r"^step-([0-9]{8,})(\.new)?$")


class Entry(NamedTuple):
    """One checkpoint, here or elsewhere; sorts by when it was committed, damaged ones first."""

    sequence: int  # -1: the manifest cannot be read
    step: int
    path: Path


@dataclass(frozen=True)
class Found:
    """The checkpoint to continue from, and what was passed over to get to it.

    Attributes:
        path: checkpoint directory, or None when there is none to continue from.
        skipped: newer directories that are incomplete or damaged, each with the reason.
    """

    path: Path | None
    skipped: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: the folder that holds them, usually ``<run directory>/checkpoints``.
        keep_last: how many of the newest to keep; at least 1.
        keep_every: steps; checkpoints at multiples are kept for ever. 0: none.
        require: raises once the run may no longer write here.
        in_use: whether a checkpoint is still needed, whatever the rules say.
        best: which one is kept for what it scored.
    """

    root: Path
    keep_last: int = 2
    keep_every: int = 0
    require: Callable[[], object] = lambda: None
    in_use: Callable[[Path], bool] = lambda path: False
    best: Best = Best()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        assert self.keep_last > 0, "settings refuse to delete every checkpoint"

    def stage(self, step: int) -> Path:
        """Makes an empty staging directory for ``step``.

        Raises:
            CheckpointError: the directory cannot be made.
        """
        staging = self._staging(step)
        with self.surfaced(step):
            self.require()
            disk.discard(staging)
            staging.mkdir(parents=True)
        return staging

    def commit(self, step: int, metadata: Mapping[str, Any]) -> Path:
        """Turns the staging directory of ``step`` into a checkpoint, then prunes older ones.

        Args:
            step: the step given to ``stage``.
            metadata: JSON values kept in the manifest.

        Raises:
            CheckpointError: it could not be written; the checkpoints of before are untouched, and
                the staging directory is removed to give its space back.
        """
        staging, final = self._staging(step), self.root / _name(step)
        assert not (staging / manifest.NAME).exists(), f"{manifest.NAME} is the store's own name"
        try:
            with self.surfaced(step):
                self._finish_replacements()
                sequence = max((entry.sequence for entry in self._entries()), default=-1) + 1
                files = manifest.record_files(staging)
                about = CheckpointManifest(sequence=sequence, metadata=dict(metadata), files=files)
                manifest.write(staging, about)
                self.require()
                disk.rename(staging, final.with_suffix(".new") if os.path.lexists(final) else final)
                self._finish_replacements()
        finally:  # after a failure; else it has another name by now
            with suppress(LLMTrainError):  # the run that took over may be saving the same step
                self.require()
                shutil.rmtree(staging, ignore_errors=True)
        self.best.link(self.root, [path for _, path in self.committed()], final)
        self._prune()
        return final

    def adopt(self, step: int) -> None:
        """Turns a stage that holds a checkpoint already, with its manifest, into one of these."""
        final = self.root / _name(step)
        manifest.record_files(self._staging(step))  # to the disk
        disk.replace(self._staging(step), final, self._grave(final))

    def drop_stage(self, step: int) -> None:
        """Gives the space of a stage back; nothing happens where there is none any more."""
        shutil.rmtree(self._staging(step), ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps of the checkpoint directories present, ascending, damaged ones included."""
        return sorted({entry.step for entry in self._entries()})

    def newest(self) -> Found:
        """The last committed checkpoint that is complete, checksums included."""
        skipped: list[tuple[Path, str]] = []
        complete: Entry | None = None
        for entry in reversed(self._entries()):
            # Without a manifest, the step is all that says which of two is newer.
            if complete and (entry.sequence >= 0 or entry.step <= complete.step):
                continue
            if found := manifest.problems(entry.path):
                skipped.append((entry.path, manifest.summary(found)))
            else:
                complete = entry
        return Found(complete and complete.path, skipped)

    def outdated(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of ``entries``, oldest first, that the rules do not keep."""
        every = self.keep_every
        rest = [e for e in entries[: -self.keep_last] if not (every and e.step % every == 0)]
        return [e for e in rest if not self.best.is_linked(self.root / _name(e.step))]

    def committed(self) -> list[tuple[int, Path]]:
        """Step and path of every checkpoint, the last committed first, damaged ones included."""
        return [(entry.step, entry.path) for entry in reversed(self._entries())]

    def resolve(self, where: str | Path) -> Found:
        """Finds the checkpoint that ``--resume where`` asks for.

        Args:
            where: ``"auto"`` for the newest complete one of this store, or none when the store is
                empty; else a checkpoint directory, or a run or checkpoints folder to take the
                newest of.

        Raises:
            CheckpointError: there are checkpoints but none is complete, or the path has none.
        """
        path = Path(where)
        if where == "auto":
            path, found = self.root, self.newest()
            if not found.skipped:
                return found
        elif not path.is_dir():
            raise CheckpointError(
                f"{path} does not exist or is not a directory; give a checkpoint, a run directory "
                "or its checkpoints folder"
            )
        elif (path / manifest.NAME).exists() or _NAME.match(Path(os.path.abspath(path)).name):
            problems = manifest.problems(path)
            found = Found(None, [(path, manifest.summary(problems))]) if problems else Found(path)
        else:
            inner = path / "checkpoints"
            found = CheckpointStore(inner if inner.is_dir() else path).newest()
        if found.path is None:
            listed = ", ".join(f"{skipped.name} ({reason})" for skipped, reason in found.skipped)
            remedy = "take another one, or auto for the newest complete one"
            if where == "auto":
                remedy = "fit without --resume starts over"
            raise CheckpointError(
                f"{path} holds no complete checkpoint; found: {listed or 'nothing'}; {remedy}"
            )
        return found

    def clean(self) -> None:
        """Removes what interrupted saves and deletions left, and finishes interrupted replacements.

        Only the process that writes may call it, and not while it is saving. What cannot be removed
        is somebody else's and in nobody's way.

        Raises:
            CheckpointError: the folder can hold no checkpoint now.
        """
        if os.path.lexists(self.root) and not self.root.is_dir():
            raise CheckpointError(
                f"{self.root} is not a folder, or a link to one that does not exist; make or mount "
                "what it leads to, or remove it"
            )
        self._finish_replacements()
        for path in (*self.root.glob(".staging-*"), *self.root.glob(".deleting-*")):
            try:
                disk.discard(path)
            except OSError as error:
                _log.warning("cannot remove %s, which an interrupted save left: %s", path, error)
        if self.root.is_dir():  # else it is made in a folder that the run writes to anyway
            probe = self.root / ".staging-probe"
            try:
                probe.mkdir()
                probe.rmdir()
            except OSError as error:
                raise CheckpointError(
                    f"no checkpoint can be saved in {self.root}: {error}"
                ) from None

    def _entries(self) -> list[Entry]:
        """Every directory with a checkpoint's name, oldest first."""
        entries: list[Entry] = []
        for path in self.root.glob("step-*"):
            # A link that leads nowhere now, to a disk that is not mounted, is a damaged checkpoint.
            if (match := _NAME.match(path.name)) and (path.is_dir() or path.is_symlink()):
                sequence = -1
                with suppress(CheckpointError):
                    sequence = manifest.read(path).sequence
                entries.append(Entry(sequence, int(match[1]), path))
        return sorted(entries)

    def _finish_replacements(self) -> None:
        for path in sorted(self.root.glob("step-*.new")):
            final = path.with_suffix("")
            disk.replace(path, final, self._grave(final))

    def _prune(self) -> None:
        """Deletes what the rules do not keep; a failure is logged, for the new one is in place."""
        for entry in self.outdated(self._entries()):
            # Somebody has given a link's checkpoint a home.
            if entry.path.is_symlink() or self.in_use(entry.path):
                continue
            try:
                disk.remove(entry.path, self._grave(entry.path))
            except OSError as error:
                _log.warning("cannot delete the old checkpoint %s: %s", entry.path, error)

    def _staging(self, step: int) -> Path:
        return self.root / f".staging-{_name(step)}"

    def _grave(self, path: Path) -> Path:
        return self.root / f".deleting-{path.name}"

    @contextmanager
    def surfaced(self, step: int) -> Iterator[None]:
        """Turns an error of the file system into one line, and gives the stage's space back.

        Raises:
            CheckpointError: there was one.
        """
        try:
            yield
        except OSError as error:
            self.require()  # where the folder was lost, that is the cause
            raise self.failure(step, error) from error

    def failure(self, step: int, error: BaseException | None) -> SaveFailed:
        """Removes the stage of a save that failed, and says why and what is left.

        Args:
            step: of the save.
            error: why; None: another process knows.
        """
        space = ""
        with suppress(OSError):  # while the stage still takes some
            space = f" ({shutil.disk_usage(self.root).free / 2**20:,.1f} MiB free)"
        self.drop_stage(step)
        return SaveFailed(
            f"cannot save step {step} in {self.root}{space}: {reason_of(error)}; "
            "the checkpoints saved before are untouched"
        )


def _name(step: int) -> str:
    return f"step-{step:08d}"
