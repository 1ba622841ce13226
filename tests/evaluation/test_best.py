"""Which weights are kept: the best checkpoint, the mean of the last ones, and the average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.checkpoint import dcp, manifest
from llm_train.runtime import yaml12
from llm_train.testing.command import refused, run
from llm_train.testing.configs import part, write
from llm_train.trainer.logger.records import read_metrics


def configured(folder: Path, out: Path, ema: str = "EMA", **checkpoint: Any) -> str:
    config = yaml12.load((folder / "run.yaml").read_text())
    config["trainer"] |= {"callbacks": [part(ema, decay=0.7)], "default_root_dir": str(out)}
    config["checkpoint"] |= checkpoint
    config["validate_every"] = "2 steps"
    return str(write(out.with_suffix(".yaml"), config))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    stored = {k: m for k, m in dcp.keys(path / "state").items() if k.startswith("model.")}
    found = {k: torch.empty(m.size, dtype=m.properties.dtype) for k, m in stored.items()}
    dcp.read(path / "state", found)
    return found


@pytest.mark.parametrize(("metric", "step"), [("val/loss", 6), ("progress/tokens", 2)])
def test_the_best_is_kept_and_found(text_run: Path, tmp_path: Path, metric: str, step: int) -> None:
    """Also after a resume, which knows the scores of before."""
    keys = {"keep_last": 1, "best": metric, "best_is": "lowest"}
    config = configured(text_run, tmp_path / "run", **keys)
    assert run("fit", "-c", config, "--budget=4 steps").code == 0
    assert run("fit", "-c", config, "--resume=auto").code == 0
    folder = tmp_path / "run" / "checkpoints"
    best = folder / "best"
    assert manifest.read(best).metadata["step"] == step
    names = {path.name for path in folder.iterdir()}
    assert names == {"best", f"step-{step:08d}", "step-00000006"}
    records = {r["step"]: r for r in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert manifest.read(best).metadata["metrics"][metric] == records[step][metric]
    assert run("generate", str(best), "--prompt=the", "--tokens=2").code == 0


def test_a_metric_that_nobody_measures_is_named(
    text_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(text_run, tmp_path / "run", best="eval/none/acc")
    assert run("fit", "-c", config, "--budget=4 steps").code == 0
    texts = [record.getMessage() for record in caplog.records]
    text = next(text for text in texts if "checkpoint.best=eval/none/acc:" in text)
    assert "val/loss" in text
    assert "validate_every" in text


def test_the_average_of_lightnings_callback_is_taken(text_run: Path, tmp_path: Path) -> None:
    ema = "lightning.pytorch.callbacks.EMAWeightAveraging"
    source = configured(text_run, tmp_path / "run", ema)
    assert run("fit", "-c", source).code == 0
    outcome = run("average", str(tmp_path / "run"), str(tmp_path / "ema"), "--ema")
    assert outcome.code == 0, outcome.err
    # Validations of the run scored its average.
    scored = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["val/loss"]
    average, last = (
        run("validate", "-c", plain, "--checkpoint", str(tmp_path / name)).out
        for plain in [configured(text_run, tmp_path / "plain")]
        for name in ("ema", "run")
    )
    assert f"{scored:.4f}" in average
    assert f"{scored:.4f}" not in last


def test_averages_are_runs_that_leave(text_run: Path, tmp_path: Path) -> None:
    """The mean of checkpoints and the average of the weights are written, exported and scored."""
    pytest.importorskip("transformers")
    source = configured(text_run, tmp_path / "run")
    assert run("fit", "-c", source).code == 0
    folder = tmp_path / "run" / "checkpoints"
    states = [tensors(folder / f"step-{step:08d}") for step in (4, 6)]
    for name, words in (("mean", ["--last=2"]), ("ema", ["--ema"])):
        outcome = run("average", str(tmp_path / "run"), str(tmp_path / name), *words)
        assert outcome.code == 0, outcome.err
        outcome = run("export", str(tmp_path / name), str(tmp_path / f"{name}-theirs"))
        assert outcome.code == 0, outcome.err
    for key, found in tensors(tmp_path / "mean" / "checkpoints" / "step-00000006").items():
        torch.testing.assert_close(found, (states[0][key] + states[1][key]) / 2)
    # Validations of the run scored its average.
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    outcome = run("validate", "-c", source, "--checkpoint", str(tmp_path / "ema"))
    assert f"{last['val/loss']:.4f}" in outcome.out
    lines = refused("average", str(text_run / "run"), str(tmp_path / "none"), "--ema")
    assert any("train with EMA in trainer.callbacks" in line for line in lines)
    lines = refused("average", str(text_run / "run"), str(tmp_path / "none"), "--last=9")
    assert any("--last=9" in line and "checkpoint.keep_last" in line for line in lines)
    config = str(tmp_path / "run.yaml")
    elsewhere = f"--trainer.default_root_dir={tmp_path}/again"
    outcome = run("fit", "-c", config, elsewhere, "--resume", str(tmp_path / "mean"))
    assert "holds weights alone" in outcome.err
