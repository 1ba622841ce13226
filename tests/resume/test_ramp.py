"""A global batch that grows, and one that a resume changes: the pieces make the same run."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train import build, load_settings, problems
from llm_train.check.table import table
from llm_train.model.learning_rate import schedule_factor
from llm_train.testing.checkpoints import final_state
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

# 64 tokens until 192, 128 until 512, then 256: stages begin at steps 4, 6 and end after 8.
STEPS = 8
RAMP = {"tokens": 64, "doubles_every": "192 tokens"}
SHAPE: dict[str, Any] = {
    "budget": "1000 tokens",
    "batch": {"tokens": 256, "sequence": 16, "per_device": 2},
    "batch__scaling": {"rule": "sqrt", "reference_tokens": 256},
    "checkpoint": {"every": "2 steps", "keep_last": 100},
    "validate_every": "512 tokens",
    "model__schedule": part("WarmupCosine", warmup="128 tokens"),
}


def train(folder: Path, resume: str = "", **overrides: Any) -> Path:
    config = tiny(folder / "run", **{**deepcopy(SHAPE), **overrides})
    folder.mkdir(exist_ok=True)
    path = write(folder / "c.yaml", config)
    build(load_settings(path), resume=resume).fit()
    return folder / "run"


def step(run: Path, number: int) -> str:
    return str(run / "checkpoints" / f"step-{number:08d}")


def curve(run: Path, first: int = 1) -> list[tuple[Any, ...]]:
    names = ("step", "train/loss", "grad/norm", "optimizer/lr", "progress/tokens", "val/loss")
    records = read_metrics(run / "metrics.jsonl")
    return [tuple(r.get(name) for name in names) for r in records if r["step"] >= first]


def same(one: Path, other: Path) -> bool:
    found, expected = final_state(one, STEPS), final_state(other, STEPS)
    return found.keys() == expected.keys() and all(
        torch.equal(found[k], expected[k]) for k in found
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("whole"), batch__ramp=RAMP)


def test_a_ramp_is_its_pieces(whole: Path, tmp_path: Path) -> None:
    """Each piece is a run with one batch, which goes on from a checkpoint of the piece before."""
    found = curve(whole)
    assert [record[4] for record in found] == [64, 128, 192, 256, 384, 512, 768, 1024]
    one = train(tmp_path / "1", batch__tokens=64)
    assert curve(one)[:4] == [(*record[:5], None) for record in found[:4]]
    two = train(tmp_path / "2", step(one, 4), batch__tokens=128)
    assert curve(two)[:2] == [(*record[:5], None) for record in found[4:6]]
    three = train(tmp_path / "3", step(two, 6), batch__tokens=256)
    assert curve(three, 7) == found[6:]
    assert same(three, whole)


@pytest.mark.parametrize("number", [2, 6])
def test_a_resume_in_the_middle_of_a_ramp_is_bitwise(
    number: int, whole: Path, tmp_path: Path
) -> None:
    again = train(tmp_path / "again", step(whole, number), batch__ramp=RAMP)
    assert curve(again, number + 1) == curve(whole, number + 1)
    assert same(again, whole)


@pytest.mark.distributed
def test_ranks_share_every_stage(fork_server: ForkServer, tmp_path: Path) -> None:
    plain = {"batch__ramp": RAMP, "model__network__init_args__dropout": 0.0}
    one = train(tmp_path / "one", **plain)
    path = write(tmp_path / "c.yaml", tiny(tmp_path / "two", **{**deepcopy(SHAPE), **plain}))
    log = tmp_path / "log.txt"
    assert not any(fork_server.run("fit", "-c", str(path), ranks=2, log=log)), log.read_text()
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-6)


def test_a_batch_that_a_resume_changes_is_said(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To a smaller one, halfway, of a run in steps: the schedule goes by steps as well."""
    steps = {"budget": "8 steps", "model__schedule": part("WarmupCosine", warmup="2 steps")}
    one = train(tmp_path / "one", **steps)
    two = train(tmp_path / "two", step(one, 4), batch__tokens=64, **steps)
    assert "256 -> 64 tokens a step from step 4 on; learning rate x 0.5" in capsys.readouterr().out
    assert [record[4] for record in curve(two)] == [1088, 1152, 1216, 1280]
    assert curve(two)[0][3] == pytest.approx(curve(one)[4][3] / 2)
    derived = json.loads((two / "derived.json").read_text())["batch"]
    assert (derived["total_steps"], derived["total_tokens"]) == (8, 1280)


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        ({"batch__ramp": {**RAMP, "tokens": 96}}, "batch.ramp.tokens=96", "divide the latter by 2"),
        ({"batch__ramp": {"tokens": 64}}, "doubles_every", "as in '50M tokens'"),
        ({"batch__per_device": 8}, "batch.ramp.tokens=64", "nearest: 128"),
        ({"budget": "9 steps"}, "budget=9 steps", "write tokens"),
        (
            {"batch__ramp": {"tokens": 64, "doubles_every": "385 tokens"}},
            "doubles_every=385 tokens never reaches batch.tokens=256 within budget=1000",
            "write at most 384 tokens, or train longer",
        ),
        (
            {"budget": "200 tokens"},
            "doubles_every=192 tokens never reaches",
            "budget=200 tokens; train longer",
        ),
        (
            {"model__schedule": part("WarmupCosine", warmup="2 steps")},
            "model.schedule.warmup=2 steps",
            "write it in tokens",
        ),
        ({"trainer__strategy": "zero2"}, "batch.ramp does not work under ZeRO", "use ddp or fsdp"),
    ],
)
def test_what_makes_no_ramp_is_refused(
    overrides: dict[str, Any], key: str, remedy: str, tmp_path: Path
) -> None:
    config = tiny(tmp_path / "run", **{**deepcopy(SHAPE), "batch__ramp": RAMP, **overrides})
    try:
        found = problems(load_settings(write(tmp_path / "c.yaml", config)))
    except ValueError as error:
        found = [str(error)]
    assert any(key in line and remedy in line for line in found), found


def test_the_remedy_ends_the_ramp_and_the_table_counts_its_steps(tmp_path: Path) -> None:
    ramp = {"tokens": 64, "doubles_every": "384 tokens"}
    for warmup, steps in (("384 tokens", 6), ("450 tokens", 7)):
        schedule = part("WarmupStableDecay", warmup=warmup, decay="256 tokens")
        shape = {**deepcopy(SHAPE), "model__schedule": schedule, "batch__ramp": ramp}
        settings = load_settings(write(tmp_path / "c.yaml", tiny(tmp_path / "run", **shape)))
        assert not problems(settings)
        rows = table(settings)["schedule"]
        assert rows["warmup"] == f"{steps} steps ({warmup})"
        assert rows["decay"] == "256 tokens"
        factors = [
            schedule_factor(settings.task.schedule, settings.derive(), step)
            for step in (steps - 2, steps - 1)
        ]
        assert factors[0] < factors[1] == 1.0
