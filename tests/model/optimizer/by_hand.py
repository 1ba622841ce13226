"""An update written out in plain numbers, and the same steps by an optimizer of ours; no tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from llm_train.model.optimizer import Optimizer

STEPS, RATE, DECAY = 12, 0.05, 0.3


def named(dtype: torch.dtype = torch.float64) -> list[tuple[str, nn.Parameter]]:
    """A matrix, which decays and has a trust ratio, and a vector."""
    torch.manual_seed(3)
    shapes = {"matrix": (4, 3), "vector": (3,)}
    return [(name, nn.Parameter(torch.randn(shape, dtype=dtype))) for name, shape in shapes.items()]


def slope(weights: list[np.ndarray]) -> list[np.ndarray]:
    """Gradient of sum(w^4 / 4 + w^2 / 2 - w), whose curvature changes along the way."""
    return [w**3 + w - 1.0 for w in weights]


def give(parameters: list[nn.Parameter], gradients: list[np.ndarray]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.from_numpy(np.array(gradient)).to(parameter.dtype)


Weights = list[np.ndarray]
Path_ = list[Weights]


def followed(config: Optimizer) -> Path_:
    """The weights after each step of ours."""
    pairs = named()
    parameters = [parameter for _, parameter in pairs]
    optimizer = config.build(pairs)
    path = []
    for _ in range(STEPS):
        give(parameters, slope([p.detach().numpy() for p in parameters]))
        optimizer.step()
        path.append([p.detach().numpy().copy() for p in parameters])
    return path


def written_out(update: Callable[..., np.ndarray]) -> Path_:
    """The weights after each step of ``update(w, g, t, decay, memory)``."""
    weights = [p.detach().numpy().copy() for _, p in named()]
    memories: list[dict[str, np.ndarray]] = [{}, {}]
    path = []
    for step in range(1, STEPS + 1):
        parts = zip(weights, slope(weights), (DECAY, 0.0), memories, strict=True)
        weights = [update(w, g, step, decay, memory) for w, g, decay, memory in parts]
        path.append([w.copy() for w in weights])
    return path


def gap(left: Path_, right: Path_) -> float:
    pairs = zip(left, right, strict=True)
    return max(np.abs(a - b).max() for one, two in pairs for a, b in zip(one, two, strict=True))
