"""The files of a run that are not checkpoints, and what checkpoints know of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from llm_train.checkpoint import manifest
from llm_train.checkpoint.store import Found
from llm_train.runtime import yaml12
from llm_train.runtime.terminal import say
from llm_train.settings import Settings
from llm_train.trainer.logger.base import log_event

EARLIER = "earlier"
RECORDS = "records"
_WRITTEN = (
    "checkpoints",
    "metrics.jsonl",
    "config.yaml",
    "derived.json",
    "report.html",
    "report.png",
    "wandb_id.txt",
    "wandb",
    "lightning_logs",
    "profile",
    "*traceback.txt",
)


def record(
    settings: Settings,
    table: dict[str, Any],
    loggers: Sequence[Logger],
    found: Found,
    *,
    resume: bool,
) -> None:
    """Says and writes what is about to run, once for the directory and once for the date."""
    for path, reason in found.skipped:
        say(f"\nskipped {path}: {reason}")
    if found.path is not None:
        say(f"\nresuming from {found.path}")
        _show_changes(found.path, settings)
    run_dir = settings.run_dir
    # A checkpoint of another run begins a run here, and what was here before is no part of it.
    if not resume or (found.path and run_dir.resolve() not in found.path.resolve().parents):
        _set_aside(run_dir)
    (run_dir / RECORDS).mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(settings.text, encoding="utf-8")
    (run_dir / RECORDS / f"{_stamp()}.yaml").write_text(settings.text, encoding="utf-8")
    (run_dir / "derived.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    event, step = "start", 0
    if found.path is not None:
        event, step = "resume", int(manifest.read(found.path).metadata["step"])
    for logger in loggers:
        logger.log_hyperparams(settings.plain)
    log_event(loggers, event, step)


def _set_aside(run_dir: Path) -> None:
    """Moves what an earlier run wrote, and nothing else, to a folder of its own."""
    left = [path for pattern in _WRITTEN for path in run_dir.glob(pattern)]
    if not any(path.name in ("checkpoints", "metrics.jsonl") for path in left):
        return
    folder = run_dir / EARLIER / _stamp()
    folder.mkdir(parents=True)
    for path in left:
        path.rename(folder / path.name)
    say(
        f"\nmoved the run that was in {run_dir} to {folder} (--resume auto would have continued it)"
    )


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%fZ")


def _show_changes(start: Path, settings: Settings) -> None:
    """A before/after table of every value that differs from when the checkpoint was written."""
    before = _flat(yaml12.load((start / "config.yaml").read_text()))
    after = _flat(settings.plain)
    changed = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    if not changed:
        return
    say("\nchanged since the checkpoint (the new values apply)")
    width = max(len(key) for key in changed)
    for key in changed:
        say(f"  {key:{width}}  {before.get(key, '-')} -> {after.get(key, '-')}")


def _flat(value: object, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {prefix: value}


def files_for_checkpoints(settings: Settings) -> dict[str, str]:
    """Texts that make a checkpoint usable without the run directory and the data."""
    files = {"config.yaml": settings.text}
    tokenizer = settings.data.source.tokenizer_text()
    return files | ({"tokenizer.json": tokenizer} if tokenizer else {})
