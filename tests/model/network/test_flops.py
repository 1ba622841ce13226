"""Counts equal torch's FlopCounterMode and published parameter counts.

torch counts every SDPA as if it were not causal. With the math kernel its backward has two products
for each forward product, 12 * width * sequence in all, which is exactly our non-causal convention.
For a flash kernel it counts one more product in the backward, which recomputes the scores: 14
instead of 12. It does not know the CPU flash kernel at all, which leaves only the matrix products.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from llm_train.errors import ConfigError
from llm_train.model.network import Transformer, count, initialise

TINY = Transformer(vocab_size=29, layers=2, width=32, heads=4, max_sequence=16)
SHAPES = {
    "llama": TINY,
    "gqa": replace(TINY, kv_heads=2, qk_norm=True, soft_cap=15.0),
    "mqa": replace(TINY, kv_heads=1, mlp_width=40, layers=3),
    "tied": replace(TINY, tied=True, activation="relu2", pad_vocab_to=16),
    "gpt2": replace(
        TINY, tied=True, bias=True, norm="layernorm", activation="gelu", positions="learned"
    ),
}
BATCH, SEQUENCE = 2, 16


def flops_by_torch(config, backend):
    network = config.build()
    initialise(network, 0)
    tokens = torch.zeros(BATCH, SEQUENCE, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(backend), counter:
        network(
            tokens, lambda hidden, projection: projection.logits(hidden)[..., :29].sum()
        ).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_torch_with_the_math_kernel(shape):
    counts = count(SHAPES[shape].build())
    per_token = counts.flops_per_token(SEQUENCE, causal=False)
    assert flops_by_torch(SHAPES[shape], SDPBackend.MATH) == BATCH * SEQUENCE * per_token


@pytest.mark.parametrize("shape", SHAPES)
def test_matrix_products_alone_equal_torch(shape):
    counts = count(SHAPES[shape].build())
    found = flops_by_torch(SHAPES[shape], SDPBackend.FLASH_ATTENTION)
    assert found == BATCH * SEQUENCE * 6 * counts.matmul_parameters


def test_torch_counts_one_more_product_for_a_flash_backward():
    heads, head_dim = 4, 8
    shape = (BATCH, heads, SEQUENCE, head_dim)
    total = sdpa_flop_count(shape, shape, shape)
    total += sdpa_backward_flop_count(shape, shape, shape, shape)
    assert total == BATCH * SEQUENCE * 14 * heads * head_dim * SEQUENCE


@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula(shape):
    config = SHAPES[shape]
    counts = count(config.build())
    assert counts.attention_width == config.layers * config.width
    attention = config.layers * config.width * SEQUENCE
    assert counts.flops_per_token(SEQUENCE) == 6 * counts.matmul_parameters + 6 * attention
    assert counts.flops_per_token(SEQUENCE, causal=False) - counts.flops_per_token(SEQUENCE) == (
        6 * attention
    )


def test_tying_changes_parameters_but_not_work():
    free, tied = count(TINY.build()), count(replace(TINY, tied=True).build())
    assert free.parameters - tied.parameters == 29 * 32
    assert free.matmul_parameters == tied.matmul_parameters


def gpt2(layers, width, heads):
    return Transformer(
        vocab_size=50257, layers=layers, width=width, heads=heads, max_sequence=1024,
        norm="layernorm", activation="gelu", positions="learned", tied=True, bias=True,
    )  # fmt: skip


def llama3(layers, width, heads, mlp_width, tied):
    return Transformer(
        vocab_size=128256, layers=layers, width=width, heads=heads, kv_heads=8,
        mlp_width=mlp_width, max_sequence=8192, rotary_base=500_000.0, tied=tied,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (gpt2(12, 768, 12), 124_439_808),
        (gpt2(24, 1024, 16), 354_823_168),
        (gpt2(36, 1280, 20), 774_030_080),
        (gpt2(48, 1600, 25), 1_557_611_200),
        (llama3(32, 4096, 32, 14336, tied=False), 8_030_261_248),
        (llama3(16, 2048, 32, 8192, tied=True), 1_235_814_400),
        (llama3(28, 3072, 24, 8192, tied=True), 3_212_749_824),
    ],
    ids=["124M", "350M", "774M", "1.5B", "llama3-8B", "llama3.2-1B", "llama3.2-3B"],
)
def test_published_parameter_counts(config, parameters):
    with torch.device("meta"):
        network = config.build()
    assert count(network).parameters == parameters


def test_a_parameter_in_an_unknown_module_is_refused():
    network = TINY.build()
    network.layers[0].extra = nn.Conv1d(2, 2, 1)
    with pytest.raises(ConfigError, match=r"layers\.0\.extra\.weight is in a Conv1d, whose FLOPs"):
        count(network)
