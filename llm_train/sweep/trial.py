"""One trial: a plain ``fit`` in a process and a run folder of its own, and its result in a file.

The folder's name is a hash of the trial's values. A trial with a result is never run again; one
that was killed or failed has none, and goes on from its newest checkpoint at the next start.
"""

import difflib
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from llm_train.errors import ConfigError
from llm_train.parity.processes import command
from llm_train.runtime import disk, yaml12
from llm_train.runtime.structure import nested, structure
from llm_train.sweep.spec import Values
from llm_train.trainer.logger.records import read_metrics

RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial gave.

    Attributes:
        values: by dotted key.
        loss: the metric of the sweep at the end; infinite where the run diverged, NaN where it
            failed.
        tokens: trained on.
        tokens_per_s: the median over the log points.
        peak_gib: peak memory.
        why: why there is no result, which a later start may change; "" where there is one.
    """

    values: dict[str, Any]
    loss: float
    tokens: float = 0.0
    tokens_per_s: float = 0.0
    peak_gib: float = 0.0
    why: str = ""


def run(out: Path, values: Values, words: Sequence[str], metric: str) -> TrialResult:
    """Runs a trial, or reads its result.

    Args:
        out: the folder of the sweep.
        values: of the trial.
        words: what ``fit`` is given besides.
        metric: that matters.

    Raises:
        ConfigError: a run that ended has not logged the metric, so that no other will.
    """
    folder = out / name_of(values)
    if (folder / RESULT).is_file():
        return structure(TrialResult, json.loads((folder / RESULT).read_text("utf-8")))
    line = command("fit", *arguments(folder, values, words), "--resume", "auto")
    status = _process(line, folder / "log.txt", {"WANDB_RUN_GROUP": out.name})
    found = _result(values, folder / "run", metric, status, folder / "log.txt")
    if not found.why:
        disk.write_manifest(folder / RESULT, asdict(found))
    return found


def arguments(folder: Path, values: Values, words: Sequence[str]) -> list[str]:
    """The settings of a trial as ``fit`` takes them, its values in a file of its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    overlay = folder / "overlay.yaml"
    overlay.write_text(yaml12.dump(nested(values)), encoding="utf-8")
    return [*words, "-c", str(overlay), f"--trainer.default_root_dir={folder / 'run'}"]


def name_of(values: Mapping[str, Any]) -> str:
    """The name of a trial's folder."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _process(line: Sequence[str], log: Path, variables: Mapping[str, str]) -> int:
    with (
        open(log, "ab") as file,
        subprocess.Popen(
            line,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal has told it too, and it saves
            raise


def _result(values: Values, run_dir: Path, metric: str, status: int, log: Path) -> TrialResult:
    metrics = run_dir / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.is_file() else []
    losses = [r[name] for r in records for name in ("train/loss", "grad/norm") if name in r]
    if status and all(map(math.isfinite, losses)):
        last = log.read_text("utf-8", errors="replace").strip().splitlines()[-1:]
        return TrialResult(values=values, loss=math.nan, why=f"exit {status}: {''.join(last)}")
    found = [record[metric] for record in records if metric in record]
    if not status and not found:
        logged = sorted({name for record in records for name in record})
        near = difflib.get_close_matches(metric, logged, n=1, cutoff=0) or ["another"]
        raise ConfigError(f"metric={metric} is not in {metrics}; did you mean {near[0]}?")
    loss = math.inf if status or math.isnan(found[-1]) else float(found[-1])
    rates = [r[key] for r in records if (key := "throughput/tokens_per_s") in r]
    return TrialResult(
        values=values,
        loss=loss,
        tokens=max((r.get("progress/tokens", 0.0) for r in records), default=0.0),
        tokens_per_s=median(rates) if rates else 0.0,
        peak_gib=max((r.get("memory/peak_gib", 0.0) for r in records), default=0.0),
    )
