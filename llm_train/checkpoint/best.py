"""The checkpoint of a folder that scored best, kept and linked as ``best``.

The scores stand in the manifests, so that a run that resumes knows them. A link that leads to a
checkpoint is a checkpoint for whoever reads: ``llm-train export RUN/checkpoints/best``.
"""

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm_train.checkpoint import manifest
from llm_train.errors import CheckpointError

NAME = "best"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """What is kept for its score.

    Attributes:
        metric: by its name in metrics.jsonl; "": nothing is.
        highest: whether the highest value is the best, else the lowest.
    """

    metric: str = ""
    highest: bool = False

    def link(self, root: Path, paths: Iterable[Path], newest: Path) -> None:
        """Lets ``best`` lead to the best of ``paths``; warns where none has a score."""
        if not self.metric:
            return
        found = {path: _metrics(path) for path in paths}
        scores = {path: each[self.metric] for path, each in found.items() if self.metric in each}
        if not scores:
            known = ", ".join(sorted(_metrics(newest))) or "nothing"
            _log.warning(
                "checkpoint.best=%s: no checkpoint has that metric yet; that of %s "
                "measured %s; let validate_every and checkpoint.every meet",
                *(self.metric, newest.name, known),
            )
            return
        best = (max if self.highest else min)(scores, key=lambda path: scores[path])
        try:
            aside = root / f".{NAME}"
            aside.unlink(missing_ok=True)
            aside.symlink_to(best.name)
            os.replace(aside, root / NAME)
        except OSError as error:
            _log.warning("cannot link %s as the best checkpoint: %s", best, error)

    def is_linked(self, path: Path) -> bool:
        """Whether ``best`` leads to a checkpoint."""
        link = path.with_name(NAME)
        return link.is_symlink() and os.readlink(link) == path.name


def _metrics(path: Path) -> dict[str, float]:
    with suppress(CheckpointError):
        return dict(manifest.read(path).metadata.get("metrics", {}))
    return {}
