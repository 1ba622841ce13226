"""Scores by lm-evaluation-harness while training, on the weights as they lie over the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl

from llm_train.context import Context
from llm_train.errors import ConfigError, check_at_least
from llm_train.evaluation.installed import missing_harness
from llm_train.evaluation.subject import Subject
from llm_train.run_state import TaskBase
from llm_train.trainer.callbacks.asking import Asks

if TYPE_CHECKING:
    from llm_train.evaluation.harness import Examination


class Harness(Asks):
    """Logs ``eval/TASK/METRIC`` every so many steps; needs the extra ``eval``.

    Args:
        tasks: names that lm-evaluation-harness knows, names in ``folder``, or YAML files.
        every: optimizer steps between two times; the last step is always one.
        folder: of YAML files with tasks; "": none.
        limit: most documents of each task; 0: all.
        examples: in each prompt; -1: as the task says.
        batch: texts of one forward; each rank has its own.
    """

    pause = "harness"

    def __init__(
        self,
        tasks: Sequence[str],
        every: int = 1000,
        folder: str = "",
        limit: int = 0,
        examples: int = -1,
        batch: int = 8,
    ) -> None:
        super().__init__(every)
        self.tasks = tuple(tasks)
        self.folder = folder
        self.limit = limit
        self.examples = examples
        self.batch = batch
        check_at_least(self, 1, "batch", prefix="Harness.")
        check_at_least(self, 0, "limit", prefix="Harness.", hint="; 0 takes all documents")
        check_at_least(self, -1, "examples", prefix="Harness.", hint="; -1 is the task's own")
        if not self.tasks:
            raise ConfigError("Harness.tasks is empty; name tasks, or remove Harness")
        self._examination: Examination | None = None  # until the run starts

    def problems(self, context: Context) -> Iterator[str]:
        """Also the package."""
        yield from super().problems(context)
        yield from missing_harness("trainer.callbacks: Harness")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Loads the tasks, so that one that cannot be had is refused before training."""
        super().on_fit_start(trainer, pl_module)
        from llm_train.evaluation.harness import Examination

        self._examination = Examination.of(
            self.tasks, folder=self.folder, limit=self.limit, examples=self.examples
        )

    def ask(self, trainer: pl.Trainer, task: TaskBase, subject: Subject) -> None:
        """Scores, and tells the loggers."""
        assert self._examination is not None, "the run has started"
        scores = self._examination.scores(subject, batch=self.batch)
        metrics = {f"eval/{name}": value for name, value in scores.items()}
        task.run_state.measured(trainer.global_step, metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
