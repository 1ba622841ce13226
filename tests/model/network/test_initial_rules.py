"""Rules for initial matrices: their variances, which matrices they see, and what depth does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from llm_train.errors import ConfigError
from llm_train.model.network import Transformer, initialise
from llm_train.model.network.initial_rules import RULES, Fans, InitialRule, fill, std
from llm_train.model.network.initial_weights import stuck

CONFIG = Transformer(
    vocab_size=60, pad_vocab_to=64, layers=2, width=128, heads=4, kv_heads=2, max_sequence=64,
    mlp_width=192,
)  # fmt: skip
BETA = 16**-0.25  # (8 layers) ** -0.25


def weights(config):
    network = config.build()
    initialise(network, 0)
    return {name: p.detach() for name, p in network.named_parameters()}


def matrices(config):
    """Query, key, value, output, gate, up and down of a layer, and embedding and head."""
    found = weights(config)
    qkv = found["layers.1.attention.qkv.weight"].view(2, 4, 32, 128)  # 2 queries, key and value
    gate, up = found["layers.1.mlp.gate_up.weight"].view(3, 2, 64, 128).unbind(1)
    return {
        "q": qkv[:, :2].reshape(128, 128),
        "k": qkv[:, 2].reshape(64, 128),
        "v": qkv[:, 3].reshape(64, 128),
        "out": found["layers.1.attention.out.weight"],
        "gate": gate.reshape(192, 128),
        "up": up.reshape(192, 128),
        "down": found["layers.1.mlp.down.weight"],
        "embedding": found["embedding.weight"][:60],
        "head": found["head.weight"][:60],
    }


FANS = {  # outputs and inputs, also of what is one parameter
    **{"q": (128, 128), "k": (64, 128), "v": (64, 128), "out": (128, 128)},
    **{"gate": (192, 128), "up": (192, 128), "down": (128, 192)},
    **{"embedding": (128, 1), "head": (60, 128)},
}
VARIANCES = {
    "normal": lambda name, m, n: 0.02**2,
    "truncated_normal": lambda name, m, n: 0.02**2,
    "lecun": lambda name, m, n: 1 / n,
    "xavier": lambda name, m, n: 2 / (n + m),
    "he": lambda name, m, n: 2 / n,  # the variance, not the standard deviation
    "scaled_residual": lambda name, m, n: 0.02**2 / 4,
    "zero": lambda name, m, n: 0.0,
    "deepnorm": lambda name, m, n: 2 / (n + m) * (1 if name in "qk" else BETA**2),
}


@pytest.mark.parametrize("rule", VARIANCES)
def test_the_variance_of_every_matrix(rule):
    for gain in (1.0, 0.5):
        for name, matrix in matrices(replace(CONFIG, init={"*": f"{rule} {gain}"})).items():
            expected = gain**2 * VARIANCES[rule](name, *FANS[name])
            assert matrix.square().mean().item() == pytest.approx(expected, rel=0.06), name
            if rule == "truncated_normal":
                assert matrix.abs().max() <= 2.0 / 0.8796 * gain * 0.02 * 1.0001


def test_orthogonal_matrices_are_orthogonal_one_by_one():
    for name, matrix in matrices(replace(CONFIG, init={"*": "orthogonal 2"})).items():
        short = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
        unit = 4 * torch.eye(short.shape[0])
        torch.testing.assert_close(short @ short.T, unit, rtol=0, atol=1e-5, msg=name)


def test_the_last_pattern_that_fits_holds_and_nothing_else_changes():
    plain = weights(CONFIG)
    chosen = weights(replace(CONFIG, init={"*.mlp.*": "he", "layers.0.*.down.weight": "zero"}))
    assert not chosen["layers.0.mlp.down.weight"].any()
    assert chosen["layers.1.mlp.down.weight"].square().mean() == pytest.approx(2 / 192, rel=0.05)
    for name, value in plain.items():
        assert torch.equal(chosen[name], value) == (".mlp." not in name), name
    assert not chosen["embedding.weight"][60:].any()
    assert set(RULES) == {*VARIANCES, "orthogonal"}


@pytest.mark.parametrize(
    ("choices", "names"),
    [
        ({"init": {"*": "zero"}}, {"embedding.weight", "head.weight"}),
        ({"init_std": 0.0, "tied": True}, {"embedding.weight"}),
        ({"init": {"*": "zero"}, "positions": "learned"}, {"embedding.weight", "head.weight"}),
        ({"residual_init": "zero", "init": {"*.qkv.weight": "zero"}}, {"attention"}),
        ({"init": {"*.up.weight": "zero", "*.down.weight": "zero"}, "activation": "relu"}, {"mlp"}),
        ({"init": {"*.up.weight": "zero", "*.down.weight": "zero"}, "activation": "sigmoid"}, ()),
        ({"init": {"head.weight": "zero", "layers.*": "normal"}}, ()),
        ({"init": {"embedding.weight": "zero"}}, ()),
    ],
)
def test_weights_that_no_gradient_can_reach_are_found_by_the_start_of_both_factors(choices, names):
    """What is found has no gradient after a step of descent either; all else has one."""
    config = replace(CONFIG, **choices)
    network = config.build()
    initialise(network, 0)
    zero = {name for name, p in network.named_parameters() if not p.any()}
    found = {name for pair in stuck(config, zero) for name in pair}
    tokens, descent = torch.arange(32)[None], torch.optim.SGD(network.parameters(), lr=1.0)
    for _ in range(3):
        descent.zero_grad()
        logits = network(tokens, lambda hidden, head: hidden @ head.weight.T)
        F.cross_entropy(logits[0], tokens[0].roll(1)).backward()
        descent.step()
    still = {name for name, parameter in network.named_parameters() if not parameter.any()}
    assert found == still - {"positions.weight"}
    assert bool(found) == bool(names)
    assert all(any(name in each for each in found) for name in names)


def test_deepnorm_brings_its_own_initial_weights():
    own = weights(replace(CONFIG, norm_placement="deepnorm"))
    named = weights(replace(CONFIG, init={"layers.*": "deepnorm"}))
    assert all(torch.equal(value, named[name]) for name, value in own.items())


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"*.gate.weight": "he"}, "fits no matrix; write a pattern of names such as embedding"),
        ({"*norm*": "he"}, "fits no matrix"),
        ({"*.up.weight": "he", "*.gate_up.weight": "he", "*": "xavier"}, "fits no matrix"),
        ({"*.gate_up.weight": "he", "*": "xavier"}, r"gate_up.weight'\] has no effect.*remove it"),
        ({"*": "kaiming"}, r"init\['\*'\]='kaiming' is not one of normal, .* as in 'he 0.5'"),
        ({"*": "he -1"}, "number above 0"),
        ({"*": "he twice"}, "number above 0"),
    ],
)
def test_faulty_rules_are_refused(init, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, init=init).build()


# --- variance in and out --------------------------------------------------------------------------


def drawn(rule, outputs, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.empty(outputs, inputs).normal_(generator=generator)
    fans = Fans(inputs, outputs, True)
    fill(matrix, InitialRule(rule), std(InitialRule(rule), fans, init_std=0.02, layers=1))
    return matrix


def mean_square(x):
    return x.square().mean().item()


@pytest.mark.parametrize(
    ("rule", "function"),
    [("lecun", lambda x: x), ("xavier", lambda x: x), ("orthogonal", lambda x: x), ("he", F.relu)],
)
def test_variance_through_64_matrices(rule, function):
    """Each layer keeps the mean square, for He of what a ReLU has halved; and so do gradients.

    A random product of 64 matrices strays from its mean as exp(64 / width); the gain of a layer,
    as a mean over layers, does not. Orthogonal matrices do not stray at all.
    """
    width, layers = 512, 64
    x = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    gradient, first, gains, back = x.clone(), mean_square(x), [], []
    for layer in range(layers):
        matrix = drawn(rule, width, width, layer)
        y = function(x)
        gain = 2.0 if function is F.relu else 1.0
        out = y @ matrix.T
        gains.append(mean_square(out) / (gain * mean_square(y)))
        passed = gradient @ matrix * (torch.rand_like(gradient) < 1 / gain)  # half the units are on
        back.append(mean_square(passed) / mean_square(gradient))
        x, gradient = out, passed
    assert sum(gains) / layers == pytest.approx(1.0, rel=0.02)
    assert sum(back) / layers == pytest.approx(1.0, rel=0.05)
    if rule == "orthogonal":
        assert mean_square(x) == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("layers", [4, 16, 64])
def test_variance_of_the_residual_stream_at_any_depth(layers):
    """2 L branches add 1 / (4 L) each to a stream that starts at 1, which makes 1.5 at the end.

    The norm gives a branch a mean square of 1, and the rules keep it up to the last weight.
    Attention to a single position is value and output.
    """
    rules = {
        "*.up.weight": "lecun",
        "*.down.weight": f"he {(4 * layers) ** -0.5}",  # of a variance that the ReLU halves
        "*.qkv.weight": "lecun",
        "*.out.weight": f"lecun {(4 * layers) ** -0.5}",
    }
    config = Transformer(
        vocab_size=64, layers=layers, width=256, heads=4, max_sequence=1, mlp_width=256,
        activation="relu", init_std=1.0, init=rules,
    )  # fmt: skip
    network = config.build()
    initialise(network, 0)
    with torch.no_grad():
        stream = network(torch.arange(64)[:, None], lambda hidden, _: hidden)
    assert mean_square(stream) == pytest.approx(1.0, rel=0.01)  # the last norm
    seen = []
    network.norm.register_forward_pre_hook(lambda _, inputs: seen.append(mean_square(inputs[0])))
    with torch.no_grad():
        network(torch.arange(64)[:, None], lambda hidden, _: hidden)
    start = mean_square(network.embedding.weight)
    assert seen[0] - start == pytest.approx(0.5, rel=0.05)
    assert math.isclose(start, 1.0, rel_tol=0.05)
