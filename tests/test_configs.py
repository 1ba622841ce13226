"""Every shipped configuration parses, has no problem, and describes itself correctly.

The comments at the top of a file make claims (parameters, batch, length, hours), which are compared
with what the configuration gives.
"""

from __future__ import annotations

import math
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from llm_train.check import problems, table
from llm_train.cli import load_settings
from llm_train.model.network import Transformer
from llm_train.settings import Settings

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
OVERLAYS = [name for name in NAMES if name.startswith("overlay-")]
RUNS = [name for name in NAMES if name not in OVERLAYS]
PRESETS = [name for name in RUNS if name.startswith(("gpt2-", "llama-"))]
ON_GPUS = [*PRESETS, "modern-124m"]

# Parameters of the published weights, counting tied ones once, from huggingface.co/openai-community
# (OpenAI's first names, 117M and 345M, were miscounts) and huggingface.co/meta-llama.
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama-1b": 1_235_814_400,
    "llama-3b": 3_212_749_824,
    "llama-8b": 8_030_261_248,
}
NEEDS = {"overlay-zero2": "deepspeed", "overlay-wandb": "wandb", "overlay-float8": "torchao"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes to a folder where nothing is prepared, so that existing data change no result."""
    monkeypatch.chdir(tmp_path)


@cache
def load(*names: str) -> Settings:
    arguments = [word for name in names for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
    settings: Settings = load_settings(arguments)
    return settings


def header(name: str) -> dict[str, str]:
    """Returns the lines ``# key: value`` before the first key, with continuation lines joined."""
    lines: dict[str, str] = {}
    key = ""
    for line in (CONFIGS / f"{name}.yaml").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        if found := re.match(r"^# (\w+): +(.+)$", line):
            key, lines[found[1]] = found[1], found[2]
        elif key and (more := re.match(r"^# {10,}(.+)$", line)):
            lines[key] += f" {more[1]}"
        else:
            key = ""
    return lines


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, f"{text!r} does not say {pattern!r}"
    return [float(value.replace(",", "")) for value in found.groups()]


@pytest.mark.parametrize("name", RUNS)
def test_no_problem_and_every_number(name: str) -> None:
    settings = load(name)
    assert problems(settings, running=False) == []
    assert table(settings)["network"]["parameters"] > 0


@pytest.mark.parametrize("name", RUNS)
def test_the_header_is_true(name: str) -> None:
    settings, claims = load(name), header(name)
    assert {"hardware", "hours", "loss", "batch", "run", "parameters"} <= set(claims)

    counts, derived = settings.task.counts, settings.derive()
    assert numbers(r"^([\d,]+)", claims["parameters"]) == [counts.parameters]

    tokens, *factors = numbers(
        r"^([\d,]+) tokens = (\d+) ranks? x (\d+) micro-batch(?:es)? x (\d+) samples? "
        r"x (\d+) positions",
        claims["batch"],
    )
    ranks, accumulation, per_device, sequence = map(int, factors)
    assert tokens == settings.batch.tokens == math.prod(factors)
    assert accumulation == settings.batch.accumulation(ranks)
    assert (per_device, sequence) == (settings.batch.per_device, settings.batch.sequence)

    steps, tokens, total = numbers(r"^([\d,]+) steps x ([\d,]+) = ([\d,]+) tokens", claims["run"])
    assert steps == derived.total_steps
    assert tokens == settings.batch.tokens
    assert total == derived.total_tokens


@pytest.mark.parametrize("name", ON_GPUS)
def test_hours_follow_from_flops(name: str) -> None:
    settings, claims = load(name), header(name)
    hours, flops, gpus = numbers(
        r"^([\d.]+) = ([\d.]+e\d+) FLOPs / \((\d+) GPUs? x 0\.40 x 989e12 FLOP/s\)", claims["hours"]
    )
    [in_hardware] = numbers(r"^(\d+) x H200", claims["hardware"])
    [ranks] = numbers(r"= (\d+) ranks?", claims["batch"])
    assert gpus == ranks == in_hardware
    expected = settings.task.counts.flops_per_token(settings.batch.sequence)
    expected *= settings.derive().total_tokens
    assert flops == pytest.approx(expected, rel=0.005)
    assert hours == pytest.approx(expected / (gpus * 0.40 * 989e12) / 3600, abs=0.051)
    assert "not measured" in claims["hours"]


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_published(name: str) -> None:
    settings = load(name)
    config = settings.task.network_config
    assert isinstance(config, Transformer)
    padding = (config.padded_vocab_size - config.vocab_size) * config.width
    padding *= 1 if config.tied else 2
    assert settings.task.counts.parameters - padding == PUBLISHED[name]
    assert numbers(r"\(([\d,]+) published", header(name)["parameters"]) == [PUBLISHED[name]]


def test_every_preset_has_a_published_count() -> None:
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", RUNS)
def test_any_likely_number_of_ranks_divides_the_batch(name: str) -> None:
    batch = load(name).batch
    # The character models are comparisons on one device, of which their batches are part.
    small = (1,) if name.startswith("shakespeare-char") else (1, 2)
    for ranks in (1, 2, 4, 8) if name in ON_GPUS else small:
        assert batch.accumulation(ranks) >= 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_fit_the_quickstart(overlay: str) -> None:
    if overlay in NEEDS and find_spec(NEEDS[overlay]) is None:
        pytest.skip(f"needs {NEEDS[overlay]}")
    # ZeRO gives fragments of matrices to the optimizer, so the quickstart's must be replaced.
    before = ["overlay-adamw"] if overlay == "overlay-zero2" else []
    assert problems(load("quickstart", *before, overlay), running=False) == []


@pytest.mark.parametrize("name", RUNS)
def test_smoke_makes_everything_small(name: str) -> None:
    settings = load(name, "overlay-smoke")
    assert problems(settings, running=False) == []
    assert settings.derive().total_tokens < 100_000
    assert settings.task.counts.parameters < 100_000_000
    assert settings.data.source.check() == []
    for ranks in (1, 2, 4, 8, 16):
        assert settings.batch.accumulation(ranks) >= 1


def test_what_an_overlay_changes_is_no_more_than_it_says() -> None:
    before, after = load("gpt2-774m").plain, load("gpt2-774m", "overlay-fsdp").plain
    changed = [key for key in before if before[key] != after[key]]
    assert changed == ["trainer"]
    changed = [key for key, value in before["trainer"].items() if value != after["trainer"][key]]
    assert changed == ["strategy"]
