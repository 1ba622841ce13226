"""The roofline equals numbers worked out by hand and the counts of the real networks."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llm_train.model.network import Counts, Transformer
from llm_train.runtime.devices import device_called

ROOT = Path(__file__).parents[2]

H200 = device_called("h200")
GPT2 = Transformer(
    vocab_size=50304,
    layers=12,
    width=768,
    heads=12,
    max_sequence=1024,
    activation="gelu",
    positions="learned",
    tied=True,
)
STEP = {"sequence": 1024, "tokens": 524_288}


# Not a module of the package, and not on the path of an installed one.
script = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks/roofline.py")))


def test_gpt2_by_hand() -> None:
    # A block: query, key, value 3 D^2, output D^2, up 4 D^2, down 4 D^2, D = 768.
    assert script.block_parameters(GPT2) == 12 * 12 * 768**2 == 84_934_656
    assert script.parameters(GPT2) == 84_934_656 + 50304 * 768 == 123_568_128
    device = replace(H200, tflops={"bf16": 1000}, bytes_per_second=5e12)
    found = script.roofline(GPT2, device, **STEP)
    attention, head = 6 * 12 * 768 * 1024, 6 * 50304 * 768
    assert (attention, head) == (56_623_104, 231_800_832)
    # 16 D + 5 * 4 D + 2 * 3 D a layer, 9 D outside, two bytes each; AdamW moves 34 a parameter.
    elementwise, loss = 2 * 768 * (12 * 42 + 9), 2 * 3 * 50304
    assert (elementwise, loss) == (787_968, 301_824)
    # Biases of query, key and value, of the output, and of the feed-forward part.
    biased = replace(GPT2, bias=True).fused_bytes().elementwise
    assert biased - elementwise == 12 * 2 * 768 * (3 + 1 + 4 + 1)
    update = 34 * 123_568_128 / 524_288
    products, memory = 1e15 * script.MATMUL_EFFICIENCY, 5e12 * script.MEMORY_EFFICIENCY
    expected = {
        "blocks": (509_607_936, 0, 509_607_936 / products),
        "attention": (attention, 0, attention / (1e15 * script.attention_efficiency(64, 1024))),
        "head and loss": (head, loss, head / products + loss / memory),
        "element-wise": (0, elementwise, elementwise / memory),
        "optimizer": (0, update, update / memory),
    }
    assert set(found.parts) == set(expected)
    for name, numbers in expected.items():
        part = found.parts[name]
        assert (part.flops, part.bytes, part.seconds) == pytest.approx(numbers), name


def test_totals_follow_from_the_parts() -> None:
    found = script.roofline(GPT2, H200, **STEP)
    assert found.seconds_per_token == sum(part.seconds for part in found.parts.values())
    assert found.tokens_per_second * found.seconds_per_token == pytest.approx(1)
    assert found.seconds_per_step == pytest.approx(524_288 / found.tokens_per_second)
    assert found.mfu == pytest.approx(found.tokens_per_second * 798_031_872 / 989.5e12)
    assert found.mfu < script.MATMUL_EFFICIENCY  # which products alone would give
    small = script.roofline(GPT2, H200, sequence=1024, tokens=65_536)
    assert small.parts["optimizer"].seconds == pytest.approx(8 * found.parts["optimizer"].seconds)
    assert small.parts["blocks"] == found.parts["blocks"]


def test_a_gated_rotary_network_with_few_key_heads_by_hand() -> None:
    network = replace(GPT2, layers=1, width=64, heads=4, kv_heads=1, mlp_width=96, vocab_size=100)
    network = replace(network, activation="swiglu", positions="rotary", tied=False)
    assert (network.width, network.key_value_heads * network.head_dim) == (64, 16)
    assert network.hidden == 96
    # query, key and value 64 (64 + 2 * 16), output 64^2, gate, up and down 64 * 96 each.
    blocks = 64 * 96 + 64 * 64 + 3 * 64 * 96
    assert script.block_parameters(network) == blocks
    assert script.parameters(network) == blocks + 2 * 100 * 64
    fused = network.fused_bytes()
    assert fused.elementwise == 2 * (16 * 64 + 8 * 96 + 4 * (64 + 16) + 2 * (64 + 2 * 16) + 9 * 64)
    assert fused.blocks_forward == 2 * (8 * 64 + 3 * 96 + 2 * (64 + 16))
    assert fused.loss == 600
    assert script.optimizer_bytes(network) == 34 * script.parameters(network)


def test_flops_are_those_of_the_networks() -> None:
    for name in script.PRESETS:
        network, sequence, tokens = script.preset(name)
        with torch.device("meta"):
            counts = Counts(network.build())
        found = script.roofline(network, H200, sequence=sequence, tokens=tokens)
        assert found.flops_per_token == counts.flops_per_token(sequence)
        # The plain numbers leave out biases, norms and tables of positions.
        assert script.parameters(network) == pytest.approx(counts.parameters, rel=0.01)


def test_the_page_shows_what_the_script_prints() -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert script.table() in page
