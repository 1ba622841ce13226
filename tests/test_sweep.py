"""Sweeps: each trial a run of its own, run once; proposals that repeat; what the fits find."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_train import load_settings
from llm_train.analysis.fits import usable_range
from llm_train.cli.dispatch import main
from llm_train.errors import ConfigError
from llm_train.model.schedule import RangeTest
from llm_train.runtime import yaml12
from llm_train.sweep import results, trial
from llm_train.sweep.spec import Spec, proposals
from llm_train.testing.command import refused
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.verbs.advise import advice

RATE = "model.optimizer.init_args.learning_rate"
TOKENS, PER_DEVICE = "batch.tokens", "batch.per_device"


def spec(path: Path, **values: Any) -> Path:
    path.write_text(yaml12.dump(values))
    return path


def sweep(*words: str) -> Any:
    with pytest.raises(SystemExit) as end:
        main(["sweep", *words])
    return end.value.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer) -> list[str]:
    """The run folders of the processes that were started; they are forked, not started cold."""
    folders: list[str] = []

    def process(line: Sequence[str], log: Path, variables: Mapping[str, str]) -> int:
        folders.append(log.parent.name)
        words = line[line.index("llm_train") + 1 :]
        (status,) = fork_server.run(*words, ranks=0, log=log, environment=dict(variables))
        return status

    monkeypatch.setattr(trial, "_process", process)
    return folders


def test_each_trial_is_a_run_and_only_what_has_no_result_runs_again(
    started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"validate_every": "0 steps", "checkpoint__every": "0 steps"}
    config = write(tmp_path / "c.yaml", tiny(tmp_path / "x", steps=3, **short))
    file = spec(tmp_path / "rates.yaml", keys={TOKENS: [64, 128], PER_DEVICE: [4, 8]})
    out = tmp_path / "out"
    words = [str(file), "--out", str(out), "-c", str(config)]
    assert sweep(*words) == 1
    assert len(started) == 4
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert all(math.isfinite(float(row["loss"])) for row in rows[:3])
    assert (rows[3][TOKENS], rows[3][PER_DEVICE], rows[3]["loss"]) == ("64", "8", "nan")
    assert "batch.tokens=64" in rows[3]["why"]
    assert capsys.readouterr().out.count("  failed  ") == 1
    assert (out / "sweep.png").stat().st_size > 1000
    assert yaml12.load((out / "best.yaml").read_text())["batch"]["tokens"]
    load_settings(config, out / "best.yaml")
    done = next(path for path in out.iterdir() if (path / "result.json").is_file())
    (done / "result.json").unlink()  # as if it had been killed
    shutil.rmtree(done / "run")
    failed = {path.name for path in out.iterdir() if path.is_dir()}
    failed -= {path.parent.name for path in out.glob("*/result.json")}
    assert sweep(*words) == 1
    assert sorted(started[4:]) == sorted(failed)
    assert len(failed) == 2


@pytest.mark.parametrize("method", ["random", "TPESampler"])
def test_proposals_repeat_and_stay_in_their_ranges(method: str, tmp_path: Path) -> None:
    keys = {"a": {"low": 1e-4, "high": 1e-1, "log": True}, "b": [{"class_path": "X"}, 2]}
    read = Spec.read(spec(tmp_path / "s.yaml", keys=keys, method=method, trials=12, seed=3))

    def all_of() -> list[dict[str, Any]]:
        found, proposed = [], proposals(read)
        values = next(proposed)
        while len(found) < 12:
            found.append(values)
            try:
                values = proposed.send(abs(math.log10(values["a"]) + 2.5))
            except StopIteration:
                break
        return found

    found = all_of()
    assert found == all_of()
    assert len(found) == 12
    assert all(1e-4 <= values["a"] <= 1e-1 and values["b"] in keys["b"] for values in found)
    assert len({values["a"] for values in found}) == 12


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"keys": {}}, "keys"),
        ({"keys": {"seed": {"low": 3, "high": 1}}, "method": "random", "trials": 2}, "keys.seed"),
        ({"keys": {"seed": [1]}, "metrics": "x"}, "metrics is none of"),
        ({"keys": {"seed": [1]}, "method": "NoSampler", "trials": 2}, "method=NoSampler"),
        ({"keys": {"seed": [1]}, "fit": {"rate": "x", "against": "seed", "at": 3}}, "fit.rate=x"),
        (
            {"keys": {"seed": [1, "a"]}, "fit": {"rate": "seed", "against": "seed", "at": 3}},
            "s.seed",
        ),
        ({"keys": {"trainer.default_root_dir": ["a"]}}, "keys.trainer.default_root_dir"),
    ],
)
def test_what_is_no_sweep_is_refused(values: dict[str, Any], key: str, tmp_path: Path) -> None:
    (line,) = refused("sweep", str(spec(tmp_path / "s.yaml", **values)), f"--out={tmp_path}")
    assert key in line


def test_a_sweep_of_plain_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("hello")
    (line,) = refused("sweep", str(tmp_path / "s.yaml"), f"--out={tmp_path}")
    assert "it holds no keys; write keys" in line


def test_a_misspelled_key_or_metric_ends_the_sweep(started: list[str], tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", tiny(tmp_path / "x", steps=3))
    words = [f"--out={tmp_path / 'out'}", "-c", str(config)]
    (line,) = refused("sweep", str(spec(tmp_path / "k.yaml", keys={RATE[:-1]: [0.1]})), *words)
    assert f"{RATE[:-1]} is not a setting" in line
    late = {"seed": [1, 2], RATE: [0.1, -1.0]}
    (line,) = refused("sweep", str(spec(tmp_path / "l.yaml", keys=late)), *words)
    assert f"{RATE}=-1.0" in line
    assert not started
    file = spec(tmp_path / "m.yaml", keys={"seed": [1, 2]}, metric="val/los")
    (line,) = refused("sweep", str(file), *words)
    assert line.startswith("metric=val/los")
    assert line.endswith("did you mean val/loss?")
    assert len(started) == 1


def test_the_best_rate_is_fitted_against_the_batch(tmp_path: Path) -> None:
    """Losses with a minimum at 0.001 sqrt(batch / 64): the fit finds the root, and writes it."""
    fit = {"rate": "lr", "against": "batch.tokens", "at": 1024}
    keys = {"lr": [0.0005, 0.001, 0.002, 0.004, 0.008], "batch.tokens": [64, 256]}
    read = Spec.read(spec(tmp_path / "s.yaml", keys=keys, fit=fit))
    trials = [
        trial.TrialResult(
            values=values,
            loss=2 + math.log(values["lr"] / (0.001 * math.sqrt(values["batch.tokens"] / 64))) ** 2,
        )
        for values in proposals(read)
    ]
    said = results.write(tmp_path, read, trials)
    assert said["fit"].startswith("batch.tokens^(0.500")
    assert yaml12.load((tmp_path / "best.yaml").read_text()) == {
        "lr": 0.004,
        "batch": {"tokens": 1024},
    }


def test_a_range_test_is_read_off(tmp_path: Path) -> None:
    rates = np.geomspace(1e-5, 1.0, 200).tolist()
    losses = [4.0 - 2 / (1 + (0.003 / r) ** 2) + (r / 0.05) ** 2 for r in rates]
    found = usable_range(rates, losses)
    assert 0.002 < found.steepest < 0.005
    assert 0.01 < found.highest < 0.05
    said = _advised(tmp_path, rates, losses)
    assert float(said["the loss falls fastest at"]) == pytest.approx(found.steepest, rel=0.01)
    assert float(said["and rises again from"]) == pytest.approx(found.highest, rel=0.01)
    said = _advised(tmp_path, rates[:100], losses[:100])
    assert "raise the peak" in said["no rise"]
    assert "and rises again from" not in said
    assert "and rises again from" in _advised(tmp_path, rates[:100], [*losses[:99], math.nan])


def _advised(folder: Path, rates: list[float], losses: list[float]) -> dict[str, str]:
    lines = [
        json.dumps({"step": step, "train/loss": loss, "optimizer/lr": rate})
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines).replace("NaN", '"nan"') + "\n")
    return advice(folder, 0.5)["learning-rate range test"]


def test_a_range_test_starts_above_zero() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.start=0 must be above 0"):
        RangeTest(start=0)
