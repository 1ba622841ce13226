"""The configurations of configs/ travel with the package, under the name ``preset:NAME``."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from llm_train.cli import load_settings
from llm_train.preset_files import presets
from llm_train.testing.command import refused, run

ROOT = Path(__file__).parents[2]


def test_every_configuration_is_one_and_is_packed() -> None:
    found = {file.relative_to(ROOT / "configs") for file in (ROOT / "configs").rglob("*.yaml")}
    assert {Path(f"{name}.yaml") for name in presets()} == found
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["llm_train"]
    packed = {file for pattern in patterns for file in (ROOT / "llm_train").glob(pattern)}
    assert {ROOT / "llm_train/configs" / file for file in found} <= packed


def test_presets_are_listed_and_printed() -> None:
    listing = run("presets").out
    assert all(f"  {name} " in listing for name in presets())
    assert run("presets", "quickstart").out == (ROOT / "configs/quickstart.yaml").read_text("utf-8")
    assert "llm-train presets lists" in refused("presets", "nothing")[0]


def test_a_preset_is_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = load_settings(["-c", "preset:quickstart", "-cpreset:overlay-smoke"])
    files = [f"-c{ROOT / 'configs' / name}.yaml" for name in ("quickstart", "overlay-smoke")]
    written = load_settings(files)
    assert (named.text, named.name) == (written.text, written.name)
    for missing in ("preset:quikstart", "configs/quickstart.yaml"):
        [line] = refused("check", "-c", missing)
        assert line.endswith("did you mean -c preset:quickstart?")


def test_one_command_from_text_to_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the cat. " * 99)
    small = {
        "budget": "2 steps",
        "validate_every": "0 steps",
        "checkpoint.every": "0 steps",
        "model.schedule.warmup": "1 steps",
        "model.network.layers": 1,
        "model.network.width": 16,
        "model.network.heads": 2,
        "data.recipe.corpus.class_path": "TextFiles",
        "data.recipe.corpus.paths": "[text.txt]",
        "data.recipe.split.class_path": "TailSplit",
        "data.recipe.split.fraction": 0.2,
        "data.recipe.tokenizer.vocab_size": 300,
        "trainer.accelerator": "cpu",
    }
    options = [f"--{key}={value}" for key, value in small.items()]
    assert "prepare" in refused("fit", "-c", "preset:quickstart", *options)[0]
    done = run("fit", "--prepare", "-c", "preset:quickstart", *options)
    assert done.code == 0, done.err
    assert "done: 2 steps" in done.out
    assert '"start_up/prepare"' in (tmp_path / "runs/quickstart/ledger.jsonl").read_text()


def test_a_sweep_is_no_configuration() -> None:
    [line] = refused("fit", "-c", "preset:sweeps/lion")
    assert "is a sweep, not a configuration; write llm-train sweep " in line
