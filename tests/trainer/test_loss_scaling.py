"""float16 with a scaled loss: the loss of bf16, overflows left out and counted, an exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train import build, load_settings, problems
from llm_train.model.network.shadow import HasShadow
from llm_train.settings import Settings
from llm_train.testing.checkpoints import final_state
from llm_train.testing.configs import part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import Record, read_metrics
from llm_train.trainer.loss_scaling import LossScaling

STEPS = 12
HUGE = 2.0**60  # the first steps overflow until it is halved often enough


def train(
    folder: Path, *, scale: float = 2.0**16, resume: str = "", **overrides: Any
) -> tuple[Settings, list[Record]]:
    folder.mkdir()
    settings: dict[str, Any] = {"trainer__precision": "16-mixed", **overrides}
    settings["model__optimizer__init_args__learning_rate"] = 0.003
    path = write(folder / "c.yaml", tiny(folder / "run", steps=STEPS, **settings))
    run = build(load_settings(path), resume=resume)
    if isinstance(plugin := run.trainer.precision_plugin, LossScaling):
        plugin.load_state_dict(
            {"scaler": {**plugin.state_dict()["scaler"], "scale": scale}, "open": 0, "published": 0}
        )
    run.fit()
    return run.settings, read_metrics(folder / "run" / "metrics.jsonl")


def test_float16_trains_to_the_loss_of_bf16_with_clipping_after_unscaling(tmp_path: Path) -> None:
    """Norms are those of gradients that were never scaled; shadows are float16."""
    settings, half = train(tmp_path / "half", trainer__gradient_clip_val=0.5)
    _, brain = train(
        tmp_path / "brain", trainer__precision="bf16-mixed", trainer__gradient_clip_val=0.5
    )
    _, full = train(tmp_path / "full", trainer__precision="32-true", trainer__gradient_clip_val=0.5)
    assert half[-1]["train/loss"] == pytest.approx(brain[-1]["train/loss"], rel=0.01)
    assert half[0]["grad/norm"] == pytest.approx(full[0]["grad/norm"], rel=0.01)
    assert half[0]["grad/norm"] > 0.5
    assert half[-1]["optimizer/skipped"] == 0
    assert half[-1]["optimizer/loss_scale"] == 2.0**16
    shadows = [m for m in settings.task.network.modules() if isinstance(m, HasShadow)]
    assert {m.shadow.dtype for m in shadows if m.shadow is not None} == {torch.float16}


@pytest.mark.parametrize("fused", ["auto", "off"])
def test_what_overflows_is_left_out_and_the_schedule_goes_on(fused: str, tmp_path: Path) -> None:
    optimizer = part("AdamW", learning_rate=0.003, fused=fused)
    one, records = train(tmp_path / "one", scale=2.0**25, model__optimizer=optimizer)
    left_out = records[-1]["optimizer/skipped"]
    assert 0 < left_out < STEPS
    assert records[-1]["optimizer/loss_scale"] == 2.0 ** (25 - left_out)
    assert [r["grad/norm"] == 0 for r in records] == [r["step"] <= left_out for r in records]
    _, usual = train(tmp_path / "usual", model__optimizer=optimizer)
    assert [r["optimizer/lr"] for r in records] == [r["optimizer/lr"] for r in usual]
    assert [r["progress/tokens"] for r in records] == [r["progress/tokens"] for r in usual]
    steps = {float(s["step"]) for s in one.strategy.optimizers[0].state.values()}
    assert steps == {STEPS - left_out}


@pytest.mark.distributed
def test_a_resume_has_the_scalers_state(fork_server: ForkServer, tmp_path: Path) -> None:
    """Step 4 lies within the overflows, and log points at 3, 6, 9 leave one of them open.

    Two ranks that go on from there leave out the same steps, whichever of them overflows.
    """
    options = {"trainer__log_every_n_steps": 3, "checkpoint__every": "4 steps"}
    _, whole = train(tmp_path / "whole", scale=HUGE, **options)
    start = str(tmp_path / "whole" / "run" / "checkpoints" / "step-00000004")
    _, again = train(tmp_path / "again", resume=start, **options)
    names = ("step", "train/loss", "optimizer/skipped", "optimizer/loss_scale", "grad/norm")
    found, expected = ([[r[n] for n in names] for r in run][-3:] for run in (again, whole))
    assert found == expected
    states = [final_state(tmp_path / name / "run", STEPS) for name in ("whole", "again")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rate = "--model.optimizer.learning_rate=0.003"
    config = tiny(tmp_path / "two", steps=STEPS, trainer__precision="16-mixed", **options)
    line = ["fit", "-c", str(write(tmp_path / "two.yaml", config)), rate, "--resume", start]
    log = tmp_path / "log.txt"
    assert not any(fork_server.run(*line, ranks=2, log=log)), log.read_text()
    both = [[r[n] for n in names] for r in read_metrics(tmp_path / "two" / "metrics.jsonl")][-3:]
    for one, other in zip(both, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"trainer__strategy": "fsdp"}, "16-mixed under FSDP"),
        ({"model__update": "backward", "batch__tokens": 32}, "model.update=backward"),
        ({"model__loss": part("ChunkedCausalLM")}, "ChunkedCausalLM underflows"),
    ],
)
def test_where_one_scaler_would_not_do(overrides: dict[str, Any], key: str, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", trainer__precision="16-mixed", **overrides)
    found = problems(load_settings(write(tmp_path / "c.yaml", config)))
    assert any(key in line and "; " in line for line in found), found
