"""The files of a run that are not checkpoints, and what checkpoints know of the run."""

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from llm_train.checkpoint import compatibility, manifest
from llm_train.checkpoint.store import Found
from llm_train.derived import Derived
from llm_train.errors import CheckpointError
from llm_train.model.learning_rate import LearningRates
from llm_train.runtime import yaml12
from llm_train.runtime.ledger import LEDGER, Ledger
from llm_train.runtime.structure import flat
from llm_train.runtime.terminal import say
from llm_train.settings import Settings
from llm_train.trainer.logger.base import log_event
from llm_train.trainer.logger.jsonl import JSONLMetrics
from llm_train.trainer.logger.records import read_lines

CHECKPOINTS = "checkpoints"
EARLIER = "earlier"
RECORDS = "records"
_RISES = 1.1  # times what it was: less is a matter of a step
FIRST_SAVE = "first_save"
_TRACES = (CHECKPOINTS, "config.yaml", "metrics.jsonl", "derived.json", RECORDS, EARLIER)
_WRITTEN = (
    CHECKPOINTS,
    "metrics.jsonl",
    "ledger.jsonl",
    "config.yaml",
    "derived.json",
    "report.html",
    "report.png",
    "wandb_id.txt",
    "wandb",
    "lightning_logs",
    "profile",
    "stacks",
    "*traceback.txt",
)


def record(
    settings: Settings,
    table: dict[str, Any],
    loggers: Sequence[Logger],
    found: Found,
    *,
    resume: str,
) -> None:
    """Says and writes what is about to run, once for the directory and once for the date."""
    run_dir = settings.run_dir
    if resume == "auto" and found.path is None:
        _require_nothing_lost(run_dir)
    for path, reason in found.skipped:
        say(f"\nskipped {path}: {reason}")
    if found.path is not None:
        say(f"\nresuming from {found.path}")
        _show_changes(found.path, settings, manifest.read(found.path).metadata)
    # A checkpoint of another run begins a run here, and what was here before is no part of it.
    if not resume or (resume != "auto" and not _is_own(run_dir, found.path)):
        _set_aside(run_dir)
    event, step = "start", 0
    if found.path is not None:
        event, step = "resume", int(manifest.read(found.path).metadata["step"])
    # The event comes first: without it, the other files would be those of a run that lost its own.
    log_event(loggers, event, step)
    (run_dir / RECORDS).mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(settings.text, encoding="utf-8")
    stamp = _stamp()
    (run_dir / RECORDS / f"{stamp}.yaml").write_text(settings.text, encoding="utf-8")
    ran_on = json.dumps(environment(torch.device(settings.world.device)), indent=1)
    (run_dir / RECORDS / f"{stamp}.json").write_text(ran_on + "\n", encoding="utf-8")
    write_table(run_dir, table)
    for logger in loggers:
        logger.log_hyperparams(settings.plain)


def write_table(run_dir: Path, table: Mapping[str, Any]) -> None:
    """Writes the derived numbers."""
    (run_dir / "derived.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _require_nothing_lost(run_dir: Path) -> None:
    """Refuses to start over where a run may have saved checkpoints that cannot be seen now.

    A run that was killed before its first save has none to lose and simply starts again.
    """
    metrics = run_dir / "metrics.jsonl"
    events = {line.get("event") for line in read_lines(metrics)} if metrics.is_file() else set()
    if "start" in events and not events & {FIRST_SAVE, "resume"}:
        say(f"\nthe run in {run_dir} was not saved before it ended; starting at step 0")
        return
    checkpoints = run_dir / CHECKPOINTS
    prepared = checkpoints.is_symlink() and not _inside(checkpoints)  # for a first start
    left = [name for name in _TRACES if os.path.lexists(run_dir / name)]
    if left and not (prepared and left == [CHECKPOINTS]):
        raise CheckpointError(
            f"--resume auto finds no checkpoint in {checkpoints}, but there was a run in "
            f"{run_dir}; found: {', '.join(left)}; bring its checkpoints back, or leave out "
            "--resume to start over"
        )


def _is_own(run_dir: Path, checkpoint: Path | None) -> bool:
    """Whether a checkpoint is one of this run folder's, however its path was written."""
    own = (path for path in (run_dir / CHECKPOINTS).glob("step-*") if path.is_dir())
    return checkpoint is not None and any(path.samefile(checkpoint) for path in own)


def _inside(checkpoints: Path) -> list[Path]:
    """What a folder of checkpoints holds, without what ``_set_aside`` left in it."""
    if not checkpoints.is_dir():
        return []
    return [path for path in checkpoints.iterdir() if not path.name.startswith(EARLIER)]


def _set_aside(run_dir: Path) -> None:
    """Moves what an earlier run wrote, and nothing else, to a folder of its own."""
    left = [path for pattern in _WRITTEN for path in run_dir.glob(pattern)]
    inside = _inside(run_dir / CHECKPOINTS)
    if not inside and not any(path.name == "metrics.jsonl" for path in left):
        return
    stamp = _stamp()
    folder = run_dir / EARLIER / stamp
    folder.mkdir(parents=True)
    for path in left:
        if path.name == CHECKPOINTS and path.is_symlink():
            # The link serves the new run, too, and what it leads to stays on that file system.
            target = path / f"{EARLIER}-{stamp}"
            target.mkdir()
            for inner in inside:
                inner.rename(target / inner.name)
            (folder / path.name).symlink_to(os.path.realpath(target))
        else:
            path.rename(folder / path.name)
    say(
        f"\nmoved the run that was in {run_dir} to {folder} (--resume auto would have continued it)"
    )


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%fZ")


def _show_changes(start: Path, settings: Settings, metadata: Mapping[str, Any]) -> None:
    """A before/after table of every value that differs from when the checkpoint was written."""
    before = flat(yaml12.load((start / "config.yaml").read_text()))
    after = flat(settings.plain)
    changed = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    if not changed:
        return
    say("\nchanged since the checkpoint (the new values apply)")
    step, rate, now = metadata["step"], metadata["learning_rate"], _rate(settings, metadata)
    if not math.isclose(rate, now, rel_tol=1e-5):
        key = f"learning rate of step {step}"
        before[key], after[key] = f"{rate:.6g}", f"{now:.6g}"
        changed.append(key)
    width = max(len(key) for key in changed)
    for key in changed:
        say(f"  {key:{width}}  {before.get(key, '-')} -> {after.get(key, '-')}")
    peak = any(key.startswith("model.optimizer") for key in changed)
    if not peak and now > _RISES * rate:
        again = (
            "; to decay again, CosineRestarts with the decay so far, its first step at the peak "
            "included, as its period (docs/theory/schedules.md)"
        )
        tried = any(key.startswith("model.schedule") for key in changed)
        say(
            f"\nnote: the learning rate goes up, since step {step} lies elsewhere in the schedule "
            f"now; to go on from where it was, use Constant with a peak of {rate:.6g}"
            + ("" if tried else again)
        )


def _rate(settings: Settings, metadata: Mapping[str, Any]) -> float:
    """Of the first group, for the last step of a checkpoint, as it is configured now."""
    step = int(metadata["step"])
    derived = settings.derive(compatibility.sizes(metadata), step)
    groups = settings.context().torch_optimizer.param_groups
    LearningRates(settings.task.schedule, derived, groups).set(groups, step - 1)
    return float(groups[0]["lr"])


def files_for_checkpoints(settings: Settings) -> dict[str, str]:
    """Texts that make a checkpoint usable without the run directory and the data."""
    files = {"config.yaml": settings.text}
    tokenizer = settings.data.source.tokenizer_text()
    return files | ({"tokenizer.json": tokenizer} if tokenizer else {})


def begin_ledger(settings: Settings) -> JSONLMetrics:
    """What writes the times of the run."""
    times = JSONLMetrics(str(settings.run_dir))
    times.file_name = LEDGER
    settings.task.run_state.ledger = Ledger(times.log_event)
    return times


def metadata_for_checkpoints(settings: Settings, derived: Derived) -> dict[str, object]:
    """What a checkpoint says of the run that it is of."""
    return {
        "seed": derived.seed,
        "sequence": derived.sequence,
        "optimizer": settings.task.optimizer_config.traits.name,
    }


_PACKAGES = ("llm-train", "torch", "lightning", "numpy", "tokenizers", "deepspeed", "torchao")
_GIT_SECONDS = 5.0


def environment(device: torch.device) -> dict[str, str]:
    """Versions, the code by a hash of its files and the commit it lies in, and the device.

    Args:
        device: of this rank.
    """
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    package = Path(__file__).parents[1]
    found["code"] = _hash(package)
    if (package.parent / ".git").exists():
        command = ("git", "-C", str(package), "rev-parse", "HEAD")
        with suppress(OSError, subprocess.SubprocessError):
            found["commit"] = subprocess.check_output(
                command, text=True, stderr=subprocess.DEVNULL, timeout=_GIT_SECONDS
            ).strip()
    cpu = f"{platform.machine()} CPU, {os.cpu_count()} processors"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return found | {"host": platform.node(), "device": name}


def _hash(package: Path) -> str:
    """Of all files of code: it also changes where no commit was made."""
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:12]
