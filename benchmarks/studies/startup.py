"""Measures seconds from the command to the end of step 10 for 24 layers, cold and warm cache.

The time includes the process's own start, imports, reading the configuration, building, compiling
and ten steps, but not preparing the data. The second command finds what the first one compiled, as
a resumed run would.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from benchmarks.studies.common import Settings, at
from benchmarks.studies.measure import start


def main() -> None:
    settings = Settings.from_arguments()
    preset = at(settings.presets["gpt2-350m"], 2 if settings.rehearse else 16)
    preset = replace(preset, shape=replace(preset.shape, accumulation=1))
    settings.tokens(preset.shape.vocab)
    for repeat in range(1 if settings.rehearse else 2):
        cache = Path(settings.directory) / f"cache-{repeat}"
        cache.mkdir()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
        os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")
        for state in ("cold", "warm"):
            case = f"{preset.shape.layers} layers, {state} cache"
            if not settings.has(100, case):
                continue
            peer = settings.ours(f"{case} {repeat}", preset, warmup=10, variant="compiled")
            runs = start(settings, peer)
            peer.stop()
            row = {"seconds": peer.first_step_seconds} if runs else {"error": peer.error}
            settings.emit(case, state=state, repeat=repeat, **row)


if __name__ == "__main__":
    main()
