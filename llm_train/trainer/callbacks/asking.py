"""What callbacks have in common that put questions to the network every so many steps.

Training does not notice: the weights are those that validations score, the random state is put
back, and the time counts as a pause. All ranks ask together (``llm_train.evaluation.subject``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import lightning.pytorch as pl
from tokenizers import Tokenizer

from llm_train.context import Context, Part
from llm_train.data.module import data_of
from llm_train.errors import ConfigError, check_at_least
from llm_train.evaluation.subject import Subject
from llm_train.run_state import TaskBase, task_of
from llm_train.runtime.random_state import random_state, set_random_state
from llm_train.trainer.callbacks.averaging import scored_weights
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.strategy.base import require_strategy


class Asks(Part, EachStep):
    """Base of callbacks that ask every ``every`` steps, and after the last one."""

    pause: ClassVar[str]
    """What the time is called that asking takes."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        check_at_least(self, 1, "every", prefix=f"{type(self).__name__}.", hint=" optimizer step")
        self._tokenizer: Tokenizer | None = None  # until the run starts

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the data."""
        assert self._tokenizer is not None, "the run has started"
        return self._tokenizer

    @abstractmethod
    def ask(self, trainer: pl.Trainer, task: TaskBase, subject: Subject) -> None:
        """Asks, on all ranks."""

    def problems(self, context: Context) -> Iterator[str]:
        """Ranks that each hold a part of every position, or another network each."""
        if context.strategy.tensor > 1 or not context.strategy.one_model:
            yield (
                f"trainer.callbacks: {type(self).__name__} asks the whole network at single "
                f"positions, which {context.strategy.name} has on no rank; ask checkpoints with "
                "llm-train generate and eval instead, and remove it"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the tokenizer before anything is trained.

        Raises:
            ConfigError: the data have none.
        """
        text = data_of(trainer).source.tokenizer_text()
        if not text:
            raise ConfigError(
                f"trainer.callbacks: {type(self).__name__} speaks in words, and data.source holds "
                "token ids without a tokenizer; remove it, or prepare text with a recipe"
            )
        self._tokenizer = Tokenizer.from_str(text)
        self._tokenizer.encode_special_tokens = True  # in a text they are ordinary text

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks where it is due."""
        task, step = task_of(pl_module), trainer.global_step
        if step % self.every and step != task.derived.total_steps:
            return
        device = trainer.strategy.root_device
        with task.run_state.stopwatch.paused(self.pause):
            before = random_state(device)
            try:
                with scored_weights(trainer, pl_module):
                    self.ask(trainer, task, self._subject(trainer, task))
            finally:
                set_random_state(before, device)

    def _subject(self, trainer: pl.Trainer, task: TaskBase) -> Subject:
        run, strategy = task.run_state, require_strategy(trainer.strategy)
        return Subject(
            network=task.network,
            tokenizer=self.tokenizer,
            end_of_text=data_of(trainer).source.end_of_text(),
            documents=task.documents,
            positions=task.network_config.max_positions,
            device=strategy.root_device,
            rank=trainer.global_rank,
            ranks=trainer.world_size,
            total=lambda tensor: strategy.reduce(tensor, reduce_op="sum"),
            precision=trainer.precision_plugin.val_step_context,
            alive=lambda: run.watch.mark(self.pause, trainer.global_step),
        )
