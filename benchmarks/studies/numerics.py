"""Compares losses over 200 steps: strategies, offloading, compilation, FP8, low-bit state.

The runs are small and read the text of this checkout as bytes. Each is a process of its own, and as
many run alongside each other as JOBS says (2): only their losses matter. A case names the run
that it should equal. ``again`` repeats a run, which shows how far two equal ones are apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from benchmarks.judge import read_rows
from benchmarks.peers.ours import configuration, write_shards
from benchmarks.studies.common import Settings
from benchmarks.studies.environment import ROOT
from benchmarks.work import Shape
from llm_train.parity.variants import variants
from llm_train.testing.ranks import launched_as
from llm_train.trainer.logger.records import read_metrics

STEPS = 200
_SECONDS = 240  # of a run, after which something waits for ever
_SHAPE = Shape(
    name="bytes",
    family="llama",
    vocab=256,
    layers=3,
    width=256,
    heads=4,
    kv_heads=4,
    mlp=768,
    sequence=128,
    batch=8,
    accumulation=2,
    bias=False,
)
_OFFLOADED = {
    "fsdp": {"class_path": "FSDP", "init_args": {"offload": True}},
    "zero2": {"class_path": "ZeRO", "init_args": {"stage": 2, "offload_optimizer": "cpu"}},
    "zero3": {
        "class_path": "ZeRO",
        "init_args": {"stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    },
}
_EXACT = {"trainer.precision": "32-true", "device.float32_matmul": "ieee"}
_ON_CPU = {"trainer.precision": "32-true", "trainer.accelerator": "cpu"}
_NARROW = {
    "trainer.precision": "bf16-true",
    "model.optimizer": {"class_path": "LowBitAdamW", "init_args": {"learning_rate": 6e-4}},
}
_STATE = "model.optimizer.init_args.state"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        name: in rows.
        like: name of the case that it should equal; "" for none.
        changes: dotted keys of the configuration.
        ranks: 1 where torchrun would start it.
        steps: fewer on a CPU; the schedule does not depend on them.
    """

    name: str
    like: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 0
    steps: int = STEPS


def cases() -> Iterator[Case]:
    """The longest runs first, then those that others are compared with, then by importance."""
    yield Case(name="fp32 on the CPU", changes=_ON_CPU, steps=40)
    yield Case(name="bf16")
    yield Case(name="fp32", like="fp32 on the CPU", changes=_EXACT)
    yield Case(name="bf16 again", like="bf16")
    yield Case(name="fp32 again", like="fp32", changes=_EXACT)
    yield Case(name="tf32", like="fp32", changes={"trainer.precision": "32-true"})
    yield Case(name="fp16", like="fp32", changes={"trainer.precision": "16-mixed"})
    for variant in reversed(variants((), [1])):
        if variant.refusal or not variant.same:  # LocalSGD has nobody to agree with
            continue
        own = {"trainer.strategy": variant.strategy}
        yield Case(name=f"bf16 {variant.name}", like="bf16", changes=own, ranks=1)
        yield Case(name=f"fp32 {variant.name}", like="fp32", changes={**own, **_EXACT}, ranks=1)
    for name, strategy in _OFFLOADED.items():
        own = {"trainer.strategy": strategy}
        yield Case(name=f"bf16 {name}, offload", like=f"bf16 {name}", changes=own, ranks=1)
    for how in ("blocks", "network", "graphs"):
        own = {"model.compile": how}
        if how == "graphs":  # one micro-batch per step
            own["batch.per_device"] = _SHAPE.batch * _SHAPE.accumulation
        yield Case(name=f"bf16 {how}", like="bf16", changes=own)
    for recipe in ("tensorwise", "rowwise"):
        own = {"model.float8": recipe, "model.compile": "blocks"}
        yield Case(name=f"float8 {recipe}", like="bf16 blocks", changes=own)
    yield Case(name="bf16-true, state bf16", like="bf16", changes={**_NARROW, _STATE: "bf16"})
    yield Case(name="bf16-true, state 8bit", like="bf16", changes={**_NARROW, _STATE: "8bit"})
    narrow = {"model.optimizer": _NARROW["model.optimizer"], _STATE: "8bit"}
    yield Case(name="bf16, state 8bit", like="bf16", changes=narrow)


def text(settings: Settings) -> str:
    """Writes the checkout's prose and programs as a file of bytes, each a token; returns it."""
    path = Path(settings.directory) / "bytes.bin"
    files = sorted(
        [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("llm_train/**/*.py")]
    )
    together = b"\n".join(file.read_bytes() for file in files)
    np.frombuffer(together, dtype=np.uint8).astype(np.uint16).tofile(path)
    write_shards(str(path), _SHAPE.vocab)
    return str(path)


def run(settings: Settings, case: Case, tokens: str) -> dict[str, Any]:
    """Trains; returns a row without a comparison."""
    directory = Path(settings.directory) / "numerics" / case.name.replace(" ", "-")
    directory.mkdir(parents=True)
    job = settings.job(_SHAPE, tokens=tokens, dtype="bfloat16", variant="eager")
    config = configuration(job, directory)
    steps = 5 if settings.rehearse else case.steps
    common = {
        "budget": f"{steps} steps",
        "model.schedule": {"class_path": "Constant", "init_args": {"warmup": "5 steps"}},
        "checkpoint.every": "0 steps",
        "trainer.log_every_n_steps": 1,
    }
    for key, value in {**common, **case.changes}.items():
        place = config
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = deepcopy(value)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    port = find_free_network_port()
    environment = {
        **os.environ,
        **(launched_as("torchrun", 0, 1, port) if case.ranks else {}),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "llm_train", "fit", "-c", str(directory / "config.yaml")]
    begin = time.perf_counter()
    with open(directory / "log", "w", encoding="utf-8") as log:
        code = subprocess.run(
            command, env=environment, stdout=log, stderr=log, timeout=_SECONDS, check=False
        ).returncode
    seconds = time.perf_counter() - begin
    if code:
        lines = [line for line in (directory / "log").read_text().splitlines() if line.strip()]
        return {"error": (lines[-1] if lines else f"exit {code}")[:300]}
    records = read_metrics(directory / "run" / "metrics.jsonl")
    curve = [round(record["train/loss"], 7) for record in records if "train/loss" in record]
    peaks = [record["memory/peak_gib"] for record in records if "memory/peak_gib" in record]
    return {"seconds": seconds, "peak_gib": max(peaks, default=None), "curve": curve}


def distance(curve: list[float], other: list[float]) -> dict[str, float]:
    """The largest relative difference of two runs, early and at all, and that of their ends."""
    common = min(len(curve), len(other))
    found, like = np.array(curve[:common]), np.array(other[:common])
    ends = found[-20:].mean(), like[-20:].mean()
    return {
        "largest": float(np.abs(found / like - 1).max()),
        "first_20": float(np.abs(found[:20] / like[:20] - 1).max()),
        "last_20": float(ends[0] / ends[1] - 1),
    }


def main() -> None:
    settings = Settings.from_arguments()
    tokens = text(settings)
    curves = {
        row["case"]: row["curve"]
        for row in read_rows(Path(settings.out))
        if row["study"] == settings.study and "curve" in row
    }
    waiting: dict[str, tuple[Case, dict[str, Any]]] = {}

    def attempt(case: Case) -> dict[str, Any] | None:
        return run(settings, case, tokens) if settings.has(20, case.name) else None

    with ThreadPoolExecutor(int(os.environ.get("JOBS", "2"))) as pool:
        started = {pool.submit(attempt, case): case for case in cases()}
        for future in as_completed(started):
            case = started[future]
            try:
                row = future.result()
            except subprocess.TimeoutExpired:
                row = {"error": f"not done after {_SECONDS} s"}
            if row is None:
                continue
            if "error" in row or not case.like:
                settings.emit(case.name, **row)
            else:
                waiting[case.name] = case, row
            curves |= {case.name: row["curve"]} if "curve" in row else {}
            for name in [name for name, (c, _) in waiting.items() if c.like in curves]:
                other, found = waiting.pop(name)
                compared = distance(found["curve"], curves[other.like])
                settings.emit(name, like=other.like, **compared, **found)
    for name, (case, row) in waiting.items():
        settings.emit(name, like=case.like, **row)


if __name__ == "__main__":
    main()
