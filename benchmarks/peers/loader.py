"""Makes batches for peers without a loader of their own: a plain DataLoader over a memory map."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.work import Shape


class _Windows(Dataset):
    def __init__(self, path: str, sequence: int) -> None:
        self.ids = np.memmap(path, dtype=np.uint16, mode="r")
        self.sequence = sequence

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.sequence

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * self.sequence
        return torch.from_numpy(self.ids[start : start + self.sequence + 1].astype(np.int64))


def loader(path: str, shape: Shape, pin_memory: bool) -> DataLoader:
    """Returns shuffled windows of sequence + 1 tokens, read by the process itself."""
    return DataLoader(
        _Windows(path, shape.sequence),
        batch_size=shape.batch,
        shuffle=True,
        drop_last=True,
        pin_memory=pin_memory,
    )


def endless(batches: DataLoader):
    """Yields the batches of one epoch after another."""
    while True:
        yield from batches
