"""Nothing that is not finite becomes a checkpoint, whichever tensor of whichever rank holds it."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest
import torch

from llm_train.checkpoint import callback_state, dcp
from llm_train.checkpoint.store import CheckpointStore
from llm_train.errors import CheckpointError
from llm_train.testing.attach import attached
from llm_train.testing.command import run
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer

WORKER = Path(__file__).with_name("corrupt_worker.py")


def test_what_is_not_finite_is_counted() -> None:
    tensors = {
        "good": torch.full((3,), 3e38),  # the sum of squares would overflow
        "empty": torch.empty(0),
        "whole": torch.tensor([7]),
        "bf16": torch.tensor([1.0, math.nan, -math.inf], dtype=torch.bfloat16),
    }
    assert dcp.not_finite(tensors) == {"bf16": 2}


def test_an_average_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    best = {"EarlyStopping": {"best_score": torch.tensor(math.inf)}}
    callback_state.write(tmp_path, {"callbacks": best})
    average = {"network.weight": torch.tensor([math.nan])}
    with pytest.raises(CheckpointError, match=r"state_dict\.network\.weight of a callback"):
        callback_state.write(tmp_path, {"callbacks": best, "state_dict": average})


def test_a_learning_rate_that_overflows(tmp_path: Path) -> None:
    """The loss and the norm of step 1 are finite; its update is not."""
    config = tiny(tmp_path / "run", checkpoint__every="1 steps", checkpoint__keep_last=1)
    config["model"]["optimizer"]["init_args"]["weight_decay"] = 0.0  # or check would refuse it
    optimizer = "--model.optimizer.init_args"
    rate, decay = f"{optimizer}.learning_rate=1e39", f"{optimizer}.weight_decay=0"
    outcome = run("fit", "-c", str(write(tmp_path / "c.yaml", config)), rate, decay)
    assert outcome.code == 2
    assert "cannot save step 1: model." in outcome.err
    assert "numbers that are not finite" in outcome.err
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("what", ["weight", "moment"])
def test_the_last_good_checkpoint_stays(what: str, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", checkpoint__every="1 steps", checkpoint__keep_last=1)
    with attached(runpy.run_path(str(WORKER))["Corrupt"](what, 0, 5)):
        outcome = run("fit", "-c", str(write(tmp_path / "c.yaml", config)))
    assert outcome.code == 2
    assert "cannot save step 5: " in outcome.err
    assert "holds 1 numbers" in outcome.err
    assert ("exp_avg_sq" in outcome.err) == (what == "moment")
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [4]


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero3"])
def test_all_ranks_refuse_what_one_of_them_holds(
    strategy: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Nothing is written, nobody waits, and the message names the tensor, the rank and the step."""
    config = tiny(tmp_path / "run", trainer__strategy=strategy, checkpoint__every="1 steps")
    arguments = ["moment", "1", "5", "fit", "-c", str(write(tmp_path / "c.yaml", config))]
    log = tmp_path / "log.txt"
    statuses = fork_server.run(*arguments, ranks=2, log=log, script=WORKER)
    assert statuses[0] == 2, log.read_text()  # rank 1 lets rank 0 speak, and is ended meanwhile
    assert "cannot save step 5: optimizer." in log.read_text()
    assert "exp_avg_sq holds 1 numbers that are not finite on rank 1" in log.read_text()
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [1, 2, 3, 4]
