"""The roofline equals numbers worked out by hand and the counts of the real networks."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from llm_train.model.network import Counts, Transformer
from llm_train.model.network.fused import widths
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


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roofline_table", ROOT / "benchmarks/roofline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_gpt2_by_hand(script: ModuleType) -> None:
    # A block: query, key, value 3 D^2, output D^2, up 4 D^2, down 4 D^2, D = 768.
    assert script.block_parameters(GPT2) == 12 * 12 * 768**2 == 84_934_656
    assert script.parameters(GPT2) == 84_934_656 + 50304 * 768 == 123_568_128
    found = script.roofline(
        GPT2, replace(H200, tflops={"bf16": 1000}, bytes_per_second=5e12), **STEP
    )
    assert found.parts["blocks"].flops == 509_607_936
    assert found.parts["attention"].flops == 6 * 12 * 768 * 1024 == 56_623_104
    assert found.parts["head and loss"].flops == 6 * 50304 * 768 == 231_800_832
    # 16 D + 5 * 4 D a layer, 9 D outside, two bytes each.
    assert found.parts["element-wise"].bytes == 2 * 768 * (12 * 36 + 9) == 677_376
    assert found.parts["head and loss"].bytes == 2 * 3 * 50304
    assert found.parts["optimizer"].bytes == pytest.approx(34 * 123_568_128 / 524_288)
    assert found.parts["blocks"].seconds == pytest.approx(509_607_936 / 0.75e15)
    assert found.parts["attention"].seconds == pytest.approx(56_623_104 / 0.5e15)
    assert found.parts["head and loss"].seconds == pytest.approx(
        231_800_832 / 0.75e15 + 301_824 / 4.25e12
    )
    assert found.parts["element-wise"].seconds == pytest.approx(677_376 / 4.25e12)
    assert found.parts["optimizer"].seconds == pytest.approx(8013.4 / 4.25e12, rel=1e-4)


def test_totals_follow_from_the_parts(script: ModuleType) -> None:
    found = script.roofline(GPT2, H200, **STEP)
    assert found.seconds_per_token == sum(part.seconds for part in found.parts.values())
    assert found.tokens_per_second * found.seconds_per_token == pytest.approx(1)
    assert found.seconds_per_step == pytest.approx(524_288 / found.tokens_per_second)
    assert found.mfu == pytest.approx(found.tokens_per_second * 798_031_872 / 989.5e12)
    # Products alone, at their efficiency, would give 0.75.
    assert found.mfu < 0.75
    small = script.roofline(GPT2, H200, sequence=1024, tokens=65_536)
    assert small.parts["optimizer"].seconds == pytest.approx(8 * found.parts["optimizer"].seconds)
    assert small.parts["blocks"] == found.parts["blocks"]


def test_a_gated_rotary_network_with_few_key_heads_by_hand(script: ModuleType) -> None:
    network = replace(GPT2, layers=1, width=64, heads=4, kv_heads=1, mlp_width=96, vocab_size=100)
    network = replace(network, activation="swiglu", positions="rotary", tied=False)
    assert widths(network) == (64, 16, 96)
    # query, key and value 64 (64 + 2 * 16), output 64^2, gate, up and down 64 * 96 each.
    blocks = 64 * 96 + 64 * 64 + 3 * 64 * 96
    assert script.block_parameters(network) == blocks
    assert script.parameters(network) == blocks + 2 * 100 * 64
    fused = network.fused_bytes()
    assert fused.elementwise == 2 * (16 * 64 + 8 * 96 + 4 * (64 + 16) + 9 * 64)
    assert fused.blocks_forward == 2 * (8 * 64 + 3 * 96 + 2 * (64 + 16))
    assert fused.loss == 600
    assert script.optimizer_bytes(network) == 34 * script.parameters(network)


def test_flops_are_those_of_the_networks(script: ModuleType) -> None:
    for name in script.PRESETS:
        network, sequence, tokens = script.preset(name)
        with torch.device("meta"):
            counts = Counts(network.build())
        found = script.roofline(network, H200, sequence=sequence, tokens=tokens)
        assert found.flops_per_token == counts.flops_per_token(sequence)
        # The plain numbers leave out biases, norms and tables of positions.
        assert script.parameters(network) == pytest.approx(counts.parameters, rel=0.01)


def test_the_page_shows_what_the_script_prints(script: ModuleType) -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert script.table() in page
