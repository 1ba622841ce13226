"""The comparison of optimizers: specifications that are sound, and a search that ends inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.choosing import SPECS, Comparison, rows
from llm_train import load_settings, problems
from llm_train.runtime import yaml12
from llm_train.sweep import trial
from llm_train.sweep.spec import Spec, proposals
from llm_train.sweep.trial import TrialResult, nested

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in SPECS.glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize("name", NAMES)
def test_every_specification_is_sound(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    spec = Spec.read(SPECS / f"{name}.yaml")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml12.dump(nested(next(proposals(spec)))))
    settings = load_settings(*spec.config, overlay)
    assert problems(settings, running=False) == []


def test_the_rate_is_searched_until_the_best_lies_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best is 1e-5, two rates below those that Lion's file names."""
    made: list[float] = []

    def run(out: Path, values: dict[str, Any], words: list[str], metric: str) -> TrialResult:
        rate = values["model.optimizer.init_args.learning_rate"]
        made.append(rate)
        result = out / trial.name_of(values) / trial.RESULT
        result.parent.mkdir(parents=True, exist_ok=True)
        result.touch()
        return TrialResult(
            values=values, loss=1 + (rate - 1e-5) ** 2 + 0.01 * values["seed"], tokens_per_s=1.0
        )

    monkeypatch.setattr(trial, "run", run)
    comparison = Comparison(SPECS / "lion.yaml", tmp_path, [], run=True)
    rate, trials, inside = comparison.tuned()
    assert (rate, inside, len(trials)) == (1e-5, True, 3)
    assert made[4:7] == [3e-5, 1e-5, 3e-6]
    files, other = [SPECS / "lion.yaml"], tmp_path / "another text"
    (row,) = rows(files, other, [], run=True, tuned=tmp_path)
    assert (row["rate"], len(list(other.rglob(trial.RESULT)))) == ("1e-05", len(trials))
    monkeypatch.undo()
    assert list(rows(files, tmp_path / "nothing", [], run=False)) == []
