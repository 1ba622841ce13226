"""Which samples each rank reads, as arithmetic on one integer.

A sample index counts from 0 over the whole life of a run. Optimizer step ``k`` owns samples
``[k * S, (k + 1) * S)``; within it, micro-batch ``m`` of rank ``r`` owns a contiguous piece.
No shuffled list is kept: the position of a run is the number of samples it has consumed, and any
number of ranks that divides the step reads the same samples in that step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True, kw_only=True)
class Share:
    """One rank's part of every optimizer step.

    Attributes:
        rank: this process, or the tensor-parallel group it belongs to.
        data_ranks: number of those, all of which read different data.
        per_device: samples per micro-batch.
        accumulation: micro-batches per optimizer step; where that changes, the most.
    """

    rank: int
    data_ranks: int
    per_device: int
    accumulation: int

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.data_ranks * self.per_device * self.accumulation


class MicroBatches(Sampler[np.ndarray]):
    """Yields the sample indices of each micro-batch of this rank, from ``consumed`` on.

    Its length is that of the whole run, also after a resume: to find the last batch, Lightning
    compares it with the micro-batches done before plus those fetched now. Where the accumulation
    changes, it is more than the run takes, and the number of steps ends the run.
    """

    def __init__(self, share: Share, *, steps_total: int, steps_done: int, consumed: int) -> None:
        self.share = share
        self.steps_total = steps_total
        self.steps_done = steps_done
        self.consumed = consumed

    def __len__(self) -> int:
        return self.steps_total * self.share.accumulation

    def __iter__(self) -> Iterator[np.ndarray]:
        turns = (self.steps_total - self.steps_done) * self.share.accumulation
        return _turns(self.share, self.consumed, turns)


class HeldOutBatches(Sampler[np.ndarray]):
    """Yields window indices for validation: every window once over all ranks, none twice.

    Ranks must run the same number of forward passes, or a sharded network hangs; so a rank
    that runs out gets indices of -1, which read as windows without any target.

    Args:
        share: this rank's.
        windows: of each held-out set, which follow one another; no batch has windows of two.
        most: score so many of each set at most, spread evenly over it; 0 scores all.
    """

    def __init__(self, share: Share, *, windows: Sequence[int], most: int = 0) -> None:
        self.share = share
        self.windows = windows
        self.scored = [min(count, most or count) for count in windows]

    def turns(self) -> list[int]:
        """Batches of each set."""
        together = self.share.per_device * self.share.data_ranks
        return [math.ceil(count / together) for count in self.scored]

    def __len__(self) -> int:
        return sum(self.turns())

    def __iter__(self) -> Iterator[np.ndarray]:
        first = 0
        for turns, scored, count in zip(self.turns(), self.scored, self.windows, strict=True):
            for turn in _turns(self.share, 0, turns):
                yield np.where(turn < scored, first + turn * count // max(1, scored), -1)
            first += count


def _turns(share: Share, first: int, count: int) -> Iterator[np.ndarray]:
    """Deals ``per_device`` indices to each rank in turn, ``count`` times; yields this rank's."""
    mine = first + share.rank * share.per_device + np.arange(share.per_device, dtype=np.int64)
    for turn in range(count):
        yield mine + turn * share.data_ranks * share.per_device
