"""Finds the largest model that one device trains at sequence length 2048, without offload.

It takes Llama 8B's width and adds layers, with micro-batches of one sample, activation
checkpointing of every block, and bfloat16 weights, gradients and moments. Two small trials give the
bytes per layer; from them the search jumps to the predicted limit and moves down or up, one stride
at a time. Every trial is a process. Only a trial that ran is a result; a prediction is never one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from benchmarks.shapes import Preset
from benchmarks.studies.common import Settings, counts
from benchmarks.studies.measure import start

OVERRIDES = ("--model.recompute=EveryBlock",)
# A CPU has no limit of its own, so the rehearsal pretends that this many layers do not fit.
PRETENDED_LIMIT = 7


def trial(settings: Settings, base: Preset, layers: int) -> dict[str, Any]:
    """Runs five optimizer steps and returns the peak memory, or the error."""
    preset = replace(base, shape=replace(base.shape, layers=layers))
    if settings.rehearse and layers >= PRETENDED_LIMIT:
        row: dict[str, Any] = {"error": "pretended: out of memory"}
    else:
        peer = settings.ours(f"{layers} layers", preset, *OVERRIDES, warmup=5)
        fits = start(settings, peer)
        peer.stop()
        memory = {key: peer.answer.get(key) for key in ("peak_gib", "reserved_gib")}
        row = memory if fits else {"error": peer.error}
    row = {"layers": layers, "parameters": counts(preset).parameters, **row}
    settings.emit(f"{layers} layers", trial=True, **row)
    return row


def predicted(settings: Settings, small: dict[str, Any], larger: dict[str, Any]) -> int:
    """Predicts how many layers fit, from a straight line through two peaks."""
    if settings.rehearse:
        return PRETENDED_LIMIT
    per_layer = (larger["peak_gib"] - small["peak_gib"]) / (larger["layers"] - small["layers"])
    capacity = settings.versions["memory_gib"] - 3  # context, kernels, workspaces
    return int(small["layers"] + (capacity - small["peak_gib"]) / max(per_layer, 1e-3))


def main() -> None:
    settings = Settings.from_arguments()
    # Trials differ in size by only one stride, so fragmentation must not take any memory.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    base = settings.presets["llama-8b-4096"]
    sequence = 32 if settings.rehearse else 2048
    base = replace(base, shape=replace(base.shape, sequence=sequence, batch=1, accumulation=1))
    sizes, stride = ((2, 3), 1) if settings.rehearse else ((8, 16), 2)
    rows = [trial(settings, base, layers) for layers in sizes]
    best = max((row for row in rows if "error" not in row), key=lambda r: r["layers"], default=None)
    layers = 0 if any("error" in row for row in rows) else predicted(settings, *rows)
    direction = 0
    while layers > sizes[-1] and settings.has(120, f"{layers} layers"):
        row = trial(settings, base, layers)
        if "error" not in row:
            best = row
            if direction < 0:
                break
            direction = 1
        elif direction > 0:
            break
        else:
            direction = -1
        layers += direction * stride
    result = best or {"error": "no size ran"}
    settings.emit("largest", **result)


if __name__ == "__main__":
    main()
