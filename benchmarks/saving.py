"""What a save costs training, synchronous and asynchronous, side by side on a CPU.

Three runs take turns: without saves, with one that training waits for, and with one that is written
alongside. Each trains ``2 * WINDOW`` steps and saves in the middle. ``blocked`` is the time in the
saving hook; ``after`` is how much longer the window of steps after the save took than the window
before it, which is what a thread that writes takes from a thread that trains; the stall is their
sum, in steps, which at one save per 100 steps is the share of step time in percent::

    python -m benchmarks.saving --out FOLDER [--rounds 5] [--width 256]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl

from llm_train.checkpoint.callback import Checkpoints
from llm_train.testing.attach import attached
from llm_train.testing.command import run
from llm_train.testing.configs import part, tiny, write

WARM, WINDOW = 5, 20
MODES = ("none", "synchronous", "asynchronous")


class Clock(pl.Callback):
    """Notes when each optimizer step ends, and how long saving blocked."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.blocked = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.ends.append(time.perf_counter())


def measure(folder: Path, mode: str, width: int) -> dict[str, float]:
    """Trains once and returns milliseconds: of a step, blocked, and lost in the steps after."""
    network = part("Transformer", vocab_size=8192, layers=6, width=width, heads=4, max_sequence=128)
    every = 0 if mode == "none" else WARM + WINDOW
    config = tiny(
        folder / mode,
        steps=WARM + 2 * WINDOW + 1,
        batch={"tokens": 1024, "sequence": 128, "per_device": 8},
        model__network=network,
        data__source=part("RandomTokens", vocabulary=8192, length=100_000, held_out_length=1000),
        checkpoint={
            "every": f"{every} steps",
            "keep_last": 1,
            "asynchronous": mode == "asynchronous",
        },
        trainer__log_every_n_steps=1000,
    )
    clock, real = Clock(), Checkpoints.save

    def timed(self: Checkpoints, *arguments: Any, **options: Any) -> None:
        start = time.perf_counter()
        real(self, *arguments, **options)
        if not options.get("last"):
            clock.blocked += time.perf_counter() - start

    with mock.patch.object(Checkpoints, "save", timed), attached(clock):
        done = run("fit", "-c", str(write(folder / f"{mode}.yaml", config)))
    assert done.code == 0, done
    steps = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    before, after = steps[WARM : WARM + WINDOW - 1], steps[WARM + WINDOW :][: WINDOW - 1]
    saving = steps[WARM + WINDOW - 1]  # the step in whose first micro-batch the save begins
    step = statistics.median(before)
    lost = sum(after) + saving - clock.blocked - (len(after) + 1) * statistics.fmean(before)
    return {"step": 1e3 * step, "blocked": 1e3 * clock.blocked, "after": 1e3 * lost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for number in range(wanted.rounds):
        for mode in MODES:
            row = measure(wanted.out, mode, wanted.width)
            rows[mode].append(row)
            print(json.dumps({"round": number, "mode": mode, **row}), flush=True)
    print(f"{'':14}  step ms  blocked ms  after ms  stall in steps = % at one save per 100 steps")
    for mode, found in rows.items():
        step, blocked, after = (
            statistics.median(row[key] for row in found) for key in ("step", "blocked", "after")
        )
        stall = (blocked + after) / step
        print(f"{mode:14} {step:8.1f} {blocked:11.1f} {after:9.1f} {stall:7.2f}")


if __name__ == "__main__":
    main()
