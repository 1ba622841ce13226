"""Every update of ours equals its formula, in plain numbers, for twelve steps in float64."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn, optim

from llm_train.checkpoint import dcp, tensors
from llm_train.errors import ConfigError
from llm_train.model.optimizer import (
    LAMB,
    LARS,
    SGD,
    SGLD,
    Lion,
    QuickProp,
    ScheduleFreeAdamW,
)
from llm_train.model.optimizer.update_rule import UpdateRule
from llm_train.testing.command import refused
from llm_train.testing.configs import part, tiny, write

hand = runpy.run_path(str(Path(__file__).with_name("by_hand.py")))
STEPS, RATE, DECAY = hand["STEPS"], hand["RATE"], hand["DECAY"]
named, slope, give = hand["named"], hand["slope"], hand["give"]
followed, written_out, gap = hand["followed"], hand["written_out"], hand["gap"]
Weights = list[np.ndarray]
Path_ = list[Weights]
RULES = [
    SGD(learning_rate=RATE, weight_decay=DECAY),
    SGD(learning_rate=RATE, weight_decay=DECAY, form="average"),
    SGD(learning_rate=RATE, momentum=0.0),
    Lion(learning_rate=RATE, weight_decay=DECAY),
    QuickProp(learning_rate=RATE),
    LARS(learning_rate=RATE, weight_decay=DECAY, trust=0.5),
    LAMB(learning_rate=RATE, weight_decay=DECAY),
    SGLD(learning_rate=RATE, temperature=0.01),
    ScheduleFreeAdamW(learning_rate=RATE, weight_decay=DECAY),
]


def sgd(form: str, nesterov: bool) -> Callable[..., np.ndarray]:
    def update(w, g, t, decay, memory):
        share = 1.0 if form == "velocity" else 0.1
        memory["v"] = v = 0.9 * memory.get("v", 0.0) + share * g
        return w - RATE * decay * w - RATE * (0.9 * v + share * g if nesterov else v)

    return update


def lion(w, g, t, decay, memory):
    m = memory.get("m", np.zeros_like(w))
    memory["m"] = 0.99 * m + 0.01 * g
    return w - RATE * (np.sign(0.9 * m + 0.1 * g) + decay * w)


def lars(w, g, t, decay, memory):
    local = 1.0
    if w.ndim == 2:
        local = 0.5 * math.sqrt((w**2).sum())
        local /= math.sqrt((g**2).sum()) + decay * math.sqrt((w**2).sum())
    memory["v"] = 0.9 * memory.get("v", 0.0) + RATE * local * (g + decay * w)
    return w - memory["v"]


def lamb(w, g, t, decay, memory):
    memory["m"] = m = 0.9 * memory.get("m", 0.0) + 0.1 * g
    memory["v"] = v = 0.999 * memory.get("v", 0.0) + 0.001 * g**2
    u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + decay * w
    trust = math.sqrt((w**2).sum() / (u**2).sum()) if w.ndim == 2 else 1.0
    return w - RATE * trust * u


def quickprop(w, g, t, decay, memory):
    """Fahlman's report, with its cases, for one number at a time; s and p point downhill."""

    def one(s: float, p: float, d: float) -> float:
        shrink = 1.75 / (1 + 1.75)
        if d == 0.0:
            return RATE * s
        s, p = s * np.sign(d), p * np.sign(d)
        step = RATE * s if s > 0 else 0.0
        step += 1.75 * abs(d) if s >= shrink * p else abs(d) * s / (p - s)
        return step * np.sign(d)

    zero = np.zeros_like(w)
    memory["d"] = np.vectorize(one)(-g, memory.get("p", zero), memory.get("d", zero))
    memory["p"] = -g
    return w + memory["d"]


def schedule_free(w, g, t, decay, memory):
    """Algorithm 1 with its three points; w is y, where the gradient was taken."""
    x, z = memory.get("x", w), memory.get("z", w)
    memory["v"] = v = 0.95 * memory.get("v", 0.0) + 0.05 * g**2
    z = z - RATE * (g / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + decay * w)
    x = (1 - 1 / t) * x + z / t
    memory["x"], memory["z"] = x, z
    AVERAGES.append(x)
    return 0.1 * z + 0.9 * x


AVERAGES: Weights = []


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        *(
            (SGD(learning_rate=RATE, weight_decay=DECAY, form=form, nesterov=look), sgd(form, look))
            for form in ("velocity", "average")
            for look in (False, True)
        ),
        (Lion(learning_rate=RATE, weight_decay=DECAY), lion),
        (LARS(learning_rate=RATE, weight_decay=DECAY, trust=0.5), lars),
        (LAMB(learning_rate=RATE, weight_decay=DECAY), lamb),
        (QuickProp(learning_rate=RATE), quickprop),
        (ScheduleFreeAdamW(learning_rate=RATE, weight_decay=DECAY), schedule_free),
    ],
)
def test_the_update_is_the_formula(config: UpdateRule, formula: Callable[..., np.ndarray]) -> None:
    assert gap(followed(config), written_out(formula)) < 1e-12


def test_the_momenta_differ_as_they_should() -> None:
    velocity = followed(SGD(learning_rate=RATE * 0.1))
    assert gap(velocity, followed(SGD(learning_rate=RATE, form="average"))) < 1e-12

    def torchs(**settings: float) -> Path_:
        pairs = named()
        parameters = [p for _, p in pairs]
        optimizer = optim.SGD(parameters, lr=RATE, momentum=0.9, **settings)
        path = []
        for _ in range(STEPS):
            give(parameters, slope([p.detach().numpy() for p in parameters]))
            optimizer.step()
            path.append([p.detach().numpy().copy() for p in parameters])
        return path

    for look in (False, True):
        ours = followed(SGD(learning_rate=RATE, nesterov=look))
        assert gap(ours, torchs(nesterov=look)) < 1e-12
    dampened, average = torchs(dampening=0.9), followed(SGD(learning_rate=RATE, form="average"))
    start = [p.detach().numpy() for _, p in named()]
    # torch's first step is that of plain descent, ten times as long as the average's.
    ratios = [(d - s) / (a - s) for d, a, s in zip(dampened[0], average[0], start, strict=True)]
    np.testing.assert_allclose(np.concatenate([r.ravel() for r in ratios]), 10.0)


def test_whoever_reads_the_weights_alone_gets_the_average(tmp_path: Path) -> None:
    config, pairs = ScheduleFreeAdamW(learning_rate=RATE, weight_decay=DECAY), named()
    network = nn.ParameterDict(dict(pairs))
    optimizer = config.build(network.named_parameters())
    for _ in range(STEPS):
        give([p for _, p in pairs], slope([p.detach().numpy() for _, p in pairs]))
        optimizer.step()
    dcp.write(tmp_path, tensors.state(network, optimizer))
    alone = nn.ParameterDict(dict(named()))
    tensors.load(tmp_path, alone, None)
    written_out(schedule_free)
    for (_, read), expected in zip(alone.items(), AVERAGES[-2:], strict=True):
        np.testing.assert_allclose(read.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_quickprop_ends_a_parabola_in_its_third_step() -> None:
    """The secant of a quadratic is exact: descent, growth, and then the minimum."""
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = QuickProp(learning_rate=0.3, growth=100.0).build([("w", weight)])
    for _ in range(3):
        weight.grad = weight.detach().clone()
        optimizer.step()
    # The second step is the secant to 0, plus descent, as the slope keeps its sign.
    assert abs(weight.item()) < 1e-12


def test_langevin_noise_gives_the_temperature() -> None:
    """On w^2 / 2, weights have the variance T / (1 - r / 2): exp(-loss / T) for small r."""
    weight = nn.Parameter(torch.zeros(200, 500))
    rule = SGLD(learning_rate=0.2, temperature=0.01)
    optimizer = rule.build([("w", weight)])
    for _ in range(60):
        weight.grad = weight.detach().clone()
        optimizer.step()
    assert weight.var().item() == pytest.approx(0.01 / (1 - 0.1), rel=0.02)
    assert abs(weight.mean().item()) < 2e-3


def test_weights_in_bfloat16_have_state_in_float32() -> None:
    for rule in RULES:
        pairs = named(torch.bfloat16)
        optimizer = rule.build(pairs)
        give([p for _, p in pairs], [np.ones((4, 3)), np.ones(3)])
        optimizer.step()
        state = optimizer.state[pairs[0][1]]
        held = [value for value in state.values() if isinstance(value, torch.Tensor)]
        assert all(value.dtype == torch.float32 for value in held)
        assert sum(value.nbytes for value in held) == rule.state_bytes("matrix", pairs[0][1])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_checkpoint_continues_bitwise(rule: UpdateRule, tmp_path: Path) -> None:
    def network() -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(3, 4)

    def train(model: nn.Module, optimizer: optim.Optimizer, steps: int, seed: int) -> None:
        inputs = torch.randn(steps, 5, 3, generator=torch.Generator().manual_seed(seed))
        for batch in inputs:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    whole = network()
    optimizer = rule.build(whole.named_parameters())
    train(whole, optimizer, 3, 1)
    dcp.write(tmp_path, tensors.state(whole, optimizer))
    again = network()
    resumed = rule.build(again.named_parameters())
    tensors.load(tmp_path, again, resumed)
    for model, its in ((whole, optimizer), (again, resumed)):
        train(model, its, 3, 2)
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: SGD(learning_rate=0.1, momentum=0.0, form="average"), "momentum=0.0 gives form"),
        (
            lambda: SGD(learning_rate=0.1, momentum=1.0),
            r"optimizer.momentum=1.0 is not in \[0, 1\)",
        ),
        (lambda: LARS(learning_rate=0.1, trust=0.0), "optimizer.trust=0.0 is not .* 0.001"),
        (lambda: QuickProp(learning_rate=0.1, growth=-1.0), "optimizer.growth=-1.0 is not .* 1.75"),
        (lambda: SGLD(learning_rate=0.1, temperature=-1.0), "optimizer.temperature=-1.0 is not"),
    ],
)
def test_faulty_numbers_are_refused(make: Callable[[], UpdateRule], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make()


def test_sgld_says_why_it_does_not_run_under_zero(tmp_path: Path) -> None:
    sgld = part("SGLD", learning_rate=0.01, temperature=0.0)
    shape = {"trainer__strategy": "zero2", "trainer__devices": 2, "model__optimizer": sgld}
    (line,) = refused("check", "-c", str(write(tmp_path / "c.yaml", tiny(tmp_path / "r", **shape))))
    assert "SGLD needs whole tensors with names, to which its noise belongs" in line
