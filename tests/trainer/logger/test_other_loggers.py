"""Lightning's own loggers, by class_path: their files hold the figures of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_train.testing.command import run
from llm_train.testing.configs import losses, part, tiny, write

Read = Callable[[Path], dict[int, float]]


def of_tensorboard(folder: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def of_mlflow(folder: Path) -> dict[int, float]:
    (file,) = folder.rglob("metrics/train/loss")
    rows = [line.split() for line in file.read_text().splitlines()]
    return {int(step): float(value) for _, value, step in rows}


@pytest.mark.parametrize(
    ("package", "logger", "setting", "read"),
    [
        ("tensorboard", "TensorBoardLogger", "save_dir", of_tensorboard),
        ("mlflow", "MLFlowLogger", "save_dir", of_mlflow),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_logger_of_lightning_holds_the_losses(
    tmp_path: Path,
    package: str,
    logger: str,
    setting: str,
    read: Read,
) -> None:
    pytest.importorskip(package)
    folder = tmp_path / "logs"
    chosen = part(f"lightning.pytorch.loggers.{logger}", **{setting: str(folder)})
    config = tiny(tmp_path / "run", steps=3, trainer__logger=chosen)
    outcome = run("fit", "-c", str(write(tmp_path / "run.yaml", config)))
    assert outcome.code == 0, outcome.err
    assert read(folder) == pytest.approx(losses(tmp_path / "run"), rel=1e-6)
