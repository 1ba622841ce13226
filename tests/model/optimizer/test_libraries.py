"""What torch and pytorch_optimizer compute through ``TorchOptimizer`` is the formula, too."""

from __future__ import annotations

import math
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn, optim

from llm_train.model.optimizer import AdamW, TorchOptimizer

hand = runpy.run_path(str(Path(__file__).with_name("by_hand.py")))
RATE, DECAY = hand["RATE"], hand["DECAY"]


def adagrad(w, g, t, decay, memory):
    memory["s"] = s = memory.get("s", 0.0) + g**2
    return w - RATE * g / (np.sqrt(s) + 1e-10)


def rmsprop(w, g, t, decay, memory):
    memory["s"] = s = 0.99 * memory.get("s", 0.0) + 0.01 * g**2
    return w - RATE * g / (np.sqrt(s) + 1e-8)


def rprop(w, g, t, decay, memory):
    """Riedmiller's second form: after a turn of the sign a weight rests for a step."""
    before = memory.get("g", np.zeros_like(w))
    turn = np.sign(g * before)
    factor = np.where(turn > 0, 1.2, np.where(turn < 0, 0.5, 1.0))
    memory["step"] = step = np.clip(memory.get("step", RATE) * factor, 1e-6, 50.0)
    memory["g"] = g = np.where(turn < 0, 0.0, g)
    return w - np.sign(g) * step


def adam(w, g, t, decay, memory, coupled=True):
    g = g + decay * w if coupled else g
    memory["m"] = m = 0.9 * memory.get("m", 0.0) + 0.1 * g
    memory["v"] = v = 0.999 * memory.get("v", 0.0) + 0.001 * g**2
    w = w if coupled else w - RATE * decay * w
    return w - RATE * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def adafactor(w, g, t, decay, memory):
    """Shazeer and Stern's algorithms 4 and 5: a row and a column stand for a matrix."""
    kept, tiny = 1 - t**-0.8, 1e-30
    if w.ndim == 2:
        rows, columns = (g**2).mean(1, keepdims=True), (g**2).mean(0, keepdims=True)
        memory["r"] = r = kept * memory.get("r", 0.0) + (1 - kept) * rows
        memory["c"] = c = kept * memory.get("c", 0.0) + (1 - kept) * columns
        square = r * c / r.mean()
    else:
        memory["v"] = square = kept * memory.get("v", 0.0) + (1 - kept) * g**2
    update = g / np.sqrt(np.maximum(square, tiny))
    size = min(RATE, 1 / math.sqrt(t)) * max(1e-3, math.sqrt((w**2).mean()))
    return w - RATE * decay * w - size * update / max(1.0, math.sqrt((update**2).mean()))


def shampoo(w, g, t, decay, memory):
    """Gupta et al., algorithm 1; of a vector the root of the only side."""
    m = g.reshape(len(g), -1)
    sides = (m @ m.T, m.T @ m) if w.ndim == 2 else (m @ m.T,)
    for side, new in enumerate(sides):
        memory[side] = memory.get(side, 1e-6 * np.eye(len(new))) + new
        values, vectors = np.linalg.eigh(memory[side])
        root = vectors * values ** (-0.5 / len(sides)) @ vectors.T
        m = m @ root if side else root @ m
    return w - RATE * m.reshape(w.shape)


CASES = {
    "Adagrad": (optim.Adagrad, {}, adagrad),
    "RMSprop": (optim.RMSprop, {}, rmsprop),
    "Rprop": (optim.Rprop, {}, rprop),
    "Adam": (optim.Adam, {"weight_decay": DECAY}, adam),
    "AdamW": (optim.AdamW, {"weight_decay": DECAY}, partial(adam, coupled=False)),
    "Adafactor": (optim.Adafactor, {"weight_decay": DECAY, "eps": (1e-15, 1e-3)}, adafactor),
}


@pytest.mark.parametrize("name", CASES)
def test_torchs_update_is_the_formula(name: str) -> None:
    kind, settings, formula = CASES[name]
    config = TorchOptimizer(optimizer=partial(kind, lr=RATE, **settings))
    assert hand["gap"](hand["followed"](config), hand["written_out"](formula)) < 1e-12


def test_shampoo_of_the_library_is_the_papers(tmp_path: Path) -> None:
    library = pytest.importorskip("pytorch_optimizer")
    config = TorchOptimizer(optimizer=partial(library.Shampoo, lr=RATE))
    assert hand["gap"](hand["followed"](config), hand["written_out"](shampoo)) < 1e-10


def test_corrected_moments_are_unbiased() -> None:
    """With gradients of mean 0.5 and mean square 1.25, E[m / (1 - b1^t)] and E[v / (1 - b2^t)]."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(400, 500))
    optimizer = AdamW(learning_rate=0.1, betas=(0.9, 0.999)).build([("w", weight)])
    for step in range(1, 6):
        weight.grad = 0.5 + torch.randn_like(weight)
        optimizer.step()
        state = optimizer.state[weight]
        raw = [state[name].mean().item() for name in ("exp_avg", "exp_avg_sq")]
        corrected = [raw[0] / (1 - 0.9**step), raw[1] / (1 - 0.999**step)]
        assert corrected == pytest.approx([0.5, 1.25], rel=0.01)
        assert raw[1] < 0.01  # without the correction a two-hundredth, and steps too long


def test_coupled_decay_is_divided_by_the_second_moment_and_decoupled_is_not() -> None:
    """Two weights of 1 whose gradients are noise, of 1 and of 100; only the decay has a drift.

    Each copy of them has another whose noise is the negative, so that noise leaves the mean.
    """
    left = {}
    for kind in (optim.Adam, optim.AdamW):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.ones(2, 4000))
        optimizer = kind([weight], lr=1e-3, weight_decay=0.1)
        for _ in range(300):
            noise = torch.randn(2, 2000) * torch.tensor([[1.0], [100.0]])
            weight.grad = torch.cat([noise, -noise], dim=1)
            optimizer.step()
        left[kind] = 1.0 - weight.detach().mean(dim=1).numpy()
    assert left[optim.AdamW] == pytest.approx(1 - (1 - 1e-4) ** 300, rel=0.05)
    small, large = left[optim.Adam]
    assert small == pytest.approx(100 * large, rel=0.1)
