"""Counts what can be counted instead of timed, because counts are the same on every machine.

It counts host synchronisations between log points, collectives per optimizer step, bytes kept for
the backward pass, graph breaks and recompilations. Each count comes from a run of the command line
or from the network itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_train.model.loss import CausalLM
from llm_train.model.network import Transformer, initialise
from llm_train.model.recompute import EveryBlock, NoRecompute, Selective
from llm_train.parity.trajectory import counted
from llm_train.plan.operators import saved_bytes
from llm_train.testing.configs import tiny, write
from llm_train.testing.ranks import command, environment

ROOT = Path(__file__).parents[1]


def synchronisations(directory: Path) -> dict[str, Any]:
    """Counts calls that make the host wait, in 12 steps of 4 micro-batches with 2 log points."""
    config = tiny(
        directory / "run", steps=12, checkpoint__every="0 steps", trainer__log_every_n_steps=6
    )
    path = write(directory / "synchronisations.yaml", config)
    script = ROOT / "tests/trainer/callbacks/count_synchronisations.py"
    _run([sys.executable, str(script), str(directory / "counts"), "fit", "-c", str(path)])
    counts = json.loads((directory / "counts-0.json").read_text())
    return {"at 2 log points": counts.get("tolist", 0), "elsewhere": sum(counts.values()) - 2}


def collectives(directory: Path, strategy: str, accumulation: int) -> Mapping[str, float]:
    """Counts collectives per optimizer step on 2 gloo ranks."""
    run = directory / f"{strategy}-{accumulation}"
    config = tiny(
        run,
        steps=8,
        batch__tokens=2 * 2 * 16 * accumulation,
        checkpoint__every="0 steps",
        trainer__strategy=strategy,
    )
    path = write(directory / f"{strategy}-{accumulation}.yaml", config)
    _run(command("fit", "-c", str(path), "--count-collectives", ranks=2))
    return counted(run)


def kept_bytes() -> dict[str, float]:
    """Measures the bytes that a block keeps for backward, per token and unit of width, in fp32."""
    width, sequence, layers = 64, 32, 4
    config = Transformer(
        vocab_size=64, layers=layers, width=width, heads=4, max_sequence=sequence,
        norm="layernorm", activation="gelu", positions="learned", tied=True, bias=True,
    )  # fmt: skip
    found = {}
    for policy in (NoRecompute(), Selective(), EveryBlock()):
        sizes = []
        for count in (layers, 2 * layers):
            network = Transformer(**{**vars(config), "layers": count}).build()
            initialise(network, 0)
            policy.apply(network.blocks())
            tokens = torch.zeros(2, sequence, dtype=torch.long)
            sizes.append(saved_bytes(network, tokens, partial(CausalLM(), targets=tokens)))
        per_layer = (sizes[1] - sizes[0]) / layers / (2 * sequence)
        found[type(policy).__name__] = per_layer / width
    return found


def compilation(directory: Path, unit: str) -> dict[str, int]:
    """Counts graphs, graph breaks and compilations after the second step of a run."""
    config = tiny(
        directory / f"compile-{unit}",
        steps=8,
        model__compile=unit,
        model__network__init_args__dropout=0.0,
        validate_every="0 steps",
        checkpoint__every="0 steps",
    )
    path = write(directory / f"compile-{unit}.yaml", config)
    out = directory / f"compile-{unit}.json"
    _run([sys.executable, "-m", "benchmarks.compilation", str(out), "fit", "-c", str(path)])
    found: dict[str, int] = json.loads(out.read_text())
    return found


def _run(arguments: list[str]) -> None:
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
