"""Puts questions to the network every so many steps: texts to continue, and benchmarks.

Training does not notice: the weights are those that validations score, the random state is put
back, and the time counts as a pause. All ranks ask together (``evaluation/subject.py``), and under
fsdp and zero3 each token that is written gathers all weights once.
"""

import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from llm_train.context import Context, Part
from llm_train.data.module import data_of
from llm_train.errors import ConfigError, check_at_least, missing_package
from llm_train.evaluation.subject import Subject
from llm_train.run_state import TaskBase, task_of
from llm_train.runtime.random_state import random_state, set_random_state
from llm_train.trainer.callbacks.averaging import ScoresAverage
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.logger.base import log_event
from llm_train.trainer.strategy.base import require_strategy


class Asks(Part, EachStep):
    """Base of callbacks that ask every ``every`` steps, and after the last one."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.pause = type(self).__name__.lower()  # what the ledger calls the time
        self.every = every
        check_at_least(self, 1, "every", prefix=f"{type(self).__name__}.", hint=" optimizer step")

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

    def subject(self, trainer: pl.Trainer, task: TaskBase) -> Subject:
        """The network that trains.

        Raises:
            ConfigError: its data are no text.
        """
        strategy, source = require_strategy(trainer.strategy), data_of(trainer).source
        if not (text := source.tokenizer_text()):
            raise ConfigError(
                f"trainer.callbacks: {type(self).__name__} speaks in words, and data.source holds "
                "token ids without a tokenizer; remove it, or prepare text with a recipe"
            )
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode_special_tokens = True  # in a text they are ordinary text
        return Subject(
            network=task.network,
            tokenizer=tokenizer,
            end_of_text=source.end_of_text(),
            positions=task.network_config.max_positions,
            device=strategy.root_device,
            confined=task.documents == "confined",
            rank=trainer.global_rank,
            ranks=trainer.world_size,
            total=lambda tensor: strategy.reduce(tensor, reduce_op="sum"),
            alive=lambda: task.run_state.watch.mark(self.pause, trainer.global_step),
        )

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks where it is due."""
        task, step = task_of(pl_module), trainer.global_step
        if step % self.every and step != task.derived.total_steps:
            return
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averages = [callback for callback in callbacks if isinstance(callback, ScoresAverage)]
        before = random_state(trainer.strategy.root_device)
        with (
            task.run_state.stopwatch.paused(self.pause),
            torch.compiler.set_stance("force_eager"),  # each length would be compiled anew
            trainer.precision_plugin.val_step_context(),
        ):
            for average in averages:
                average.on_validation_start(trainer, pl_module)
            task.network.eval()
            self.ask(trainer, task, self.subject(trainer, task))
            task.network.train()
            for average in averages:
                average.on_validation_end(trainer, pl_module)
            require_strategy(trainer.strategy).reshard()
        set_random_state(before, trainer.strategy.root_device)


class Samples(Asks):
    """Continues prompts every so many steps: on the terminal, in metrics.jsonl and in W&B's table.

    Args:
        prompts: texts to continue; "" begins a text.
        every: optimizer steps between two times; the last step is always one.
        tokens: most that are added to a prompt; an end of text ends it.
        temperature: divides the logits; 0 takes the likeliest token each time.
    """

    def __init__(
        self, prompts: Sequence[str], every: int = 1000, tokens: int = 64, temperature: float = 0.8
    ) -> None:
        super().__init__(every)
        self.prompts = tuple(prompts)
        self.tokens = tokens
        self.temperature = temperature
        check_at_least(self, 1, "tokens", prefix="Samples.")
        check_at_least(self, 0, "temperature", prefix="Samples.", hint="; 0 is greedy")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses prompts that cannot be encoded before anything is trained."""
        subject = self.subject(trainer, task_of(pl_module))
        for prompt in self.prompts:
            subject.start(prompt)

    def ask(self, trainer: pl.Trainer, task: TaskBase, subject: Subject) -> None:
        """Writes the same texts on all ranks, and shows them on rank 0."""
        found, step = [], trainer.global_step
        for prompt in self.prompts:
            text = subject.continued(prompt, tokens=self.tokens, temperature=self.temperature)
            found.append({"prompt": prompt, "text": text})
            if trainer.is_global_zero:
                tqdm.write(f"step {step}  {prompt!r} -> {text!r}", file=sys.stderr)
        log_event(trainer.loggers, "samples", step, samples=found)


class Harness(Asks):
    """Logs lm-evaluation-harness's ``eval/TASK/METRIC`` every so many steps; needs extra ``eval``.

    Args:
        tasks: names that lm-evaluation-harness knows, names in ``folder``, or YAML files.
        every: optimizer steps between two times; the last step is always one.
        folder: of YAML files with tasks; "": none.
        limit: most documents of each task; 0: all.
        batch: texts of one forward; each rank has its own.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        every: int = 1000,
        folder: str = "",
        limit: int = 0,
        batch: int = 8,
    ) -> None:
        super().__init__(every)
        self.tasks = tuple(tasks)
        self.folder = folder
        self.limit = limit
        self.batch = batch
        check_at_least(self, 1, "batch", prefix="Harness.")
        check_at_least(self, 0, "limit", prefix="Harness.", hint="; 0 takes all documents")
        self._loaded: dict[str, Any] = {}  # until the run starts

    def problems(self, context: Context) -> Iterator[str]:
        """Also the package, which whoever opens a checkpoint of the run can do without."""
        yield from super().problems(context)
        if missing := missing_package("lm_eval", "eval", "trainer.callbacks: Harness"):
            yield missing

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses tasks that cannot be had before anything is trained."""
        from llm_train.evaluation import harness

        self.subject(trainer, task_of(pl_module))
        self._loaded = harness.loaded(self.tasks, self.folder)

    def ask(self, trainer: pl.Trainer, task: TaskBase, subject: Subject) -> None:
        """Scores, and tells the loggers."""
        from llm_train.evaluation import harness

        scores = harness.examine(subject, self._loaded, batch=self.batch, limit=self.limit)
        metrics = {f"eval/{name}": value for name, value in scores.items()}
        task.run_state.measured(trainer.global_step, metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
