"""Documents that share a window give what each of them gives alone."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_train.model.loss import CausalLM, ChunkedCausalLM, Loss
from llm_train.model.network import Transformer, initialise
from llm_train.model.network.confined import (
    block_mask,
    confine,
    dense_mask,
    first_positions,
    own_targets,
)
from llm_train.model.network.sdpa import Kernel, attention_kernel
from llm_train.model.recompute import EveryBlock, NoRecompute, Recompute, Selective

END, VOCAB, SEQUENCE = 0, 31, 24
CHUNKED = ChunkedCausalLM(chunk_tokens=5)
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "layers": 2,
    "width": 16,
    "heads": 4,
    "kv_heads": 2,
    "max_sequence": SEQUENCE,
    "init_std": 0.5,
}


def documents() -> list[Tensor]:
    """Of 1 to 20 tokens, each of which ends."""
    generator = torch.Generator().manual_seed(0)
    lengths = (20, 3, 1, 1, 9, 7, 6, 13)
    made = [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]
    for document in made:
        document[-1] = END
    return made


def windows() -> Tensor:
    """(2, SEQUENCE + 1): the first is full and the second is not."""
    found = documents()
    rows = [torch.cat(found[:4]), torch.cat(found[4:7])]
    out = torch.full((2, SEQUENCE + 1), -1)
    for row, tokens in zip(out, rows, strict=True):
        row[: len(tokens)] = tokens
    return out


def score(network: nn.Module, loss: Loss, tokens: Tensor, *, confined: bool) -> tuple[Tensor, int]:
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    given: dict[str, Any] = {}
    if confined:
        given = {"documents": confine(inputs, END, blocks=False)}
        targets = own_targets(targets, inputs, END)
    targets = targets.masked_fill(targets < 0, loss.ignore_index)
    sums = network(inputs.clamp(min=0), partial(loss, targets=targets), **given)
    return sums.objective, int(sums.tokens)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    ("case", "loss", "recompute", "kernel"),
    [
        ({"positions": "rotary"}, CausalLM(), NoRecompute(), "auto"),
        ({"positions": "rotary", "qk_norm": True}, CHUNKED, EveryBlock(), "math"),
        ({"positions": "learned", "norm": "layernorm"}, CausalLM(), Selective(), "auto"),
        ({"positions": "sinusoidal"}, CausalLM(z_loss=1e-2), NoRecompute(), "math"),
        ({"positions": "alibi"}, CausalLM(), EveryBlock(), "auto"),
        ({"positions": "none", "norm_placement": "post"}, CausalLM(), NoRecompute(), "auto"),
    ],
)
def test_packed_documents_equal_each_alone_in_loss_and_gradient(
    case: dict[str, Any], loss: Loss, recompute: Recompute, kernel: Kernel
) -> None:
    network = Transformer(**{**SMALL, **case}).build()
    initialise(network, 1)
    network.double()
    recompute.apply(network.blocks())
    with attention_kernel(kernel, torch.device("cpu")):
        packed, counted = score(network, loss, windows(), confined=True)
        packed.backward()  # type: ignore[no-untyped-call]
        found = gradients(network)
        alone = [
            score(network, loss, d[None], confined=False) for d in documents()[:7] if len(d) > 1
        ]
        sum(objective for objective, _ in alone).backward()  # type: ignore[union-attr]
        expected = gradients(network)
    assert counted == sum(count for _, count in alone) == 19 + 2 + 8 + 6 + 5
    torch.testing.assert_close(packed, sum(o for o, _ in alone), rtol=1e-13, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_blocks_are_those_that_torch_finds_by_looking_at_every_pair() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    length = 500
    tokens = torch.randint(60, (3, length), generator=torch.Generator().manual_seed(2))
    tokens[0, -70:] = -1
    tokens[2] = 5  # one document
    first = first_positions(tokens, END)

    def visible(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (k >= first[b, q])

    expected = create_block_mask(visible, 3, None, length, length, device="cpu")
    found = block_mask(first)
    assert torch.equal(found.to_dense(), expected.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    number = (tokens[:, :-1] == END).cumsum(1)  # of the document of each token but the first
    same = number[:, :, None] == number[:, None]
    seen = dense_mask(first)[:, 0, 1:, 1:]
    assert torch.equal(seen[1:], (same & torch.ones_like(same).tril())[1:])
    assert torch.equal(seen[0, -70:].sum(1), torch.ones(70, dtype=torch.long))  # each by itself


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*The .grad attribute of a Tensor that is not a leaf.*")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="inductor's CPU back end needs g++")
def test_compiled_kernels_equal_plain_attention() -> None:
    """FlexAttention, which has no backward on a CPU, and blocks compiled with the other mask."""
    network = Transformer(**{**SMALL, "width": 64, "max_sequence": 256, "init_std": 0.1}).build()
    initialise(network, 1)
    tokens = torch.randint(VOCAB, (2, 256), generator=torch.Generator().manual_seed(3))
    dense, blocks = (confine(tokens, END, blocks=kind) for kind in (False, True))

    def logits(documents: Any) -> Tensor:
        found: Tensor = network(tokens, lambda h, head: head.logits(h), documents=documents)
        return found

    expected = logits(dense)
    expected.square().mean().backward()  # type: ignore[no-untyped-call]
    gradient = gradients(network)
    with torch.no_grad():  # before the blocks: in their graph, a CPU's template has errors (2.13)
        torch.testing.assert_close(logits(blocks), expected, rtol=1e-4, atol=1e-4)
    for block in network.blocks():
        block.compile(dynamic=False, fullgraph=True)
    found = logits(dense)
    found.square().mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(network), gradient, rtol=1e-4, atol=1e-5)
