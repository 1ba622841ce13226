"""Turns the content of a step into a checkpoint, in the thread that trains or alongside it.

What is unusual: the thread runs the very code that a synchronous save runs, over a process group of
its own, and reads nothing but a copy. So there is one order of events, whose every instant is safe:
staged, written by all ranks, listed and checksummed by rank 0, renamed. At most one save is under
way; who wants the next one waits for it.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_train.checkpoint.agreement import Ranks, SaveFailed
from llm_train.checkpoint.content import Content
from llm_train.checkpoint.store import CheckpointStore
from llm_train.errors import CheckpointError, LLMTrainError

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class Writer:
    """Writes one checkpoint at a time; every rank has a writer, and all write the same steps.

    Attributes:
        store: where checkpoints go.
        metadata: plain values to keep in each manifest.
        files: text files to keep in each checkpoint, by name.
        ranks: that write together.
        committed: called on rank 0 with each new checkpoint.
        saved: the step of the newest checkpoint, read or written; known on all ranks alike while
            none is under way.
    """

    store: CheckpointStore
    metadata: Mapping[str, Any]
    files: Mapping[str, str]
    ranks: Ranks = field(default_factory=Ranks)
    committed: Callable[[Path], None] = lambda path: None
    saved: int = 0
    _thread: threading.Thread | None = None
    _failure: BaseException | None = None

    def begin(self, content: Content) -> None:
        """Writes in a thread of its own; ``settle`` tells how it ended.

        The thread does not keep the process alive: when the run has ended in an error, and waited
        for as long as it wanted to, what is not complete is absent.
        """
        assert self._thread is None, "settle() comes between two saves"
        self._thread = threading.Thread(target=self._write_alongside, args=(content,), daemon=True)
        self._thread.start()

    def settle(self, seconds: float | None = None) -> None:
        """Waits for the save that is under way, if one is.

        Args:
            seconds: how long; None: until it has ended.

        Raises:
            LLMTrainError: it failed, on all ranks alike, and not for the file system's reasons.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if not self._thread.is_alive():
                self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _write_alongside(self, content: Content) -> None:
        try:
            self.try_to_write(content)
        except BaseException as error:
            self._failure = error

    def try_to_write(self, content: Content) -> None:
        """Writes; a disk may be full for an hour, so that what it refuses is only logged."""
        try:
            self.write(content)
        except SaveFailed as error:
            _log.warning("%s; training goes on, and the next save tries again", error)

    def write(self, content: Content) -> None:
        """Stages, fills and commits a checkpoint; all ranks raise if one of them cannot."""
        # Here, because a verb that saves nothing can do without what it imports.
        from torch.distributed.checkpoint.api import CheckpointException

        step = content.step
        # Nobody writes into the stage before rank 0 has emptied it.
        stage = self.ranks.on_main(lambda: self.store.stage(step))
        failure: BaseException | None = None
        try:
            content.write(stage, self.ranks.group)
        except LLMTrainError as error:  # of all ranks, and no fault of the disk
            self.store.drop_stage(step)
            raise CheckpointError(f"cannot save step {step}: {error}") from error
        # torch's writers raise RuntimeError for a short write; DCP's is the same on all ranks.
        except (OSError, RuntimeError, CheckpointException) as error:
            failure = error
        # No rank goes on before all have written, since the manifest lists what they wrote.
        if self.ranks.any(failure is not None):
            raise self.store.failure(step, failure) from failure
        self.ranks.on_main(lambda: self._finish(content, stage))
        self.saved = step

    def _finish(self, content: Content, stage: Path) -> None:
        with self.store.surfaced(content.step):
            content.finish(stage, self.files)
        self.committed(self.store.commit(content.step, {**self.metadata, **content.position}))
