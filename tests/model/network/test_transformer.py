"""The decoder equals a second implementation and has the properties that need none."""

import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from llm_train.errors import ConfigError
from llm_train.model.network import Transformer, initialise
from llm_train.model.network.activations import Activation
from llm_train.model.network.attention import Attention
from llm_train.model.network.block import make_mlp
from llm_train.model.network.rotary_scaling.yarn import YaRN

plain = runpy.run_path(str(Path(__file__).with_name("plain_decoder.py")))

GPT2 = Transformer(
    vocab_size=23, layers=2, width=12, heads=3, max_sequence=9, norm="layernorm",
    activation="gelu", positions="learned", tied=True, bias=True, init_std=0.3,
)  # fmt: skip
MODERN = Transformer(
    vocab_size=23, pad_vocab_to=8, layers=2, width=16, heads=4, kv_heads=2, max_sequence=9,
    qk_norm=True, soft_cap=3.0, rotary_base=100.0, init_std=0.3,
)  # fmt: skip
VARIANTS = {
    "gpt2": GPT2,
    "modern": MODERN,
    "relu2": replace(MODERN, activation="relu2", bias=True, tied=True, kv_heads=1),
    "gelu-erf": replace(GPT2, activation="gelu_erf"),
    "odd-mlp": replace(MODERN, mlp_width=20, norm="layernorm", qk_norm=False),
    "post-alibi": replace(MODERN, norm_placement="post", positions="alibi", rotary_base=10_000.0),
    "deepnorm": replace(GPT2, norm_placement="deepnorm", positions="none", activation="tanh"),
    "sandwich": replace(
        MODERN, norm_placement="sandwich", rotary_scaling=YaRN(factor=4.0, original_length=60)
    ),
    "peri": replace(GPT2, norm_placement="peri", positions="sinusoidal", embedding_scale=2.0),
    "normless": replace(GPT2, norm="none", activation="geglu_erf"),
}


def built(config, seed=0, dtype=torch.float32):
    network = config.build()
    initialise(network, seed)
    # Norms and biases start as constants, and a comparison needs them to matter.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return network.to(dtype)


def some_tokens(config, batch=2, length=7, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def logits(hidden, projection):
    return projection.logits(hidden)


@pytest.mark.parametrize("name", VARIANTS)
def test_values_and_gradients_equal_the_plain_implementation(name):
    config = VARIANTS[name]
    network = built(config, dtype=torch.float64)
    tokens = some_tokens(config)
    copies = {k: p.detach().clone().requires_grad_() for k, p in network.named_parameters()}

    expected = plain["plain_logits"](copies, tokens, config)
    found = network(tokens, logits)[..., : config.vocab_size]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)  # float64 all the way

    targets = some_tokens(config, seed=4)
    for out in (expected, found):
        F.cross_entropy(out.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    assert {k for k, _ in network.named_parameters()} == set(copies)
    for key, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, key
        torch.testing.assert_close(parameter.grad, copies[key].grad, rtol=1e-8, atol=1e-9, msg=key)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_equals_its_formula(activation):
    config = replace(MODERN, activation=activation, mlp_width=20)
    mlp = make_mlp(config).double()
    weights = {f"mlp.{name}": weight for name, weight in mlp.named_parameters()}
    x = 3 * torch.randn(1, 50, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = plain["_mlp"](x, weights, "mlp", config)
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_padded_vocabulary_equals_unpadded(tied):
    config = replace(MODERN, pad_vocab_to=1, tied=tied)
    tokens, targets = some_tokens(config), some_tokens(config, seed=4)
    networks = []
    for pad in (1, 64):
        network = built(replace(config, pad_vocab_to=pad), dtype=torch.float64)
        out = network(tokens, logits)
        if pad > 1:
            assert out.shape[-1] == 64
            assert (out[..., 23:] == float("-inf")).all()
        loss = F.cross_entropy(out.flatten(0, 1), targets.flatten())
        loss.backward()
        networks.append((network, loss))
    (bare, bare_loss), (padded, padded_loss) = networks
    torch.testing.assert_close(padded_loss, bare_loss, rtol=1e-6, atol=0)
    padded = dict(padded.named_parameters())
    for name, parameter in bare.named_parameters():
        other = padded[name].grad
        if name in ("embedding.weight", "head.weight"):
            assert not other[23:].any()
            other = other[:23]
        torch.testing.assert_close(other, parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_future_does_not_change_the_past(name):
    network = built(VARIANTS[name])
    tokens = some_tokens(VARIANTS[name])
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 23
    before, after = network(tokens, logits), network(changed, logits)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:, :23] != after[:, 4:, :23]).any(-1).all()


def test_the_readout_runs_inside_the_head():
    network = built(MODERN)
    inside = []
    network.head.register_forward_pre_hook(lambda *_: inside.append(True))
    network.head.register_forward_hook(lambda *_: inside.clear())

    def readout(hidden, projection):
        assert inside == [True]
        assert projection.weight is network.head.weight
        return hidden.shape, projection.vocab_size, projection.soft_cap

    assert network(some_tokens(MODERN), readout) == ((2, 7, 16), 23, 3.0)
    assert inside == []


def test_the_rotary_table_is_not_state():
    assert not [key for key in built(MODERN).state_dict() if "rotary" in key]


def test_bfloat16_keeps_the_rotary_table():
    network = built(MODERN)
    before = network.rotary.table.clone()
    network.bfloat16()
    assert network.embedding.weight.dtype == torch.bfloat16
    assert network.rotary.table.dtype == torch.float32
    assert torch.equal(network.rotary.table, before)
    out = network(some_tokens(MODERN), lambda hidden, projection: hidden)
    assert out.dtype == torch.bfloat16


def test_autocast_keeps_float32_parameters_and_close_logits():
    network = built(MODERN)
    tokens = some_tokens(MODERN)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(tokens, logits)
        rough[..., :23].square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())
    torch.testing.assert_close(rough, network(tokens, logits), rtol=0.1, atol=0.1)


def test_dropout_acts_in_training_only():
    config = replace(GPT2, dropout=0.5)
    network, without = built(config), built(GPT2)
    tokens = some_tokens(config)
    torch.manual_seed(0)
    first, second = network(tokens, logits), network(tokens, logits)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(network(tokens, logits), first)
    network.eval()
    assert torch.equal(network(tokens, logits), without(tokens, logits))


def test_dropout_reaches_embedding_attention_and_residuals(monkeypatch):
    network = built(replace(GPT2, dropout=0.25))
    probabilities = []
    kernel = F.scaled_dot_product_attention

    def recorded(*args, dropout_p, **kwargs):
        probabilities.append(dropout_p)
        return kernel(*args, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    calls = []
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda m, *_: calls.append(m.p))
    network(some_tokens(GPT2), logits)
    assert probabilities == [0.25, 0.25]
    assert calls == [0.25] * 5  # embedding, then two branches in each of two blocks
    network.eval()(some_tokens(GPT2), logits)
    assert probabilities[2:] == [0.0, 0.0]


def test_zero_residual_init_makes_every_block_the_identity():
    network = replace(MODERN, residual_init="zero").build()
    initialise(network, 0)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    for block in network.blocks():
        assert torch.equal(block(x, network.rotary), x)


def test_contiguous_rows_of_the_fused_projections_are_smaller_layers():
    """Tensor parallelism needs this: two halves of the rows, run apart, add up to the whole."""
    config = replace(MODERN, mlp_width=128)
    network = built(config, dtype=torch.float64)
    block, x = network.layers[0], torch.randn(2, 5, 16, dtype=torch.float64)
    halves = []
    for rank in range(2):
        half = built(config, dtype=torch.float64).layers[0]
        for module, dim in (
            (half.attention.qkv, 0),
            (half.attention.out, 1),
            (half.mlp.gate_up, 0),
            (half.mlp.down, 1),
        ):
            module.weight = torch.nn.Parameter(module.weight.chunk(2, dim)[rank])
        halves.append(half)
    whole = block.attention(x, network.rotary, None)
    parts = sum(half.attention(x, network.rotary, None) for half in halves)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        sum(half.mlp(x) for half in halves), block.mlp(x), rtol=1e-10, atol=1e-12
    )


def test_derived_widths():
    assert GPT2.build().layers[0].mlp.up.weight.shape == (48, 12)
    assert MODERN.build().layers[0].mlp.gate_up.weight.shape == (128, 16)
    attention = MODERN.build().layers[0].attention
    assert isinstance(attention, Attention)
    assert attention.qkv.weight.shape == ((4 + 2 + 2) * 4, 16)
    assert (MODERN.token_ids, MODERN.max_positions, MODERN.padded_vocab_size) == (23, 9, 24)
    assert len(MODERN.build().blocks()) == 2


def test_a_sequence_that_is_too_long_is_refused():
    message = "a sequence of 10 tokens is longer than max_sequence=9; shorten it"
    with pytest.raises(ConfigError, match=re.escape(message)):
        built(MODERN)(torch.zeros(1, 10, dtype=torch.long), logits)


def test_unknown_parameter_names_have_no_distribution():
    with pytest.raises(KeyError, match=r"no initial distribution for parameter layers\.0\.bonus"):
        built(MODERN).initial("layers.0.bonus")


@pytest.mark.slow
@pytest.mark.filterwarnings(  # torch.utils.mkldnn, which inductor imports, uses its own old API
    "ignore:.*torch.jit.script_method:DeprecationWarning"
)
@pytest.mark.skipif(sys.platform != "linux", reason="inductor's CPU back end needs g++")
@pytest.mark.parametrize("config", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_a_block_compiles_without_a_graph_break(config):
    network = built(config)
    x = torch.randn(2, 7, config.width, generator=torch.Generator().manual_seed(0))
    block = network.layers[0]
    expected = block(x, network.rotary)
    compiled = torch.compile(block, fullgraph=True)
    torch.testing.assert_close(compiled(x, network.rotary), expected, rtol=1e-5, atol=1e-5)
