"""Compares FP8 with our own bfloat16, at 8B and Llama 1B, with the same micro-batch.

The device cannot hold both processes at 8B, so they run one after the other, with bfloat16 first
and last, so that a drift shows.
"""

from __future__ import annotations

import inspect

from benchmarks.shapes import Preset
from benchmarks.studies.common import Settings
from benchmarks.studies.measure import alone, numbers

RECIPES = ("tensorwise", "rowwise")


def compare(settings: Settings, name: str, preset: Preset) -> None:
    """Measures bfloat16, then each recipe, then bfloat16 again."""
    for case, recipe in (("bf16", ""), *((r, r) for r in RECIPES), ("bf16 again", "")):
        if not settings.has(100, f"{name} {case}"):
            continue
        overrides = (f"--model.float8={recipe}",) if recipe else ()
        peer = settings.ours(f"{name} {case}", preset, *overrides)
        row = numbers(settings, alone(settings, peer, rounds=5), preset)
        settings.emit(f"{name} {case}", shape=name, recipe=recipe or "bf16", **row)


def main() -> None:
    from llm_train.model.task import Task

    settings = Settings.from_arguments()
    if "float8" not in inspect.signature(Task).parameters:
        settings.emit("all", skipped="model.float8 does not exist here")
        return
    for name in ("llama-8b-4096", "llama-1b-2048"):
        compare(settings, name, settings.presets[name])


if __name__ == "__main__":
    main()
