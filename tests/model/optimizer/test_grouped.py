"""Settings by pattern reach the right parameters, with any optimizer inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

from llm_train.errors import ConfigError
from llm_train.model.network import Transformer
from llm_train.model.optimizer import AdamW, Lion, LowBitAdamW, MuonAdamW, Optimizer, TorchOptimizer
from llm_train.model.optimizer.clipping import clip_by_norm
from llm_train.model.optimizer.grouped import Grouped
from llm_train.testing.command import refused, run
from llm_train.testing.configs import part, tiny, write

RATES = {"layers.*": 0.5, "*.mlp.down.weight": 0.25, "head.weight": 2.0}


def network(width: int = 8) -> nn.Module:
    return Transformer(vocab_size=11, layers=2, width=width, heads=2, max_sequence=6).build()


def settings_by_name(optimizer: optim.Optimizer, key: str) -> dict[str, float]:
    groups = optimizer.param_groups
    return {name: float(group[key]) for group in groups for name in group["param_names"]}


@pytest.mark.parametrize(
    "inner",
    [
        AdamW(learning_rate=0.1),
        Lion(learning_rate=0.1),
        LowBitAdamW(learning_rate=0.1, state="bf16"),
        MuonAdamW(learning_rate=0.1, muon_learning_rate=0.1),
        TorchOptimizer(optimizer=lambda p: optim.Adagrad(p, lr=0.1)),
    ],
    ids=lambda inner: type(inner).__name__,
)
def test_each_parameter_has_the_rate_of_the_last_pattern(inner: Optimizer) -> None:
    if isinstance(inner, LowBitAdamW):
        pytest.importorskip("torchao")
    model = network()
    plain = inner.build(model.named_parameters())
    built = Grouped(optimizer=inner, rates=RATES).build(model.named_parameters())
    rates = settings_by_name(built, "lr")
    assert rates.keys() == dict(model.named_parameters()).keys()
    for name, rate in rates.items():
        factor = 2.0 if name == "head.weight" else 0.5 if name.startswith("layers.") else 1.0
        factor = 0.25 if name.endswith("mlp.down.weight") else factor
        assert rate == pytest.approx(0.1 * factor), name
    for old in plain.param_groups:  # nothing else has changed, and nothing is shared
        for key in old.keys() - {"params", "param_names", "lr"}:
            now = {n: g[key] for g in built.param_groups for n in g["param_names"] if key in g}
            assert {now[name] for name in old["param_names"]} == {old[key]}
    for group in built.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(7.0)
            break
    assert sum(rate == 7.0 for rate in settings_by_name(built, "lr").values()) < len(rates)


def test_decay_by_pattern_includes_vectors() -> None:
    model = network()
    inner = AdamW(learning_rate=0.1, weight_decay=0.2)
    config = Grouped(optimizer=inner, decays={"embedding.*": 0.0, "*norm*": 0.3})
    for name, decay in settings_by_name(
        config.build(model.named_parameters()), "weight_decay"
    ).items():
        expected = 0.0 if name.startswith("embedding") else 0.3 if "norm" in name else 0.2
        assert decay == expected, name


@pytest.mark.parametrize("width", [8, 32])
def test_width_scaling_is_table_3s_row_of_hidden_weights(width: int) -> None:
    config = Grouped(optimizer=AdamW(learning_rate=0.1), base_width=8, rates={"head.weight": 0.5})
    rates = settings_by_name(config.build(network(width).named_parameters()), "lr")
    for name, rate in rates.items():
        hidden = name.startswith("layers.") and "norm" not in name
        factor = 8 / width if hidden else 0.5 if name == "head.weight" else 1.0
        assert rate == pytest.approx(0.1 * factor), name


def test_clipping_by_pattern_comes_before_the_global_norm() -> None:
    named = [(name, nn.Parameter(torch.zeros(2, 2))) for name in ("a.0", "a.1", "b")]
    for (_, parameter), size in zip(named, (3.0, 4.0, 1.0), strict=True):
        parameter.grad = torch.full((2, 2), size / 2)  # of norm ``size``
    built = Grouped(optimizer=AdamW(learning_rate=0.1), clips={"a.*": 0.5}).build(named)
    norm = clip_by_norm(built.param_groups, 1.0)
    assert norm.item() == pytest.approx(26**0.5)
    together = (0.5**2 + 1) ** 0.5  # a is at 0.5, and both of them above 1
    after = [parameter.grad.norm().item() for _, parameter in named]
    assert after == pytest.approx([0.3 / together, 0.4 / together, 1 / together], rel=1e-5)


def test_check_names_what_is_near_and_shows_the_groups(tmp_path) -> None:
    def file(**settings: object) -> str:
        adamw = part("AdamW", learning_rate=0.01)
        optimizer = part("Grouped", optimizer=adamw, **settings)
        return str(write(tmp_path / "c.yaml", tiny(tmp_path / "run", model__optimizer=optimizer)))

    lines = refused(
        "check", "-c", file(rates={"layer.*.mlp.down.weight": 0.5}, clips={"haed.*": 1})
    )
    assert len(lines) == 2
    assert "rates: no parameter matches layer.*.mlp.down.weight" in lines[0]
    assert "layers.*.mlp.down.weight" in lines[0]
    near = lines[1].partition("near it: ")[2].split(", ")
    assert "head.weight" in near
    assert len(near) == len(set(near))
    (line,) = refused("check", "-c", file(base_width=8), "--model.optimizer.optimizer=SGD")
    assert "base_width=8 is muP's rule for Adam" in line
    shown = run("check", "-c", file(base_width=8, clips={"head.*": 1.0})).out
    assert "rate x 0.5" in shown
    assert "clipped to 1 with all of head.*" in shown
    outcome = run("fit", "-c", file(base_width=8, clips={"head.*": 1.0}, decays={"*norm*": 0.1}))
    assert outcome.code == 0, outcome.err
    assert "optimizer/lr_" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_faulty_factors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.rates\.head=-1\.0 must be finite"):
        Grouped(optimizer=AdamW(learning_rate=0.1), rates={"head": -1.0})
    with pytest.raises(ConfigError, match=r"optimizer\.clips\.\*=0 must be finite and above 0"):
        Grouped(optimizer=AdamW(learning_rate=0.1), clips={"*": 0})
    with pytest.raises(ConfigError, match=r"no effect without rates.*AdamW by itself"):
        Grouped(optimizer=AdamW(learning_rate=0.1))
    with pytest.raises(ConfigError, match=r"base_width needs one width.*optimizer\.rates"):
        Grouped(optimizer=AdamW(learning_rate=0.1), base_width=8).build(
            nn.ModuleList([nn.Linear(3, 4)]).named_parameters()
        )
