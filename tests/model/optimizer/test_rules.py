"""Every update of ours equals its formula, in plain numbers, for twelve steps in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn, optim

from llm_train.checkpoint import dcp, tensors
from llm_train.errors import ConfigError
from llm_train.model.optimizer import LAMB, LARS, SGD, SGLD, AdamW, Lion, QuickProp
from llm_train.model.optimizer.rule import Rule

STEPS, RATE, DECAY = 12, 0.05, 0.3
RULES = [
    SGD(learning_rate=RATE, weight_decay=DECAY),
    SGD(learning_rate=RATE, weight_decay=DECAY, form="average"),
    SGD(learning_rate=RATE, momentum=0.0),
    Lion(learning_rate=RATE, weight_decay=DECAY),
    QuickProp(learning_rate=RATE),
    LARS(learning_rate=RATE, weight_decay=DECAY, trust=0.5),
    LAMB(learning_rate=RATE, weight_decay=DECAY),
    SGLD(learning_rate=RATE, temperature=0.01),
]


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


def followed(config: Rule) -> Path_:
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


def gap(left: Path_, right: Path_) -> float:
    pairs = zip(left, right, strict=True)
    return max(np.abs(a - b).max() for one, two in pairs for a, b in zip(one, two, strict=True))


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
    ],
)
def test_the_update_is_the_formula(config: Rule, formula: Callable[..., np.ndarray]) -> None:
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
def test_a_checkpoint_continues_bitwise(rule: Rule, tmp_path: Path) -> None:
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


# --- Adam, by torch -------------------------------------------------------------------------------


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
def test_faulty_numbers_are_refused(make: Callable[[], Rule], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make()
