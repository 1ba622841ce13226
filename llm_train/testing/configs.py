"""A tiny run as YAML, for tests that go through the command line."""

from pathlib import Path
from typing import Any

from llm_train.runtime import yaml12
from llm_train.runtime.structure import nested
from llm_train.trainer.logger.records import read_metrics

VOCAB = 61  # of tiny.yaml
_TINY = Path(__file__).with_name("tiny.yaml")


def part(class_path: str, **init_args: Any) -> dict[str, Any]:
    """A class and its arguments, as a YAML file names them."""
    return {"class_path": class_path, "init_args": init_args}


def tiny(run_dir: Path, *, steps: int = 6, **overrides: Any) -> dict[str, Any]:
    """Two layers, 16 features, random tokens; seconds on one core.

    Args:
        run_dir: where the run writes.
        steps: optimizer steps.
        **overrides: dotted keys with ``__`` for dots, for instance ``batch__tokens=256``.
    """
    config: dict[str, Any] = yaml12.load(_TINY.read_text())
    config["budget"] = f"{steps} steps"
    config["trainer"]["default_root_dir"] = str(run_dir)
    return nested({key.replace("__", "."): value for key, value in overrides.items()}, config)


def losses(run_dir: Path) -> dict[int, float]:
    """The training losses of a run by step."""
    records = read_metrics(run_dir / "metrics.jsonl")
    return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}


def write(path: Path, config: dict[str, Any]) -> Path:
    """Writes ``config`` as YAML."""
    path.write_text(yaml12.dump(config))
    return path
