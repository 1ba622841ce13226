"""The LightningDataModule: turns a token source into loaders whose only state is a sample count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from llm_train.context import Context, Part
from llm_train.data.base import NO_TOKEN, Recipe, TokenSource, Windows
from llm_train.data.preparation import Prepared
from llm_train.data.recipe import recipe_differences
from llm_train.data.sampler import HeldOutBatches, MicroBatches, Share
from llm_train.derived import Derived
from llm_train.errors import ConfigError, LLMTrainError


class _Batches(Dataset[Tensor]):
    """(per_device, sequence + 1) tokens for an array of indices; -1 where the index is -1."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        if indices[-1] >= 0:  # a rank runs out of windows at the end of a batch
            return torch.from_numpy(self.windows.batch(indices))
        batch = self.windows.batch(np.maximum(indices, 0))
        return torch.from_numpy(np.where(indices[:, None] < 0, np.int32(NO_TOKEN), batch))


class TokenLoader(DataLoader[Tensor]):
    """A DataLoader that, without workers, is a plain loop: its machinery costs more than reading.

    Pinned tensors come from torch's cache of pinned memory, so that copies to a GPU are enqueued.
    """

    def __iter__(self) -> Any:
        """Batches in the sampler's order."""
        return self._read() if self.num_workers == 0 else self._from_workers()

    def _read(self) -> Iterator[Tensor]:
        for indices in self.sampler:
            batch: Tensor = self.dataset[indices]
            yield batch.pin_memory() if self.pin_memory else batch

    def _from_workers(self) -> Iterator[Tensor]:
        try:
            yield from super().__iter__()
        except LLMTrainError as error:  # torch puts the worker's traceback around its message
            message = str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]
            raise type(error)(message) from None

    def state_dict(self) -> dict[str, int]:
        """Nothing: the loader starts at the sample count that its sampler was made with.

        Lightning warns that a loader without ``state_dict`` cannot continue where it stopped.
        """
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load."""


class TokenData(Part, pl.LightningDataModule):
    """Training windows in an order fixed by (seed, data, sample index), held-out windows in full.

    Args:
        source: where tokens come from.
        recipe: how ``llm-train prepare`` makes what the source reads.
        workers: loader processes per rank; 0 reads in the training process, which is fast enough
            for memory-mapped tokens.
    """

    def __init__(
        self,
        source: TokenSource,
        recipe: Recipe = Prepared(),  # noqa: B008 - frozen
        workers: int = 0,
    ) -> None:
        super().__init__()
        if workers < 0:
            raise ConfigError(f"data.workers={workers} must be 0 (read in the process) or more")
        self.source = source
        self.recipe = recipe
        self.workers = workers
        self.consumed = 0
        self.steps_done = 0
        self._share: Share | None = None

    def parts(self) -> Iterator[Part]:
        """Source and recipe."""
        yield self.source
        yield self.recipe

    def problems(self, context: Context) -> Iterator[str]:
        """Tokens that another recipe has made."""
        folder = self.source.folder
        if folder is None or not self.source.prepared or self.source.check():
            return
        for difference in recipe_differences(folder, self.recipe):
            yield (
                f"data.recipe differs from what {folder} was prepared with: {difference}; "
                "choose another data.source path, or prepare again with --force"
            )

    def bind(
        self, *, share: Share, sequence: int, seed: int, steps_total: int, pin_memory: bool
    ) -> None:
        """Says which part of the data this process reads, for how many steps."""
        self._pin_memory = pin_memory
        self._share = share
        self._sequence = sequence
        self._seed = seed
        self._steps_total = steps_total

    @property
    def share(self) -> Share:
        """Which samples are this rank's."""
        if self._share is None:
            raise ConfigError(
                "the data have not been told which rank reads them; "
                "llm_train.build(settings) makes a Trainer and tells them"
            )
        return self._share

    def state_dict(self) -> dict[str, Any]:
        """The position in the data: one integer, and what it is a position in."""
        return {"consumed": self.consumed, "fingerprint": self.source.fingerprint()}

    def restore(self, state: dict[str, Any], *, steps_done: int) -> None:
        """Continues after the samples that ``state`` counts.

        Raises:
            ConfigError: the data are not those the run was trained on so far.
        """
        if state["fingerprint"] != self.source.fingerprint():
            raise ConfigError(
                f"data.source reads other tokens ({self.source.fingerprint()[:12]}) than the "
                f"checkpoint was trained on ({state['fingerprint'][:12]}), so its position means "
                "nothing; point data.source at the old tokens or start a new run"
            )
        self.consumed = int(state["consumed"])
        self.steps_done = steps_done

    def consumed_at(self, step: int, derived: Derived) -> int:
        """Samples that the run has consumed, or passed over, when ``step`` steps are done."""
        return self.consumed + derived.samples(step) - derived.samples(self.steps_done)

    def train_dataloader(self) -> TokenLoader:
        """Loader of this rank's micro-batches from the current position to the end of the run."""
        sampler = MicroBatches(
            self.share,
            steps_total=self._steps_total,
            steps_done=self.steps_done,
            consumed=self.consumed,
        )
        return self._loader(self.source.train_windows(self._sequence, self._seed), sampler)

    def val_dataloader(self) -> TokenLoader:
        """Loader of this rank's share of all held-out windows."""
        windows = self.source.held_out_windows(self._sequence)
        return self._loader(windows, HeldOutBatches(self.share, windows=len(windows)))

    def _loader(self, windows: Windows, sampler: Sampler[np.ndarray]) -> TokenLoader:
        return TokenLoader(
            _Batches(windows),
            sampler=sampler,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self._pin_memory,
            persistent_workers=self.workers > 0,
            # A generator of its own: iter(loader) draws a seed, and from the global generator that
            # would make dropout depend on how often a loader was started.
            generator=torch.Generator().manual_seed(self._seed),
        )


def data_of(trainer: pl.Trainer) -> TokenData:
    """The data module, which knows the position in the data."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # not declared
    assert isinstance(data, TokenData), "a position in the data is saved of our data module only"
    return data
