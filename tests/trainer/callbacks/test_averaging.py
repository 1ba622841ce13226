"""Averages of the weights: unseen by training, scored by validations, exact on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.checkpoint import dcp
from llm_train.testing.command import refused, run
from llm_train.testing.configs import part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*overrides the configure_model callback")
OURS, LIGHTNING = "EMA", "lightning.pytorch.callbacks.EMAWeightAveraging"


def config(run_dir: Path, average: str, **more: Any) -> dict[str, Any]:
    callbacks = [{"class_path": average, "init_args": {"decay": 0.7}}] if average else []
    overrides = {"validate_every": "2 steps", "trainer__callbacks": callbacks, **more}
    return tiny(run_dir, **overrides)


def curves(run_dir: Path) -> list[dict[int, float]]:
    """Training and held-out losses by step."""
    records = read_metrics(run_dir / "metrics.jsonl")
    return [{r["step"]: r[key] for r in records if key in r} for key in ("train/loss", "val/loss")]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_averages_on_one_device(precision: str, tmp_path: Path) -> None:
    """Under bf16-mixed a stale shadow would train a step on the average."""
    found = {}
    for name, average in (("plain", ""), ("ours", OURS), ("theirs", LIGHTNING)):
        whole = str(write(tmp_path / f"{name}.yaml", config(tmp_path / name, average)))
        precise = f"--trainer.precision={precision}"
        assert run("fit", "-c", whole, precise).code == 0
        train, held_out = found[name] = curves(tmp_path / name)
        if not average:
            continue
        cut = str(write(tmp_path / f"{name}-cut.yaml", config(tmp_path / f"{name}-cut", average)))
        checkpoints = tmp_path / name / "checkpoints"
        outcome = run("fit", "-c", cut, precise, "--resume", str(checkpoints / "step-00000004"))
        assert outcome.code == 0, outcome.err
        resumed = curves(tmp_path / f"{name}-cut")
        assert resumed == [{5: train[5], 6: train[6]}, {6: held_out[6]}]
        path = str(checkpoints / "step-00000004")
        text = run("validate", "-c", whole, precise, "--checkpoint", path).out
        assert f"{held_out[4]:.4f}" in text
    assert found["ours"][0] == found["theirs"][0] == found["plain"][0]
    assert all(found["ours"][1][step] > loss for step, loss in found["plain"][1].items())
    # Lightning's begins with the weights after the first step.
    assert found["theirs"][1] == pytest.approx(found["ours"][1], rel=0.02)
    assert found["theirs"][1] != found["plain"][1]


def test_the_average_is_that_of_the_formula(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", config(tmp_path, OURS, checkpoint__every="1 steps"))
    assert run("fit", "-c", str(path)).code == 0
    key, expected = "layers.0.mlp.down.weight", None
    for step in range(1, 7):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        stored = dcp.keys(folder / "callbacks")
        (name,) = (k for k in stored if k.endswith(key))
        weight, average = torch.empty(stored[name].size), torch.empty(stored[name].size)
        dcp.read(folder / "state", {f"model.{key}": weight})
        dcp.read(folder / "callbacks", {name: average})
        if expected is not None:
            expected = 0.7 * expected + 0.3 * weight
            torch.testing.assert_close(average, expected)
        expected = average


@pytest.mark.distributed
def test_an_average_is_cut_as_the_weights_are(fork_server: ForkServer, tmp_path: Path) -> None:
    """Two ranks of FSDP score what two of DDP do, and continue each other's average."""
    found, log = {}, tmp_path / "log.txt"
    plain = {"model__network__init_args__dropout": 0.0}
    for name, average in (("ddp", OURS), ("fsdp", OURS), ("fsdp", "")):
        folder = tmp_path / f"{name}{average}"
        settings = config(folder, average, trainer__strategy=name, **plain)
        file = write(folder.with_suffix(".yaml"), settings)
        assert set(fork_server.run("fit", "-c", str(file), ranks=2, log=log)) == {0}, (
            log.read_text()
        )
        found[name, average] = curves(folder)
    assert found["fsdp", OURS][0] == found["fsdp", ""][0]
    assert found["fsdp", OURS][1] == pytest.approx(found["ddp", OURS][1], rel=1e-5)
    assert found["fsdp", OURS][1] != found["fsdp", ""][1]
    start = str(tmp_path / f"fsdp{OURS}" / "checkpoints" / "step-00000004")
    file = write(tmp_path / "on.yaml", config(tmp_path / "on", OURS, **plain))
    assert set(fork_server.run("fit", "-c", str(file), "--resume", start, ranks=0, log=log)) == {0}
    assert curves(tmp_path / "on")[1][6] == pytest.approx(found["ddp", OURS][1][6], rel=1e-5)


@pytest.mark.distributed
def test_an_optimizer_is_scored_at_its_own_average(fork_server: ForkServer, tmp_path: Path) -> None:
    free = {"model__optimizer": part("ScheduleFreeAdamW", learning_rate=0.02)}
    free |= {"model__network__init_args__dropout": 0.0}

    def file(name: str, **more: Any) -> str:
        return str(write(tmp_path / f"{name}.yaml", config(tmp_path / name, "", **free, **more)))

    for name, more in (("often", {}), ("once", {"validate_every": "0 steps"})):
        assert run("fit", "-c", file(name, **more)).code == 0
    train, held_out = curves(tmp_path / "often")
    assert curves(tmp_path / "once") == [train, {6: held_out[6]}]
    start = str(tmp_path / "often" / "checkpoints" / "step-00000004")
    scored = run("validate", "-c", file("often"), "--checkpoint", start).out
    assert f"{held_out[4]:.4f}" in scored
    log, on = tmp_path / "log.txt", file("on", trainer__strategy="fsdp")
    assert set(fork_server.run("fit", "-c", on, "--resume", start, ranks=2, log=log)) == {0}, (
        log.read_text()
    )
    assert curves(tmp_path / "on")[1][6] == pytest.approx(held_out[6], rel=1e-5)
    (line,) = refused("check", "-c", file("both"), "--trainer.callbacks+=EMA")
    assert line.endswith("remove EMA, or use AdamW")
    (line,) = refused("check", "-c", file("zero"), "--trainer.strategy=zero2")
    assert "ScheduleFreeAdamW needs whole matrices" in line


@pytest.mark.parametrize(
    ("average", "strategy", "remedy"),
    [
        (LIGHTNING, "fsdp", "use class_path: EMA, or trainer.strategy=ddp"),
        (OURS, "zero2", "use trainer.strategy=ddp or fsdp"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    average: str, strategy: str, remedy: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "c.yaml", config(tmp_path, average, trainer__strategy=strategy))
    (line,) = refused("check", "-c", str(path))
    assert line.startswith("trainer.callbacks")
    assert line.endswith(remedy)
