"""What sets two runs apart, of runs that trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from llm_train.report import RecordedRun
from llm_train.report.difference import difference
from llm_train.testing.command import refused, run
from llm_train.testing.configs import losses, tiny, write


def test_two_runs_part_where_their_settings_do(tmp_path: Path) -> None:
    """The first step of another decay has the same loss; what it updates has not."""
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, decay in zip(folders, (0.1, 0.3), strict=True):
        config = tiny(folder, steps=3, checkpoint__every="0 steps")
        config["model"]["optimizer"]["init_args"]["weight_decay"] = decay
        assert run("fit", "-c", str(write(tmp_path / "c.yaml", config))).code == 0
    first, second = map(losses, folders)
    assert first[1] == second[1]
    found = difference(*map(RecordedRun.read, folders))
    assert found["settings"] == {"model.optimizer.init_args.weight_decay": "0.1 -> 0.3"}
    assert found["code and environment"] == found["data"] == {"all": "the same"}
    assert found["losses"]["train/loss"] == f"differ from step 2: {first[2]} -> {second[2]}"
    assert found["losses"]["train/loss, the same"] == "at 1 log points, to step 1"

    outcome = run("diff", *map(str, folders))
    assert outcome.code == 0
    assert "weight_decay  0.1 -> 0.3" in outcome.out
    [line] = refused("diff", str(folders[0]), str(tmp_path / "nope"))
    assert "nope" in line
    shutil.rmtree(folders[1] / "records")  # as earlier versions left a run
    [why] = difference(*map(RecordedRun.read, folders))["code and environment"].values()
    assert why == "a run did not record them"
