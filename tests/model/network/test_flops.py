"""Counts equal torch's FlopCounterMode and published parameter counts.

torch counts every SDPA as if it were not causal. With the math kernel its backward has two products
for each forward product, 12 * width * sequence in all, which is exactly our non-causal convention.
It does not know the CPU flash kernel at all, which leaves only the matrix products.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llm_train.check import problems
from llm_train.cli.dispatch import load_settings
from llm_train.errors import ConfigError
from llm_train.model.network import Counts, ForwardFlops, LanguageModel, Transformer, initialise
from llm_train.model.network.flops import count_forward
from llm_train.model.network.head import Head
from llm_train.model.network.transformer import Decoder
from llm_train.testing.configs import tiny, write

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


def flops_by_torch(network, backend):
    tokens = torch.zeros(BATCH, SEQUENCE, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(backend), counter:
        network(
            tokens, lambda hidden, projection: projection.logits(hidden)[..., :29].sum()
        ).backward()
    return counter.get_total_flops()


def counts_of(config):
    with torch.device("meta"):
        return Counts(config.build())


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_torch_with_the_math_kernel(shape):
    network = SHAPES[shape].build()
    initialise(network, 0)
    per_token = counts_of(SHAPES[shape]).flops_per_token(SEQUENCE, causal=False)
    assert flops_by_torch(network, SDPBackend.MATH) == BATCH * SEQUENCE * per_token
    products = 6 * counts_of(SHAPES[shape]).matmul_parameters(SEQUENCE)
    assert flops_by_torch(network, SDPBackend.FLASH_ATTENTION) == BATCH * SEQUENCE * products
    assert count_forward(network.to("meta"), SEQUENCE) == network.forward_flops(SEQUENCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula(shape):
    config = SHAPES[shape]
    counts, weights = counts_of(config), dict(config.build().named_parameters())
    weights["head.weight"] = weights.get("head.weight", weights["embedding.weight"])
    matrices = [
        n for n in weights if weights[n].ndim == 2 and n.split(".")[0] in ("layers", "head")
    ]
    matmul_parameters = sum(weights[name].numel() for name in matrices)
    assert counts.matmul_parameters(SEQUENCE) == matmul_parameters
    for sequence in (SEQUENCE, SEQUENCE // 2):
        attention = 6 * config.layers * config.width * sequence
        for causal, cost in ((True, attention), (False, 2 * attention)):
            found = counts.flops_per_token(sequence, causal=causal)
            assert found == 6 * matmul_parameters + cost


def test_tying_changes_parameters_but_not_work():
    free, tied = counts_of(TINY), counts_of(replace(TINY, tied=True))
    assert free.parameters - tied.parameters == 29 * 32
    assert free.matmul_parameters(SEQUENCE) == tied.matmul_parameters(SEQUENCE)


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
    assert counts_of(config).parameters == parameters


WIDTH, IDS = 16, 29


class Around(LanguageModel):
    """Embedding, one block of a user's, head."""

    def __init__(self, block):
        super().__init__()
        self.embedding, self.block = nn.Embedding(IDS, WIDTH), block
        self.head = Head(WIDTH, IDS, vocab_size=IDS, soft_cap=0.0)

    def blocks(self):
        return [self.block]

    def initial(self, name):
        raise NotImplementedError

    def forward(self, tokens, readout):
        return self.head(self.block(self.embedding(tokens)), readout)


class Block(nn.Module):
    """A function of (block, x) with a bare parameter of three square matrices."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weights = function, nn.Parameter(torch.ones(3, WIDTH, WIDTH))

    def forward(self, x):
        return self.function(self, x)


class Convolution(nn.Conv1d):
    def forward(self, x):
        return super().forward(x.mT)[..., : x.shape[1]].mT


def attention(block, x, **options):
    q, k, v = (F.linear(x, weight)[:, None] for weight in block.weights)
    return F.scaled_dot_product_attention(q, k, v, **options)[:, 0]


def masked(block, x):
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    return attention(block, x, attn_mask=mask)


def by_hand(block, x):
    q, k, v = (x @ weight for weight in block.weights)
    return (q @ k.mT).softmax(-1) @ v


MATRIX, PAIRS = WIDTH * WIDTH, WIDTH * SEQUENCE
BLOCKS = {  # a block, what it costs a token forward over all pairs, the part causality spares
    "LayerNorm": (nn.LayerNorm(WIDTH), 0, 0),
    "Conv1d": (Convolution(WIDTH, WIDTH, 4, padding=3), 8 * MATRIX * (SEQUENCE + 3) / SEQUENCE, 0),
    "causal": (Block(partial(attention, is_causal=True)), 6 * MATRIX + 4 * PAIRS, 2 * PAIRS),
    "mask": (Block(masked), 6 * MATRIX + 4 * PAIRS, 2 * PAIRS),
    "by hand": (Block(by_hand), 6 * MATRIX + 4 * PAIRS, 0),
    "experts": (
        Block(lambda b, x: torch.einsum("bsd,edm->besm", x, b.weights).sum(1)),
        6 * MATRIX,
        0,
    ),
    "gate": (Block(lambda b, x: x * (x @ b.weights[0, 0])[..., None]), 2 * WIDTH, 0),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_work_of_any_module_is_counted(name):
    block, cost, spared = BLOCKS[name]
    counts, head = Counts(Around(block).to("meta")), 2 * WIDTH * IDS
    assert counts.flops_per_token(SEQUENCE, causal=False) == 3 * (head + cost)
    assert counts.flops_per_token(SEQUENCE) == 3 * (head + cost - spared)


class Unused(nn.Conv1d):
    def forward(self, x):
        return x


torch.library.define("llm_train_test::double", "(Tensor x) -> Tensor")
torch.library.impl("llm_train_test::double", "Meta", lambda x: x)


@pytest.mark.parametrize(
    ("block", "named"),
    [
        (Unused(2, 2, 1), "block.weight"),
        (Block(lambda b, x: torch.ops.llm_train_test.double(x @ b.weights[0])), "double"),
        (Block(lambda b, x: torch.fft.rfft(x, dim=1).real.sum() * x @ b.weights[0]), "_fft_r2c"),
        (Block(lambda b, x: x.sum(1).addmm_(x[0], b.weights[0])), "addmm_"),
        (Block(lambda b, x: x[x > 0] @ b.weights[0]), "nonzero"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name_and_may_be_declared(block, named):
    network = Around(block).to("meta")
    with pytest.raises(ConfigError, match=rf"model\.network: .*{named}.*forward_flops"):
        Counts(network).flops_per_token(SEQUENCE)
    network.forward_flops = lambda sequence: ForwardFlops(4 * sequence, sequence, 2 * sequence)
    assert Counts(network).flops_per_token(SEQUENCE) == 15


def test_check_lists_what_cannot_be_counted_with_all_other_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(Decoder, "forward_flops", LanguageModel.forward_flops)
    monkeypatch.setattr(Decoder, "forward", lambda network, tokens, readout: tokens.item())
    config = tiny(tmp_path / "run", validate_every="1000 steps")
    found = problems(load_settings(["-c", str(write(tmp_path / "c.yaml", config))]), running=False)
    assert [line.split(" ")[0] for line in found] == ["validate_every=1000", "model.network:"]
