"""The LightningDataModule: turns a token source into loaders whose only state is a sample count."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from llm_train.context import Context, Part
from llm_train.data.base import NO_TOKEN
from llm_train.data.preparation import DataOptions
from llm_train.data.recipe import recipe_differences
from llm_train.data.sampler import HeldOutBatches, MicroBatches, Share
from llm_train.data.token_source import TokenSource, Windows
from llm_train.data.windows import JoinedWindows
from llm_train.derived import Derived
from llm_train.errors import ConfigError, LLMTrainError


class _Batches(Dataset[Tensor]):
    """(per_device, sequence + 1) tokens for an array of indices; -1 where the index is -1."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        if indices[-1] >= 0:  # a rank runs out of windows at the end of a batch
            return torch.from_numpy(self.windows.batch(indices))
        batch = self.windows.batch(np.where(indices < 0, max(0, indices.max()), indices))
        return torch.from_numpy(np.where(indices[:, None] < 0, np.int32(NO_TOKEN), batch))


class TokenLoader(DataLoader[Tensor]):
    """A DataLoader that, without workers, is a plain loop: its machinery costs more than reading.

    Pinned tensors come from torch's cache of pinned memory, so that copies to a GPU are enqueued.

    Attributes:
        together: batches that it reads with one call, since a call costs as much as some windows.
    """

    together = 1

    def __iter__(self) -> Any:
        """Batches in the sampler's order."""
        return self._read() if self.num_workers == 0 else self._from_workers()

    def _read(self) -> Iterator[Tensor]:
        turns = iter(self.sampler)
        while some := list(islice(turns, self.together)):
            for batch in self.dataset[np.concatenate(some)].chunk(len(some)):
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


class TokenData(DataOptions, Part, pl.LightningDataModule):
    """The data of a run, as its options say, and the position in them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pl.LightningDataModule.__init__(self)
        self.consumed = 0
        self.steps_done = 0
        self.held_out_turns: dict[str, int] = {}  # batches of each set, once a loader is made
        self._share: Share | None = None

    def parts(self) -> Iterator[Part]:
        """Source and recipe."""
        yield from (self.source, self.recipe)

    def problems(self, context: Context) -> Iterator[str]:
        """Tokens that another recipe has made."""
        if self.recipe.comparable and type(self.source).folder is TokenSource.folder:
            yield (
                f"data.recipe={type(self.recipe).__name__} has no effect with data.source="
                f"{type(self.source).__name__}, which reads nothing prepared of its own; write "
                "--data.recipe=Prepared"
            )
        folder = self.source.folder
        if folder is None or not self.source.prepared or self.source.check():
            return
        for difference in recipe_differences(folder, self.recipe):
            yield (
                f"data.recipe differs from what {folder} was prepared with: {difference}; "
                "choose another data.source path, or prepare again with --force"
            )

    def notes(self, context: Context) -> Iterator[str]:
        """A run that nothing will be held against."""
        if self.source.prepared and not self.source.held_out_sets():
            yield "data.source holds no held-out text, so that this run validates nothing"

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
        """The position in the data."""
        return self.position(self.consumed)

    def position(self, consumed: int) -> dict[str, Any]:
        """The position after ``consumed`` samples: that integer, and what it is a position in."""
        return {
            "consumed": consumed,
            "fingerprint": self.source.fingerprint(),
            "past": self.source.past(consumed, self._sequence),
            "identity": self.source.identity(),
        }

    def restore(self, state: dict[str, Any], *, steps_done: int) -> None:
        """Continues after the samples that ``state`` counts.

        Raises:
            ConfigError: the data are not those the run was trained on so far.
        """
        consumed, source = int(state["consumed"]), self.source
        past = source.past(consumed, self._sequence)
        if state["fingerprint"] != source.fingerprint() and state.get("past") != past:
            changed = _changed(state.get("identity", {}), source.identity())
            raise ConfigError(
                f"data.source reads other tokens ({source.fingerprint()[:12]}) than the "
                f"checkpoint was trained on ({state['fingerprint'][:12]}), so its position means "
                f"nothing{changed}; {source.remedy(consumed, self._sequence)}"
            )
        self.consumed = consumed
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
        windows = self.source.train_windows(self._sequence, self._seed)
        loader = self._loader(windows, sampler)
        loader.together = max(1, windows.together // self.share.per_device)
        return loader

    def val_dataloader(self) -> TokenLoader | list[TokenLoader]:
        """Loader of this rank's share of all held-out windows, set by set; of none where none are.

        Lightning's way, a loader for each set, would start the workers of all of them.
        """
        names = self.source.held_out_sets()
        sets = [self.source.held_out_windows(self._sequence, name) for name in names]
        most, sizes = self.held_out_limit(self._sequence), [len(each) for each in sets]
        batches = HeldOutBatches(self.share, windows=sizes, most=most)
        self.held_out_turns = dict(zip(names, batches.turns(), strict=True))
        return self._loader(JoinedWindows(sets), batches) if sum(sizes) else []

    def held_out_limit(self, sequence: int) -> int:
        """Windows of each held-out set that a validation scores at most; 0: all."""
        return math.ceil(self.validate_tokens.count / sequence)

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


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs of what is known of the data, in words; "" where nothing is known."""
    if not before:
        return ""
    found = [
        f"{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    same = [key for key in before if before[key] == now.get(key)]
    changed = "; changed: " + ", ".join(found or ["the tokens themselves"])
    return changed + (f" (the same: {', '.join(same)})" if same else "")


def _shown(value: str | None) -> str:
    return "absent" if value is None else value if len(value) < 100 else f"{value[:97]}..."


def data_of(trainer: pl.Trainer) -> TokenData:
    """The data module, which knows the position in the data."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # not declared
    assert isinstance(data, TokenData), "a position in the data is saved of our data module only"
    return data
