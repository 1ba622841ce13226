"""AdamW, any torch optimizer and Muon each equal torch's own."""

import copy
from functools import partial

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn, optim
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from llm_train.errors import ConfigError
from llm_train.model.network import Transformer, initialise
from llm_train.model.optimizer import AdamW, MuonAdamW, Optimizer, TorchOptimizer
from llm_train.model.optimizer.muon import orthogonalize

NETWORK = Transformer(
    vocab_size=11, layers=2, width=8, heads=2, max_sequence=6, norm="layernorm", bias=True
)


def tiny():
    network = NETWORK.build()
    initialise(network, 0)
    return network


IDS = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(1))


def loss_of(model):
    logits = model(IDS, lambda hidden, projection: projection.logits(hidden))
    return nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten())


def train(model, optimizer, steps=5):
    for _ in range(steps):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def close(left, right, **tolerance):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("fused", ["auto", "on", "off"])
def test_adamw_is_torchs_with_two_groups(fused):
    model, reference = tiny(), tiny()
    optimizer = AdamW(learning_rate=0.01, weight_decay=0.3, fused=fused).build(
        model.named_parameters()
    )
    assert optimizer.defaults["fused"] is (None if fused == "off" else True)
    parameters = list(reference.parameters())
    plain = optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.3},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        fused=False,
        foreach=False,
    )
    close(train(model, optimizer), train(reference, plain), rtol=1e-5, atol=1e-6)


def test_fusion_is_left_out_where_it_cannot_be():
    on_meta = [("weight", nn.Parameter(torch.empty(2, 2, device="meta")))]
    assert AdamW(learning_rate=0.1).build(on_meta).defaults["fused"] is None
    with pytest.raises(ConfigError, match=r"optimizer\.fused=on needs floating-point"):
        AdamW(learning_rate=0.1, fused="on").build(on_meta)


@pytest.mark.parametrize(
    ("make", "decays"),
    [
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2), [0.2, 0.0]),
        (lambda p: optim.RMSprop(p, lr=0.1), [0, 0]),
        (lambda p: optim.Adafactor(p, lr=0.1, weight_decay=0.3), [0.3, 0.0]),
        (lambda p: optim.Rprop(p, lr=0.1), [None]),
    ],
)
def test_torch_optimizers_get_decay_groups_where_they_decay(make, decays):
    model = tiny()
    optimizer = TorchOptimizer(optimizer=make).build(model.named_parameters())
    assert type(optimizer) is type(make([nn.Parameter(torch.zeros(1))]))
    assert [group.get("weight_decay") for group in optimizer.param_groups] == decays
    covered = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())
    train(model, optimizer, 1)


def test_a_refusal_by_the_torch_class_is_one_line():
    with pytest.raises(ConfigError, match=r"Muon only supports 2D .*use MuonAdamW") as caught:
        TorchOptimizer(optimizer=lambda p: optim.Muon(p, lr=0.1)).build(tiny().named_parameters())
    assert "\n" not in str(caught.value)


def parsed(class_path, **init_args):
    inner = {"class_path": class_path, "init_args": init_args}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=Optimizer)
    value = {
        "class_path": "llm_train.model.optimizer.TorchOptimizer",
        "init_args": {"optimizer": inner},
    }
    return parser.instantiate(parser.parse_object({"optimizer": value})).optimizer


def test_yaml_names_a_torch_class_and_faults_are_found_while_parsing():
    optimizer = parsed("torch.optim.SGD", lr=0.1, momentum=0.9).build(tiny().named_parameters())
    assert isinstance(optimizer, optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
    with pytest.raises(ArgumentError, match="momentun"):
        parsed("torch.optim.SGD", lr=0.1, momentun=0.9)
    with pytest.raises(ArgumentError, match="SGDD"):
        parsed("torch.optim.SGDD", lr=0.1)
    with pytest.raises(ArgumentError, match=r"torch\.nn\.Linear"):
        parsed("torch.nn.Linear")
    with pytest.raises(ArgumentError, match="float"):
        parsed("torch.optim.SGD", lr="fast")


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_brings_singular_values_near_one(shape, dtype):
    # Singular values spread over a factor of 20; those of a random square matrix reach down to 0.
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -1.3, min(shape))) @ vh
    out = orthogonalize(matrix, steps=5, dtype=dtype).float()
    assert out.shape == matrix.shape
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.65
    assert values.max() < 1.25
    # The singular vectors stay the same, so u^T out v is diagonal.
    rest = u.T @ out @ vh.T
    rest.fill_diagonal_(0.0)
    assert rest.abs().max() < (1e-4 if dtype == torch.float32 else 0.1)


def test_newton_schulz_of_zero_is_zero():
    assert not orthogonalize(torch.zeros(3, 5), 5, torch.float32).any()


@pytest.mark.parametrize(
    ("scaling", "torchs"), [("original", "original"), ("match_rms", "match_rms_adamw")]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 1e-5), ("float32", 3e-2)])
def test_muons_part_is_torchs_muon_and_the_rest_torchs_adamw(scaling, torchs, dtype, tolerance):
    model, reference = tiny(), tiny()
    config = MuonAdamW(
        learning_rate=0.01,
        muon_learning_rate=0.02,
        learning_rate_scaling=scaling,
        muon_weight_decay=0.2,
        newton_schulz_dtype=dtype,
        weight_decay=0.3,
    )
    optimizer = config.build(model.named_parameters())
    named = list(reference.named_parameters())
    hidden = [p for name, p in named if name.startswith("layers.") and p.ndim == 2]
    muon = optim.Muon(hidden, lr=0.02, weight_decay=0.2, momentum=0.95, adjust_lr_fn=torchs)
    tables = [reference.embedding.weight, reference.head.weight]
    adamw = optim.AdamW(
        [
            {"params": tables, "weight_decay": 0.3},
            {"params": [p for _, p in named if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        fused=True,
    )
    # Both get the same gradients at every step, so that differences do not build up.
    torch.manual_seed(1)
    for _ in range(4):
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    for (name, p), (_, q) in zip(model.named_parameters(), named, strict=True):
        if any(q is each for each in hidden):
            torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(p, q), name


def test_muons_groups_cover_everything_once_and_state_has_the_parameters_shape():
    model = tiny()
    optimizer = MuonAdamW(learning_rate=0.01).build(model.named_parameters())
    algorithms = [group["algorithm"] for group in optimizer.param_groups]
    assert algorithms == ["muon", "adamw", "adamw"]
    assert optimizer.param_groups[0]["param_names"] == [
        f"layers.{i}.{matrix}.weight"
        for i in range(2)
        for matrix in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
    ]
    covered = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(covered) == sorted(name for name, _ in model.named_parameters())
    first = loss_of(model).item()
    train(model, optimizer, 20)
    assert loss_of(model).item() < first / 2
    for parameter, state in optimizer.state.items():
        for value in state.values():
            assert value.shape in (parameter.shape, torch.Size([]))


def test_a_closure_sees_all_groups_of_muon():
    """Lightning clips in it."""
    optimizer = MuonAdamW(learning_rate=0.01).build(tiny().named_parameters())
    assert optimizer.step(lambda: len(optimizer.param_groups)) == 3


CONFIGS = [
    AdamW(learning_rate=0.01),
    MuonAdamW(learning_rate=0.01),
    TorchOptimizer(optimizer=lambda p: optim.SGD(p, lr=0.1, momentum=0.9)),
]


def by_state_dict(model, optimizer, copied, again):
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def by_torchs_distributed_state_dict(model, optimizer, copied, again):
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    set_optimizer_state_dict(copied, again, saved)


@pytest.mark.parametrize("carry", [by_state_dict, by_torchs_distributed_state_dict])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_resuming_is_bitwise(config, carry):
    model = tiny()
    optimizer = config.build(model.named_parameters())
    train(model, optimizer, 3)
    copied = copy.deepcopy(model)
    again = config.build(copied.named_parameters())
    carry(model, optimizer, copied, again)
    names = [group["param_names"] for group in optimizer.param_groups]
    assert [group["param_names"] for group in again.param_groups] == names
    for a, b in zip(train(model, optimizer), train(copied, again), strict=True):
        assert torch.equal(a, b)


def test_muon_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="found no matrix in a numbered layer"):
        MuonAdamW(learning_rate=0.1).build(nn.Linear(2, 2).named_parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learning_rate": 0.0},
            r"optimizer\.learning_rate=0\.0 is not a finite number > 0; a usual",
        ),
        ({"learning_rate": float("inf")}, r"optimizer\.learning_rate=inf is not"),
        ({"betas": (0.9, 1.0)}, r"optimizer\.betas\[1\]=1\.0 is not in \[0, 1\); .*0\.95"),
        ({"eps": 0.0}, r"optimizer\.eps=0\.0 is not a finite number > 0"),
        ({"weight_decay": -0.1}, r"optimizer\.weight_decay=-0\.1 is not a finite number >= 0"),
    ],
)
@pytest.mark.parametrize("config", [AdamW, MuonAdamW])
def test_faulty_numbers_are_refused(config, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**({"learning_rate": 0.1} | settings))


def test_faulty_choices_are_refused():
    with pytest.raises(ConfigError, match=r"optimizer\.fused='yes' is not one of auto, on, off"):
        AdamW(learning_rate=0.1, fused="yes")
    with pytest.raises(ConfigError, match=r"newton_schulz_steps=0 must be at least 1 and below 21"):
        MuonAdamW(learning_rate=0.1, newton_schulz_steps=0)
    with pytest.raises(ConfigError, match=r"learning_rate_scaling='rms' is not one of original,"):
        MuonAdamW(learning_rate=0.1, learning_rate_scaling="rms")
    with pytest.raises(ConfigError, match=r"newton_schulz_dtype='fp8' is not one of auto, float32"):
        MuonAdamW(learning_rate=0.1, newton_schulz_dtype="fp8")


def test_an_optimizer_that_needs_a_closure_is_refused():
    config = TorchOptimizer(optimizer=partial(torch.optim.LBFGS, lr=0.1))
    with pytest.raises(ConfigError, match=r"optimizer\.optimizer=LBFGS computes the loss several"):
        config.build(nn.Linear(2, 2).named_parameters())
