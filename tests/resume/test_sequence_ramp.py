"""Sequences that grow: the same tokens in the same steps, as pieces that see only themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train import build, load_settings, problems
from llm_train.check.table import table
from llm_train.testing.checkpoints import final_state
from llm_train.testing.configs import losses, tiny, write
from llm_train.trainer.logger.records import read_metrics

RAMP = {"sequence": 4, "doubles_every": "256 tokens"}  # steps 1, 2; then 3, 4; then whole


def train(folder: Path, resume: str = "", **overrides: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = write(folder / "c.yaml", tiny(folder / "run", steps=6, **overrides))
    build(load_settings(path), resume=resume).fit()
    return folder / "run"


def test_a_ramp_is_a_run_of_short_sequences_and_then_one_of_whole_ones(tmp_path: Path) -> None:
    """With tokens from their position alone, short windows are the pieces of long ones."""
    overrides = {"model__network__init_args__dropout": 0.0}
    ramp = train(tmp_path / "ramp", batch__sequence_ramp=RAMP, **overrides)
    plain = train(tmp_path / "plain", **overrides)
    found, expected = losses(ramp), losses(plain)
    assert found.keys() == expected.keys()
    assert found[1] != expected[1]
    records = read_metrics(ramp / "metrics.jsonl")
    assert [r["progress/tokens"] for r in records if "train/loss" in r] == [
        128.0 * step for step in range(1, 7)
    ]
    flops = [
        r["throughput/tflops_per_s"] / r["throughput/tokens_per_s"]
        for r in records
        if "throughput/tokens_per_s" in r
    ]
    assert flops[0] == pytest.approx(flops[1])
    assert flops[1] < flops[2] < flops[4] == pytest.approx(flops[5])
    again = train(tmp_path / "again", str(ramp / "checkpoints/step-00000002"),
        batch__sequence_ramp=RAMP, **overrides)  # fmt: skip
    state, whole = final_state(again, 6), final_state(ramp, 6)
    assert all(torch.equal(state[key], whole[key]) for key in whole)


def test_pieces_see_only_themselves(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", tiny(tmp_path / "run"))
    run = build(load_settings(path))
    task = run.settings.task
    task.trainer = run.trainer
    tokens = torch.arange(2 * 17).reshape(2, 17)
    inputs, targets, _ = task.split(tokens, 4)
    assert inputs.shape == targets.shape == (8, 4)
    assert torch.equal(targets, inputs + 1)
    assert inputs[5].tolist() == [21, 22, 23, 24]
    assert torch.equal(inputs.reshape(2, 16), tokens[:, :-1])


def test_the_table_counts_the_flops_of_each_length(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", batch__sequence_ramp=RAMP)
    settings = load_settings(write(tmp_path / "c.yaml", config))
    assert not problems(settings)
    assert settings.derive().lengths() == {4: 256, 8: 256, 16: 256}
    flops = settings.task.counts.flops_per_token
    rows = table(settings)
    total = float(rows["network"]["flops_total_causal"])
    assert total == pytest.approx(256 * (flops(4) + flops(8) + flops(16)), rel=1e-3)
    assert "4 for 256 tokens, then 8" in rows["batch"]["positions_per_sequence"]


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        ({"batch__sequence_ramp": {**RAMP, "sequence": 6}}, "sequence=6", "divide the latter"),
        ({"batch__sequence_ramp": {"sequence": 4}}, "doubles_every", "as in '50M tokens'"),
        (
            {"batch__sequence_ramp": {**RAMP, "doubles_every": "600 tokens"}},
            "doubles_every=600 tokens never reaches",
            "train longer",
        ),
        ({"model__compile": "graphs"}, "batch.sequence_ramp changes shapes", "write blocks"),
    ],
)
def test_what_makes_no_ramp_is_refused(
    overrides: dict[str, Any], key: str, remedy: str, tmp_path: Path
) -> None:
    config = tiny(tmp_path / "run", **{"batch__sequence_ramp": RAMP, **overrides})
    try:
        found = problems(load_settings(write(tmp_path / "c.yaml", config)))
    except ValueError as error:
        found = [str(error)]
    assert any(key in line and remedy in line for line in found), found
