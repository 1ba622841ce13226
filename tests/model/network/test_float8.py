"""FP8 products are compared with full precision; all but the arithmetic stays as it was.

On a CPU the products are emulated, so the numbers are those of FP8 although the speed is not.
"""

import copy
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from statistics import mean

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.flop_counter import FlopCounterMode

from llm_train.errors import ConfigError
from llm_train.model.loss import CausalLM
from llm_train.model.network import Counts, Transformer, initialise, materialise
from llm_train.model.network import float8 as under_test
from llm_train.model.network.float8 import to_float8
from llm_train.model.recompute import EveryBlock, EveryNth, NoRecompute, Selective

pytestmark = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")

CPU = torch.device("cpu")
RECIPES = ("tensorwise", "rowwise")
CONFIG = Transformer(vocab_size=61, layers=2, width=32, heads=2, max_sequence=32)
STEPS, PARITY = 30, 0.04  # relative difference of the mean loss of steps 26 to 30
POLICIES = (NoRecompute(), EveryBlock(), EveryNth(n=2), Selective())


def build(recipe="none", config=CONFIG, policy=None):
    """Builds as Task.configure_model does: on meta, FP8, recompute, materialise, initialise."""
    with torch.device("meta"):
        network = config.build()
    if recipe != "none":
        to_float8(network, recipe, CPU)
    if policy is not None:
        policy.apply(network.blocks())
    materialise(network, CPU)
    initialise(network, 7)
    return network


def converted_layers(network):
    return [name for name, m in network.named_modules() if type(m).__name__ == "Float8Linear"]


def batch(step=0, rows=8, length=32):
    """Returns learnable tokens: 5t + 3 modulo the vocabulary, one in ten at random."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(CONFIG.vocab_size, (rows, length + 1), generator=generator)
    noise = torch.rand(tokens.shape, generator=generator) < 0.1
    for t in range(length):
        tokens[:, t + 1].copy_(
            torch.where(noise[:, t], tokens[:, t + 1], (5 * tokens[:, t] + 3) % CONFIG.vocab_size)
        )
    return tokens


def loss(network, tokens):
    sums = network(tokens[:, :-1], partial(CausalLM(), targets=tokens[:, 1:]))
    return sums.objective / tokens[:, 1:].numel()


def operations(network):
    with FlopCounterMode(display=False) as counter:
        loss(network, batch()).backward()
    return counter


def gradients(network, tokens):
    value = loss(network, tokens)
    value.backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad()
    return value.detach(), found


# --- what stays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(
            CONFIG, norm="layernorm", activation="gelu", positions="learned", bias=True, tied=True
        ),
    ],
    ids=["llama", "gpt2"],
)
def test_names_weights_and_counts_are_unchanged(recipe, config):
    plain, converted = build(config=config), build(recipe, config)
    expected = dict(plain.named_parameters())
    assert [name for name, _ in converted.named_parameters()] == list(expected)
    for name, parameter in converted.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        assert type(parameter) is nn.Parameter
    assert list(converted.state_dict()) == list(plain.state_dict())
    assert Counts(converted).flops_per_token(16) == Counts(plain).flops_per_token(16)
    assert [type(m) for m in converted.children()] == [type(m) for m in plain.children()]
    assert operations(converted).get_total_flops() == operations(plain).get_total_flops()


def test_parameters_are_kept_not_copied():
    network = CONFIG.build()
    before = list(network.parameters())
    to_float8(network, "rowwise", CPU)
    assert all(a is b for a, b in zip(before, network.parameters(), strict=True))
    ends = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
    assert converted_layers(network) == [f"layers.{i}.{end}" for i in range(2) for end in ends]


def test_state_dicts_are_exchanged_with_a_network_without():
    converted, plain = build("tensorwise"), build()
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.add_(0.01)
    plain.load_state_dict(converted.state_dict())
    back = build("tensorwise")
    back.load_state_dict(plain.state_dict())
    tokens = batch()
    assert torch.equal(loss(back, tokens), loss(converted, tokens))
    assert not torch.equal(loss(plain, tokens), loss(converted, tokens))


# --- what is converted ----------------------------------------------------------------------------


def test_layers_that_do_not_fit_stay():
    config = Transformer(vocab_size=61, layers=1, width=32, heads=2, max_sequence=32, mlp_width=40)
    network = config.build()
    to_float8(network, "tensorwise", CPU)  # mlp.down is 32 x 40
    ends = ("attention.qkv", "attention.out", "mlp.gate_up")
    assert converted_layers(network) == [f"layers.0.{end}" for end in ends]


def test_nothing_fits():
    config = Transformer(
        vocab_size=64, layers=1, width=24, heads=2, max_sequence=32, mlp_width=40, activation="gelu"
    )
    with pytest.raises(ConfigError) as caught:
        to_float8(config.build(), "rowwise", CPU)
    assert str(caught.value) == (
        "model.float8=rowwise converts no layer: none of the blocks' linear layers (24 x 24, "
        "24 x 40, 40 x 24, 72 x 24) has two dimensions that are multiples of 16; change the "
        "network's widths, or set model.float8=none"
    )


def test_without_torchao(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(
        ConfigError, match=r"model.float8=rowwise needs the package torchao.*llm-train\[torchao"
    ):
        to_float8(CONFIG.build(), "rowwise", CPU)


def test_devices_without_fp8_units(monkeypatch):
    with pytest.raises(ConfigError, match=r"emulated, on CPUs\), not on mps; set model.float8="):
        to_float8(CONFIG.build(), "rowwise", torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ConfigError) as caught:
        to_float8(CONFIG.build(), "tensorwise", torch.device("cuda", 0))
    assert str(caught.value) == (
        "model.float8=tensorwise needs compute capability 8.9 or higher, and NVIDIA A100 has 8.0; "
        "set model.float8=none"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert under_test.lacks_float8(torch.device("cuda", 0)) == ""


# --- arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_product_is_rounded_to_three_bits_of_mantissa(recipe):
    """The forward product by hand: scale to e4m3's 448, round, multiply, scale back."""
    network = build(recipe)
    layer, x = network.layers[0].mlp.gate_up, torch.randn(5, 32)

    def rounded(values):  # (rows, 32), one scale per row or one in all
        largest = values.abs().amax(1, keepdim=True) if recipe == "rowwise" else values.abs().max()
        scale = 448 / largest
        if recipe == "rowwise":
            scale = torch.exp2(torch.floor(torch.log2(scale)))
        return (values * scale).to(torch.float8_e4m3fn).float() / scale

    expected = rounded(x) @ rounded(layer.weight).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-7)
    exact = nn.functional.linear(x, layer.weight)
    error = (layer(x) - exact).norm() / exact.norm()
    assert 0.005 < error < 0.06  # half a unit in the third bit, at most 1/16


def has_operator(recipe):
    """Whether this torch multiplies in FP8 on a CPU; 2.11 does with one scale a tensor only."""
    operand = torch.zeros(16, 16).to(torch.float8_e4m3fn)
    rows = 16 if recipe == "rowwise" else 1
    scales = torch.ones(rows, 1), torch.ones(1, rows)
    try:
        torch._scaled_mm(operand, operand.T, *scales, out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("recipe", RECIPES)
def test_emulation_equals_the_operator_that_gpus_run(recipe, monkeypatch):
    """torch has ``_scaled_mm`` for CPUs, too: slower than bf16, but with the same arithmetic."""
    if not has_operator(recipe):
        pytest.skip(f"torch {torch.__version__} has no {recipe} products for CPUs to compare with")
    emulated = build(recipe)
    monkeypatch.setattr(under_test.dataclasses, "replace", lambda config, emulate: config)
    real = build(recipe)
    tokens = batch()
    with torch.autocast("cpu", torch.bfloat16):
        value, grads = gradients(emulated, tokens)
        other, others = gradients(real, tokens)
    torch.testing.assert_close(other, value, rtol=1e-3, atol=0)
    for name, gradient in grads.items():
        assert (gradient - others[name]).norm() < 0.02 * gradient.norm(), name


def trained(recipe, dtype):
    """Returns losses while only the blocks learn; embedding and head stay as drawn at random.

    Otherwise these two would learn this table of tokens alone, whatever the blocks compute. With
    both of them frozen and no blocks, the loss stays above 4.4.
    """
    network = build(recipe, replace(CONFIG, init_std=0.2))
    network.embedding.requires_grad_(False)
    network.head.requires_grad_(False)
    learning = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    losses = []
    for step in range(STEPS):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss(network, batch(step))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_training_is_as_good_as_without(dtype):
    plain = trained("none", dtype)
    assert plain[-1] < 0.3 * plain[0]
    for recipe in RECIPES:
        losses = trained(recipe, dtype)
        assert losses[-1] < 0.3 * losses[0]
        assert mean(losses[-5:]) == pytest.approx(mean(plain[-5:]), rel=PARITY), recipe
        assert losses != plain


# --- with the other parts -------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_recomputation_gives_the_same_gradients(recipe, policy):
    tokens = batch()
    value, grads = gradients(build(recipe), tokens)
    other, others = gradients(build(recipe, policy=policy), tokens)
    assert torch.equal(value, other)
    assert all(torch.equal(grads[name], others[name]) for name in grads)


def test_selective_recomputation_keeps_fp8_products():
    flops = {}
    for policy in (NoRecompute(), EveryBlock(), Selective()):
        counter = operations(build("tensorwise", policy=policy))
        flops[type(policy)] = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert flops[Selective] == flops[NoRecompute] < flops[EveryBlock]


@pytest.mark.filterwarnings(  # dynamo itself looks at the gradient of a block's input
    "ignore:The .grad attribute:UserWarning"
)
@pytest.mark.parametrize(
    ("recipe", "policy"),
    [("tensorwise", NoRecompute()), ("rowwise", Selective())],
    ids=["tensorwise", "rowwise-selective"],
)
def test_blocks_compile_whole_and_equal_eager(recipe, policy):
    tokens = batch()
    network = build(recipe, policy=policy)
    value, grads = gradients(network, tokens)
    for block in network.blocks():
        block.compile(backend="aot_eager", fullgraph=True)
    other, others = gradients(network, tokens)
    assert torch.equal(value, other)
    assert all(torch.equal(grads[name], others[name]) for name in grads)
    assert not any("_orig_mod" in name for name, _ in network.named_parameters())


def test_autocast_on_a_gpu_warns_of_nothing():
    """torchao takes this branch under CUDA's autocast; a warning would be an error here."""
    layer = build("tensorwise").layers[0].mlp.down
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        out = layer(torch.randn(4, layer.in_features))
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("recipe", RECIPES)
def test_fully_shard(recipe, mesh):
    """Shards on meta as Task does: fp32 equals unsharded, and bf16 gathers agree closely."""
    tokens = batch()
    plain = build(recipe)
    value, grads = gradients(plain, tokens)
    exact = MixedPrecisionPolicy()
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for policy, tolerance in ((exact, 1e-6), (low, 0.02)):
        with torch.device("meta"):
            network = CONFIG.build()
        to_float8(network, recipe, CPU)
        EveryBlock().apply(network.blocks())
        for block in network.blocks():
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(network, mesh=mesh, mp_policy=policy)
        materialise(network, CPU)
        initialise(network, 7)
        other, others = gradients(network, tokens)
        torch.testing.assert_close(other, value, rtol=tolerance, atol=0)
        assert list(others) == list(grads)
        for name, gradient in others.items():
            whole = gradient.full_tensor()
            assert whole.dtype == torch.float32
            if policy is exact:
                torch.testing.assert_close(whole, grads[name], rtol=1e-4, atol=1e-7, msg=name)


def test_a_copy_is_independent():
    network = build("rowwise")
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert loss(network, batch()) != loss(twin, batch())
