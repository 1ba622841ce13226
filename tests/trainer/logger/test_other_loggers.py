"""Other loggers, by class_path: what they wrote holds the figures of ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from llm_train.testing.command import run
from llm_train.testing.configs import losses, part, tiny, write

DOCS = Path(__file__).parents[3] / "docs"
STAND_IN = """
import json
class Run:
    def __init__(self, project, name, config, resume):
        self.file = open(f"{project}-{name}.jsonl", "a")
        assert config["budget"] and resume == "allow"
    def log(self, metrics, step):
        print(json.dumps({"step": step, **metrics}), file=self.file)
    def finish(self):
        self.file.close()
init = Run
"""

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


def of_trackio() -> list[dict[str, float]]:
    """With the package where it is installed, else with what stands in for it."""
    if (file := Path("mine-first.jsonl")).exists():
        return [json.loads(line) for line in file.read_text().splitlines()]
    from trackio.sqlite_storage import SQLiteStorage

    rows: list[dict[str, float]] = SQLiteStorage.get_logs("mine", "first")
    return rows


def test_the_logger_for_trackio_of_the_docs_holds_the_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = (DOCS / "extending.md").read_text("utf-8").split("```python\n")[1:]
    (text,) = (b.partition("```")[0] for b in blocks if "class TrackioLogger" in b)
    assert len(text.splitlines()) <= 32
    (tmp_path / "trackio_logger.py").write_text(text)
    if not find_spec("trackio"):
        (tmp_path / "trackio.py").write_text(STAND_IN)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    chosen = part("trackio_logger.TrackioLogger", project="mine", run="first")
    config = write(tmp_path / "c.yaml", tiny(tmp_path / "run", steps=3, trainer__logger=chosen))
    outcome = run("fit", "-c", str(config), "--allow-import=trackio_logger")
    assert outcome.code == 0, outcome.err
    found = {row["step"]: row["train/loss"] for row in of_trackio() if "train/loss" in row}
    assert found == pytest.approx(losses(tmp_path / "run"), rel=1e-6)
