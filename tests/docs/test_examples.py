"""Each example of docs/extending.md is one file, named by class_path, with no edit elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from llm_train.testing.fork_server import ForkServer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
MODULES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def allow() -> list[str]:
    return [flag for module in MODULES for flag in ("--allow-import", module)]


@pytest.mark.distributed
def test_all_examples_train_two_steps(fork_server: ForkServer, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.save(tmp_path / "tokens.npy", generator.integers(0, 50, 3000).astype(np.uint16))
    arguments = ["fit", "-c", str(EXAMPLES / "all.yaml"), "--trainer.accelerator=cpu", *allow()]
    place = {"cwd": tmp_path, "environment": {"PYTHONPATH": str(EXAMPLES)}}
    log = tmp_path / "log.txt"
    assert fork_server.run(*arguments, ranks=2, log=log, **place) == [0, 0], log.read_text()
    assert re.search(r"strategy +Compressed", log.read_text())
    assert "done: 2 steps" in log.read_text()
    lines = (tmp_path / "runs/examples/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records if "weights/norm" in r] == [1, 2]
    last = [r for r in records if "train/loss" in r][-1]
    assert last["train/loss"] == pytest.approx(np.log(50), abs=0.2)  # plain nats, not smoothed
    assert last["optimizer/lr"] == pytest.approx(0.0005)  # it has fallen once


def test_the_configuration_uses_every_example() -> None:
    used = set(re.findall(r"class_path: (\w+)\.", (EXAMPLES / "all.yaml").read_text()))
    assert used == set(MODULES)


def test_extending_shows_every_example() -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    missing = [module for module in MODULES if f"(examples/{module}.py)" not in text]
    assert not missing
