"""Initial weights depend on nothing but (seed, name)."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from llm_train.model.network import Initial, LanguageModel, Transformer, initialise, materialise
from llm_train.model.network.init import canonical_name
from llm_train.model.network.meta import without_parameters

CONFIG = Transformer(
    vocab_size=50, layers=2, width=32, heads=4, kv_heads=2, max_sequence=16, qk_norm=True, bias=True
)
TIED = replace(CONFIG, tied=True, positions="learned", norm="layernorm", activation="gelu")


def weights(network):
    return {canonical_name(n): p.detach().clone() for n, p in network.named_parameters()}


def initialised(config, seed=7):
    network = config.build()
    initialise(network, seed)
    return network


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["free", "tied"])
def test_the_same_on_the_meta_path_whatever_happened_before(config):
    expected = weights(initialised(config))
    torch.manual_seed(99)
    torch.randn(5)
    with torch.device("meta"):
        network = config.build()
    assert all(t.is_meta for t in [*network.parameters(), *network.buffers()])
    materialise(network, torch.device("cpu"))
    before = torch.get_rng_state()
    initialise(network, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(weights(network), expected)
    assert_same(dict(network.named_buffers()), dict(config.build().named_buffers()))
    assert (network.head.weight is network.embedding.weight) == config.tied


class Pair(LanguageModel):
    """Two layers that can be constructed in either order."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(4, 4, bias=False))

    def blocks(self):
        return []

    def initial(self, name):
        return Initial(0.0, 1.0)

    def forward(self, tokens, readout):
        raise NotImplementedError


def test_build_order_does_not_matter():
    first, second = Pair(["a", "b"]), Pair(["b", "c", "a"])
    initialise(first, 0)
    initialise(second, 0)
    found, expected = weights(second), weights(first)
    assert torch.equal(found["a.weight"], expected["a.weight"])
    assert torch.equal(found["b.weight"], expected["b.weight"])
    assert not torch.equal(found["a.weight"], found["b.weight"])


def test_wrappers_do_not_change_names():
    expected = weights(initialised(CONFIG))
    network = CONFIG.build()
    for index in range(2):
        wrapped = checkpoint_wrapper(network.layers[index])
        network.layers[index] = torch.compile(wrapped, backend="eager")
    assert any("_orig_mod" in name for name, _ in network.named_parameters())
    initialise(network, 7)
    assert_same(weights(network), expected)


def test_another_seed_gives_other_weights():
    one, other = weights(initialised(CONFIG, 1)), weights(initialised(CONFIG, 2))
    for name in one:
        constant = CONFIG.build().initial(name).std == 0.0
        assert torch.equal(one[name], other[name]) == constant


@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary_padding_changes_nothing_else(tied):
    config = replace(CONFIG, tied=tied)
    expected = weights(initialised(config))
    padded = weights(initialised(replace(config, pad_vocab_to=64)))
    for name in {"embedding.weight", "head.weight"} & padded.keys():
        assert padded[name].shape == (64, 32)
        assert not padded[name][50:].any()
        padded[name] = padded[name][:50]
    assert_same(padded, expected)


def test_low_precision_is_the_rounded_float32():
    expected = {k: v.bfloat16() for k, v in weights(initialised(CONFIG)).items()}
    network = CONFIG.build().bfloat16()
    initialise(network, 7)
    assert_same(weights(network), expected)


def test_distributions():
    config = replace(CONFIG, width=128, layers=8, vocab_size=1000, init_std=0.05)
    for name, value in weights(initialised(config)).items():
        if name.endswith(".bias"):
            assert not value.any()
        elif name.endswith("norm.weight"):
            assert (value == 1).all()
        else:
            std = 0.05 / 4 if name.endswith(("out.weight", "down.weight")) else 0.05
            assert value.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(value.mean().item()) < 0.03 * std, name
    zero = weights(initialised(replace(config, residual_init="zero")))
    assert not any(v.any() for k, v in zero.items() if k.endswith(("out.weight", "down.weight")))


def test_each_parameter_is_gathered_once_for_writing():
    """Parameters are empty until they are gathered, as DeepSpeed ZeRO 3 leaves them."""
    expected = weights(initialised(TIED))
    network = TIED.build()
    whole = {id(p): p.data for p in network.parameters()}
    visited = []

    @contextlib.contextmanager
    def gathered(parameter):
        visited.append(id(parameter))
        parameter.data = whole[id(parameter)]
        yield
        parameter.data = torch.empty(0)

    for parameter in network.parameters():
        parameter.data = torch.empty(0)
    initialise(network, 7, gathered)
    assert sorted(visited) == sorted(whole)
    for name, parameter in network.named_parameters():
        assert torch.equal(whole[id(parameter)], expected[name]), name


class Marked(Pair):
    """Has a buffer that its constructor computes, alongside parameters, two of them tied."""

    def __init__(self):
        super().__init__(["first", "second"])
        self.register_buffer("slopes", torch.linspace(0, 1, 257), persistent=False)
        self.second.weight = self.first.weight


def test_buffers_keep_what_a_constructor_computed():
    with without_parameters():
        network = Marked()
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.second.weight is network.first.weight
    assert torch.equal(network.slopes, torch.linspace(0, 1, 257))
    materialise(network, "cpu", buffers="meta")  # two places, as under offloading
    assert network.slopes.is_meta
    assert not any(parameter.is_meta for parameter in network.parameters())


def test_a_network_on_meta_is_not_initialised():
    with torch.device("meta"):
        network = CONFIG.build()
    with pytest.raises(AssertionError, match=r"embedding\.weight has no storage"):
        initialise(network, 7)
