"""Measures peak memory of 124M at 64 x 1024, by activation checkpointing and by loss."""

from __future__ import annotations

from benchmarks.studies.common import Settings, at
from benchmarks.studies.measure import alone, numbers

CASES = {
    "as shipped": (),
    "recompute Selective": ("--model.recompute=Selective",),
    "recompute EveryBlock": ("--model.recompute=EveryBlock",),
    "loss in chunks of 1024": (
        "--model.loss=ChunkedCausalLM",
        "--model.loss.init_args.chunk_tokens=1024",
    ),
}


def main() -> None:
    settings = Settings.from_arguments()
    preset = at(settings.presets["gpt2-124m"], 2 if settings.rehearse else 64)
    for case, overrides in CASES.items():
        if settings.has(75, case):
            peer = alone(settings, settings.ours(f"memory {case}", preset, *overrides), rounds=3)
            settings.emit(case, **numbers(settings, peer, preset))


if __name__ == "__main__":
    main()
