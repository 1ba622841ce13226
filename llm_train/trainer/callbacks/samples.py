"""Lets the network write while it trains, as the plainest look at what it has learned.

Every rank writes the same texts, because weights may lie on all of them; rank 0 shows them. Under
fsdp and zero3 each token gathers all weights once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import lightning.pytorch as pl
from tqdm import tqdm

from llm_train.data.base import NO_TOKEN
from llm_train.data.module import data_of
from llm_train.errors import ConfigError, check_at_least
from llm_train.evaluation.subject import Subject, encoded
from llm_train.run_state import TaskBase
from llm_train.trainer.callbacks.asking import Asks
from llm_train.trainer.logger.base import log_event


class Samples(Asks):
    """Continues prompts every so many steps: on the terminal, in metrics.jsonl and in W&B's table.

    Args:
        prompts: texts to continue; "" begins a text.
        every: optimizer steps between two times; the last step is always one.
        tokens: most that are added to a prompt; an end of text ends it.
        temperature: divides the logits; 0 takes the likeliest token each time.
        seed: of the choices, the same each time.
    """

    pause = "samples"

    def __init__(
        self,
        prompts: Sequence[str] = ("",),
        every: int = 1000,
        tokens: int = 64,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> None:
        super().__init__(every)
        self.prompts = tuple(prompts)
        self.tokens = tokens
        self.temperature = temperature
        self.seed = seed
        self._starts: list[list[int]] = []  # their tokens, once the data are known
        check_at_least(self, 1, "tokens", prefix="Samples.")
        check_at_least(self, 0, "temperature", prefix="Samples.", hint="; 0 is greedy")
        if not self.prompts:
            raise ConfigError('Samples.prompts is empty; [""] begins a text')

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Encodes the prompts, so that one that cannot be is refused before training."""
        super().on_fit_start(trainer, pl_module)
        starts = [encoded(self.tokenizer, prompt) for prompt in self.prompts]
        end = data_of(trainer).source.end_of_text()
        if [] in starts and end == NO_TOKEN:
            raise ConfigError(
                "Samples.prompts: an empty one begins after the end of a text, and these data have "
                "no token for it; name other prompts"
            )
        self._starts = [start or [end] for start in starts]

    def ask(self, trainer: pl.Trainer, task: TaskBase, subject: Subject) -> None:
        """Writes the texts and shows them."""
        step = trainer.global_step
        found = [
            {
                "prompt": prompt,
                "text": subject.continued(
                    start, tokens=self.tokens, temperature=self.temperature, seed=self.seed
                ),
            }
            for prompt, start in zip(self.prompts, self._starts, strict=True)
        ]
        if trainer.is_global_zero:
            for each in found:
                tqdm.write(f"step {step}  {each['prompt']!r} -> {each['text']!r}", file=sys.stderr)
        log_event(trainer.loggers, "samples", step, samples=found)
