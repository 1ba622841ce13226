"""Ranks read every sample once, whatever the number of ranks and restarts."""

from __future__ import annotations

import numpy as np
import pytest

from llm_train.data.sampler import HeldOutBatches, MicroBatches, Share


def share(rank: int, world_size: int, accumulation: int) -> Share:
    return Share(rank=rank, data_ranks=world_size, per_device=3, accumulation=accumulation)


def samples_of_steps(world_size: int, accumulation: int, **position: int) -> list[list[int]]:
    """Returns the sorted samples of each step over all ranks."""
    per_rank = [
        list(MicroBatches(share(rank, world_size, accumulation), **position))
        for rank in range(world_size)
    ]
    steps = []
    for first in range(0, len(per_rank[0]), accumulation):
        micro = [batch for rank in per_rank for batch in rank[first : first + accumulation]]
        steps.append(sorted(np.concatenate(micro).tolist()))
    return steps


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_step_owns_the_same_samples_under_any_number_of_ranks(
    world_size: int, accumulation: int
) -> None:
    steps = samples_of_steps(world_size, accumulation, steps_total=5, steps_done=0, consumed=0)
    assert steps == [list(range(24 * k, 24 * (k + 1))) for k in range(5)]


def test_a_resumed_sampler_continues_and_keeps_its_length() -> None:
    whole = samples_of_steps(2, 4, steps_total=6, steps_done=0, consumed=0)
    rest = samples_of_steps(4, 2, steps_total=6, steps_done=4, consumed=96)
    assert rest == whole[4:]
    for done in (0, 4):
        sampler = MicroBatches(share(0, 2, 4), steps_total=6, steps_done=done, consumed=24 * done)
        assert len(sampler) == 24
        assert len(list(sampler)) == 24 - 4 * done


@pytest.mark.parametrize("windows", [1, 5, 6, 7, 24, 25])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_held_out_windows_are_read_once_and_ranks_take_equal_turns(
    windows: int, world_size: int
) -> None:
    per_rank = [
        list(HeldOutBatches(share(rank, world_size, 1), windows=[windows]))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    assert len(per_rank[0]) == len(HeldOutBatches(share(0, world_size, 1), windows=[windows]))
    read = np.concatenate([batch for batches in per_rank for batch in batches])
    assert sorted(read[read >= 0].tolist()) == list(range(windows))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_no_batch_has_windows_of_two_held_out_sets(world_size: int) -> None:
    samplers = [
        HeldOutBatches(share(rank, world_size, 1), windows=[7, 0, 20], most=9)
        for rank in range(world_size)
    ]
    turns = samplers[0].turns()
    assert len(turns) == 3
    first: list[int] = []
    last: list[int] = []
    for sampler in samplers:
        for turn, batch in enumerate(sampler):
            (first if turn < turns[0] else last).extend(i for i in batch.tolist() if i >= 0)
    assert sorted(first) == list(range(7))
    assert sorted(last) == [7 + i * 20 // 9 for i in range(9)]
