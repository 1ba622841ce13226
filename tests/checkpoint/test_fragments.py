"""Flat fragments: boxes are exactly the elements, and files of fragments fit together again."""

from __future__ import annotations

import random
from math import prod
from pathlib import Path

import pytest
import torch

from llm_train.checkpoint import dcp
from llm_train.checkpoint.fragments import boxes, flat_fragment
from llm_train.checkpoint.rank_state import RankState

SHAPES = [(), (7,), (4, 3), (1, 5), (3, 1), (2, 3, 4), (2, 1, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_the_elements_in_order(shape: tuple[int, ...]) -> None:
    numbers = torch.arange(prod(shape)).view(shape)
    for start in range(prod(shape) + 1):
        for end in range(start, prod(shape) + 1):
            found = list(boxes(shape, start, end - start))
            parts = [
                numbers[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
                for offsets, sizes in found
            ]
            assert [int(x) for part in parts for x in part.flatten()] == list(range(start, end))
            assert len(found) <= max(1, 2 * len(shape) - 1)


def test_fragments_are_read_back_from_whole_tensors_and_the_reverse(tmp_path: Path) -> None:
    torch.manual_seed(0)
    draw = random.Random(0)
    whole = {f"model.{i}": torch.randn(shape) for i, shape in enumerate(SHAPES)}
    dcp.write(tmp_path / "whole", RankState(tensors=whole))
    as_fragments = {k: flat_fragment(t.shape, 0, t.flatten()) for k, t in whole.items()}
    dcp.write(tmp_path / "fragments", RankState(tensors=as_fragments))
    for folder in ("whole", "fragments"):
        back = {key: torch.empty_like(tensor) for key, tensor in whole.items()}
        dcp.read(tmp_path / folder, back)
        assert all(torch.equal(back[key], whole[key]) for key in whole)
        for _ in range(5):
            parts = {}
            for key, tensor in whole.items():
                start = draw.randint(0, tensor.numel())
                count = draw.randint(0, tensor.numel() - start)
                parts[key] = (start, torch.full((count,), float("nan")))
            fragments = {k: flat_fragment(whole[k].shape, *part) for k, part in parts.items()}
            dcp.read(tmp_path / folder, fragments)
            for key, (start, values) in parts.items():
                expected = whole[key].flatten()[start : start + values.numel()]
                assert torch.equal(values, expected), key
