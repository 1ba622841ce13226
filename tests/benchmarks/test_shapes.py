"""Every measured shape is one of our networks and has the size that its name says."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

pytest.importorskip("benchmarks", reason="the benchmarks are not in an installed package")

from benchmarks.peers.ours import configuration
from benchmarks.shapes import CPU, GPU, TOKENS_PER_STEP, Preset
from benchmarks.work import Job
from llm_train.model.network import Counts, Transformer

NAMED = {
    "gpt2-124m": 124_475_904,
    "gpt2-350m": 354_871_296,
    "gpt2-774m": 774_090_240,
    "gpt2-1.5b": 1_557_686_400,
    "llama-1b-2048": 1_235_814_400,
    "llama-8b-4096": 8_030_261_248,
}


def network(preset: Preset) -> Transformer:
    job = Job(
        shape=preset.shape,
        device="cpu",
        dtype="float32",
        variant="eager",
        tokens="tokens.bin",
        warmup=1,
        threads=1,
        options={},
    )
    arguments = configuration(job, Path())["model"]["network"]["init_args"]
    return Transformer(**{**arguments, **preset.network})


@pytest.mark.parametrize("name", [*GPU, *CPU])
def test_parameters(name: str) -> None:
    preset = {**GPU, **CPU}[name]
    with torch.device("meta"):
        counted = Counts(network(preset).build()).parameters
    assert counted == preset.parameters
    assert NAMED.get(name, counted) == counted
    assert preset.shape.name == name


@pytest.mark.parametrize("name", GPU)
def test_the_twin_is_a_network_with_the_same_heads_per_group(name: str) -> None:
    preset, tiny = GPU[name], GPU[name].tiny()
    with torch.device("meta"):
        assert Counts(network(tiny).build()).parameters < 200_000
    assert tiny.shape.heads // tiny.shape.kv_heads == preset.shape.heads // preset.shape.kv_heads
    assert tiny.arguments() == preset.arguments()


@pytest.mark.parametrize("name", GPU)
def test_every_micro_batch_gives_about_the_same_step(name: str) -> None:
    preset = GPU[name]
    assert preset.shape.batch == preset.micro_batches[0]
    for micro_batch in preset.micro_batches:
        tokens = preset.at(micro_batch).tokens_per_step
        assert 0.5 * TOKENS_PER_STEP < tokens <= 2 * TOKENS_PER_STEP


def test_overrides_name_arguments_that_exist() -> None:
    known = inspect.signature(Transformer).parameters
    for preset in GPU.values():
        assert set(preset.network) <= set(known)
        assert all(text.startswith("--") and "=" in text for text in preset.arguments())
