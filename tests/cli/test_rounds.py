"""Whoever mends what one check says hears of all there was, and of nothing that was not there."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.command import refused, run
from llm_train.testing.configs import tiny, write

NET, OPTIMIZER = "model.network.init_args", "model.optimizer.init_args"
MISSING = object()
# One fault of each kind: the key, and what stands there.
FAULTS: dict[str, Any] = {
    "trainer.profilr": "simple",  # unknown key
    "model.loss.class_path": "CasualLM",  # misspelt class
    "seed": "x",  # wrong type
    f"{OPTIMIZER}.learning_rate": -1.0,  # refused by a constructor
    "checkpoint.keep_last": 0,  # by one of a group
    f"{NET}.vocab_size": MISSING,
    "validate_every": "7 steps",  # rule between keys
    "trainer.max_epochs": 3,  # Trainer argument that has no effect
}


def planted(run_dir: Path, *keys: str) -> dict[str, Any]:
    """A sound configuration with some of the faults."""
    config = tiny(run_dir)
    for key in keys:
        *path, last = key.split(".")
        inner = config
        for name in path:
            inner = inner.setdefault(name, {})
        inner.pop(last, None)
        if FAULTS[key] is not MISSING:
            inner[last] = FAULTS[key]
    return config


@pytest.mark.parametrize("keys", [tuple(FAULTS), *combinations(FAULTS, len(FAULTS) - 1)])
def test_all_kinds_are_said_at_once(keys: tuple[str, ...], tmp_path: Path) -> None:
    file = write(tmp_path / "faulty.yaml", planted(tmp_path / "run", *keys))
    lines = refused("check", "-c", str(file))
    said = [next((key for key in keys if line.startswith(key)), line) for line in lines]
    assert sorted(said) == sorted(keys)


def test_what_hangs_on_a_fault_is_not_invented(tmp_path: Path) -> None:
    """The defaults that stand in for a wrong or missing value would break other rules."""
    config = planted(tmp_path / "run", f"{NET}.vocab_size", "validate_every")
    config["buget"] = config.pop("budget")
    config["batch"]["tokns"] = config["batch"].pop("tokens")
    config["trainer"] |= {"devices": "many", "strateg": "zero3"}
    lines = refused("check", "-c", str(write(tmp_path / "faulty.yaml", config)))
    expected = ["batch.tokns", "buget", f"{NET}.vocab_size", "trainer.devices", "trainer.strateg"]
    assert sorted(line.split()[0].split("=")[0] for line in lines) == expected


def test_options_that_follow_a_wrong_class_are_not_blamed_for_it(tmp_path: Path) -> None:
    file = str(write(tmp_path / "tiny.yaml", tiny(tmp_path / "run")))
    options = ("--model.optimizer=AdamQ", "--model.optimizer.learning_rate=0.1", "--budget=3")
    first, second = refused("check", "-c", file, *options, "--print_config")
    assert "model.optimizer=AdamQ" in first
    assert "budget=3" in second


def test_a_callback_that_is_refused_is_refused_in_one_line(tmp_path: Path) -> None:
    """The parser cannot write some of Lightning's defaults, and says so at length."""
    pruning = {"class_path": "ModelPruning", "init_args": {"pruning_fn": "l1_unstructured"}}
    averaging = {"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.1}}
    config = tiny(tmp_path / "run", trainer__callbacks=[pruning, averaging])
    outcome = run("check", "-c", str(write(tmp_path / "tiny.yaml", config)))
    assert len(outcome.errors) == 2
