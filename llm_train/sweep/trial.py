"""One trial: a plain ``fit`` in a process and a run folder of its own, and its result in a file.

The folder's name is a hash of the trial's values. A trial with a result is never run again; one
that was killed or failed has none, and goes on from its newest checkpoint at the next start.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from llm_train.parity.processes import command
from llm_train.runtime import yaml12
from llm_train.runtime.structure import structure
from llm_train.sweep.spec import Values
from llm_train.trainer.logger.records import read_metrics

RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial gave.

    Attributes:
        values: by dotted key.
        loss: the metric of the sweep at the end; infinite where the run diverged or failed.
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
    """
    folder = out / name_of(values)
    if (folder / RESULT).is_file():
        return structure(TrialResult, json.loads((folder / RESULT).read_text("utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overlay.yaml").write_text(yaml12.dump(nested(values)), encoding="utf-8")
    run_dir = folder / "run"
    place = [f"--trainer.default_root_dir={run_dir}", "--resume", "auto"]
    line = command("fit", *words, "-c", str(folder / "overlay.yaml"), *place)
    status = _process(line, folder / "log.txt", {"WANDB_RUN_GROUP": out.name})
    found = _result(values, run_dir, metric, status, folder / "log.txt")
    if not found.why:
        text = json.dumps({**asdict(found), "loss": found.loss}, allow_nan=True)
        aside = folder / f".{RESULT}"
        aside.write_text(text + "\n", encoding="utf-8")
        aside.replace(folder / RESULT)
    return found


def name_of(values: Mapping[str, Any]) -> str:
    """The name of a trial's folder."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as YAML nests them.

    >>> nested({"a": {"b": 1, "c": 2}, "a.c": 3})
    {'a': {'b': 1, 'c': 3}}
    """
    found: dict[str, Any] = {}
    for key, value in deepcopy(dict(values)).items():
        place = found
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return found


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
        return TrialResult(values=values, loss=math.inf, why=f"exit {status}: {''.join(last)}")
    found = [record[metric] for record in records if metric in record]
    if not status and not found:
        return TrialResult(values=values, loss=math.inf, why=f"no {metric} in {metrics}")
    loss = math.inf if status else float(found[-1])
    rates = [r[key] for r in records if (key := "throughput/tokens_per_s") in r]
    return TrialResult(
        values=values,
        loss=loss,
        tokens=max((r.get("progress/tokens", 0.0) for r in records), default=0.0),
        tokens_per_s=median(rates) if rates else 0.0,
        peak_gib=max((r.get("memory/peak_gib", 0.0) for r in records), default=0.0),
    )
