"""What an optimizer keeps in its groups continues; what the configuration changes applies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llm_train.checkpoint import group_state
from llm_train.errors import CheckpointError
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer

COUNTING = part("TorchOptimizer", optimizer=part("counting.Counting", lr=0.5))
HERE = {"PYTHONPATH": Path(__file__).parent}


@pytest.mark.distributed
@pytest.mark.parametrize(("strategy", "ranks"), [("single", 0), ("fsdp", 2), ("zero1", 2)])
def test_a_resumed_run_counts_on(
    strategy: str, ranks: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"

    def fit(name: str, *more: str) -> dict[int, float]:
        settings = {"trainer__strategy": strategy, "model__optimizer": COUNTING}
        path = write(tmp_path / f"{name}.yaml", tiny(tmp_path / name, **settings))
        arguments = ["fit", "--allow-import", "counting", "-c", str(path), *more]
        codes = fork_server.run(*arguments, ranks=ranks, log=log, environment=HERE)
        assert set(codes) == {0}, log.read_text()
        return losses(tmp_path / name)

    whole = fit("whole")
    start = str(tmp_path / "whole" / "checkpoints" / "step-00000002")
    assert fit("resumed", "--resume", start) == {step: whole[step] for step in (3, 4, 5, 6)}
    if strategy == "single":
        key = "model.optimizer.init_args.optimizer.init_args.drift"
        edited = fit("edited", "--resume", start, f"--{key}=[2.0, 0.9]")
        assert edited[3] == whole[3]
        assert edited[4] != whole[4]
        assert key in log.read_text().rpartition("changed since the checkpoint")[2]


def test_what_has_changed_is_state() -> None:
    groups = [{"params": [], "lr": 0.1, "betas": (0.9, 0.99), "kept": [torch.zeros(1)], "f": print}]
    built = group_state.values(groups)
    groups[0] |= {"lr": 0.2, "d": np.float64(0.5), "count": 3}
    groups[0]["kept"][0] += 1
    saved = group_state.changes(groups, built)
    assert saved[0]["now"] == {"kept": [torch.ones(1)], "d": 0.5, "count": 3}

    fresh = [{"params": [], "lr": 0.1, "betas": (0.8, 0.99), "kept": [torch.zeros(1)], "f": print}]
    group_state.restore(fresh, group_state.values(fresh), saved)
    assert fresh[0]["betas"] == (0.8, 0.99)
    assert (fresh[0]["lr"], fresh[0]["d"], fresh[0]["kept"]) == (0.1, 0.5, [torch.ones(1)])
    edited = [{"params": [], "kept": [torch.full((1,), 7.0)]}]
    group_state.restore(edited, group_state.values(edited), saved)
    assert edited[0]["kept"] == [torch.full((1,), 7.0)]
    with pytest.raises(CheckpointError, match="0 parameter groups, and the checkpoint state of 1"):
        group_state.restore([], [], saved)
